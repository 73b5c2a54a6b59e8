"""The protocol `short` has the best settings of the search in results/short-search."""

from __future__ import annotations

import itertools
import json
import runpy

import numpy as np
import pytest

from resvar.config import parse_overrides, read_protocol, resolve
from resvar.reports.agreement import cifar10_labels
from resvar.rundir import read_settings
from resvar.settings import TRAINING_HALF
from tests.support.commands import ROOT

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "tune_short.py"))
SEARCH, command = SCRIPT["SEARCH"], SCRIPT["command"]
RECORDS = ROOT / "results" / "short-search"


def test_nothing_else_is_kept():
    assert {path.name for path in RECORDS.iterdir()} == set(SEARCH)


@pytest.mark.parametrize("name", SEARCH)
def test_the_records_are_those_of_the_commands(name):
    words = command(RECORDS / name, SEARCH[name], "cpu")
    sets = [value for word, value in itertools.pairwise(words) if word == "--set"]
    asked = resolve(
        options={"variant": "full-preact", "depth": 20, "protocol": "short"}, overrides=sets
    )
    found = read_settings(RECORDS / name)
    for key in TRAINING_HALF:
        assert getattr(found, key) == getattr(asked, key), key
    assert (found.variant, found.depth, found.holdout) == ("full-preact", 20, 5_000)
    assert found.iterations * found.batch_size == pytest.approx(10 * 45_000, abs=found.batch_size)
    assert asked.eval_every == asked.iterations  # the test set is looked at once, at the end
    assert set(parse_overrides(sets)) <= {*TRAINING_HALF, "eval_every"}


def test_short_is_the_best_on_images_held_out():
    errors = {
        name: json.loads((RECORDS / name / "result.json").read_text(encoding="utf-8"))[
            "holdout_error"
        ]
        for name in SEARCH
    }
    best = read_settings(RECORDS / min(errors, key=errors.__getitem__))
    _, short, _ = read_protocol("short")
    chosen = set(TRAINING_HALF) - {"iterations", "holdout", "milestones", "lr_factor"}
    for key in chosen & set(short):
        assert short[key] == getattr(best, key), key


def test_the_predictions_that_came_back_from_the_gpu_give_what_its_log_says():
    folder = ROOT / "docs" / "runs" / "short-gpu"
    wrong = np.load(folder / "predictions.npy") != cifar10_labels()
    log = (folder / "full-preact-110-seed-0.log").read_text(encoding="utf-8")
    assert f"test error {100 * wrong.mean():.2f} %" in log.splitlines()[-1]
