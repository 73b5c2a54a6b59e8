"""Bad input ends in words. Here by the hundred; `python -m tests.long.fuzz` by the thousand."""

from __future__ import annotations

import pytest

from tests.long.fuzz.targets import Fuzz


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory) -> Fuzz:
    return Fuzz(tmp_path_factory.mktemp("fuzz"))


TARGETS = (
    "config.yaml", "config.yaml of a run", "variant YAML", "protocol YAML", "sweep YAML", "--set",
    "result.json", "metrics.csv", "progress.json", "failure.json", "diverged.json",
    "progress.json at work", "environment.json", "probe.json", "predictions.npy",
    "list of a sweep", "odd files", "texts of a run", ".safetensors", "checkpoint.pt",
    "checkpoint's state", "archive",
)  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("cases", [15, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_bad_input_ends_in_words(fuzz, name, cases):
    found = fuzz.attack(name, cases)
    print(f"\n{name}: {found.cases} cases, the slowest {found.slowest:.2f} s, {found.words}")
    assert found.cases >= cases // 2
    if name == "checkpoint.pt":
        assert found.words["noticed"] > found.cases // 3


def test_every_target_is_tried(fuzz):
    assert set(fuzz.targets) == set(TARGETS)
