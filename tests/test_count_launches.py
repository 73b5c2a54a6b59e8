"""The number of kernels that an update would launch on a GPU."""

from __future__ import annotations

import sys

import pytest
from count_launches import GHOST_BN, UPDATES, launches_of, main, settings_of

ORDERINGS = ["original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact"]


@pytest.mark.parametrize("variant", ORDERINGS)
def test_an_update_of_110_layers_launches_few_kernels(variant):
    """In relu-only-preact the ReLU before a branch is one more, forward and backward."""
    *_, ghost = UPDATES.values()
    launches = launches_of(ghost(settings_of(variant, 110)))
    assert launches.total() <= (1000 if variant == "relu-only-preact" else 930)
    norms = 109
    assert {name: launches[name] for name in GHOST_BN} == dict.fromkeys(GHOST_BN, norms)


@pytest.mark.heavy
def test_each_step_saves_a_fifth_and_more():
    settings = settings_of("full-preact", 110)
    before, at_once, ghost = (launches_of(make(settings)).total() for make in UPDATES.values())
    assert at_once < 0.8 * before
    assert ghost < 0.5 * at_once


@pytest.mark.parametrize("wrong", [("--depth", "9"), ("--depth", "0"), ("--variant", "other")])
def test_a_network_that_cannot_be_is_refused_in_a_sentence(monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["count_launches.py", *wrong])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert wrong[0] in err.splitlines()[-1]
