"""Whatever is read, it ends in words: bad input by the hundred; `scripts/fuzz.py` by the thousand.

`RESVAR_FUZZ=full pytest tests/test_fuzz.py` tries as many here.
"""

from __future__ import annotations

import os

import pytest

from tests.long.fuzz.targets import Fuzz

EXAMPLES = 1000 if os.environ.get("RESVAR_FUZZ") == "full" else 40


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory) -> Fuzz:
    return Fuzz(tmp_path_factory.mktemp("fuzz"))


TARGETS = (
    "config.yaml", "variant YAML", "protocol YAML", "sweep YAML", "--set", "result.json",
    "metrics.csv", "progress.json", "failure.json", "diverged.json", "progress.json at work",
    "environment.json", "probe.json", "predictions.npy", "list of a sweep", ".safetensors",
    "checkpoint.pt", "checkpoint's state", "archive",
)  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_bad_input_ends_in_words(fuzz, name):
    found = fuzz.attack(name, EXAMPLES)
    print(f"\n{name}: {found.cases} cases, the slowest {found.slowest:.2f} s, {found.words}")
    assert found.cases >= EXAMPLES // 2
    if name == "checkpoint.pt":
        assert found.words["noticed"] > found.cases // 3


def test_every_target_is_tried(fuzz):
    assert set(fuzz.targets) == set(TARGETS)
