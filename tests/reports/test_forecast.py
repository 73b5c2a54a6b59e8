"""What a sweep says of itself before its runs are paid for."""

from __future__ import annotations

import pytest

from resvar.files import shipped
from resvar.reports.forecast import forecast
from resvar.reports.power import power
from resvar.sweeps.grid import plan_sweep
from tests.reports.runs import write_run


def told(tmp_path, variants="original,full-preact", depths="110,164", seeds="5", sets=(), **given):
    keys = {"variants": variants, "depths": depths, "seeds": seeds, "protocol": "paper"}
    return " ".join(forecast(plan_sweep(None, keys | given, sets, tmp_path)))


def test_the_power_is_told_before_anything_runs(tmp_path):
    text = told(tmp_path)
    assert (
        "5 seeds of each detect 0.24 points (published, ResNet-110) with a probability of "
        f"{100 * power(0.24, 0.16, 5, 2):.0f} % and 0.47 points (published, ResNet-164) with a "
        f"probability of {100 * power(0.47, 0.16, 5, 2):.0f} %, if runs spread as published (sd "
        "0.16)." in text
    )
    assert "with a probability of 80 % takes 10 and 5 seeds of each" in text
    assert "yardstick" not in text


def test_too_few_seeds_cannot_decide(tmp_path):
    for seeds in ("1", "2", "4"):
        text = told(tmp_path, seeds=seeds)
        assert "cannot decide whether V2 is better than V1 at 2 depths together" in text
        assert "at least 5" in text
        assert "detect 0.24" not in text
    assert "cannot decide" not in told(tmp_path, depths="110", seeds="4")


def test_other_orderings_are_a_family_of_their_own(tmp_path):
    variants = "original,bn-after-add,relu-before-add,relu-only-preact,full-preact"
    assert "cannot show" not in told(tmp_path, variants)
    text = told(tmp_path, variants, seeds="4")
    assert "ResNet-110 and ResNet-164: 4 seeds of each cannot show that one of 3 other" in text
    assert "p cannot fall below 0.086; 5 seeds can." in text


def test_the_spread_of_results_replaces_the_assumed_one(tmp_path):
    for seed, error in enumerate((6.2, 6.6, 7.0)):
        write_run(tmp_path, "original", 110, seed, error, "paper", folder=None)
    text = told(tmp_path)
    assert "with the spread of the runs here (sd 0.23 to 1.77)" in text
    assert "as published (sd" not in text


def test_another_protocol_has_a_yardstick_only(tmp_path):
    assert "They are a yardstick only" in told(tmp_path, protocol="short")
    assert told(tmp_path, sets=("dataset=sample",)) == ""
    assert told(tmp_path, variants="full-preact") == ""


@pytest.mark.parametrize("name", shipped("sweeps"))
def test_every_shipped_sweep_can_decide(tmp_path, name):
    from pathlib import Path

    text = " ".join(forecast(plan_sweep(Path(name), {}, (), tmp_path)))
    assert "detect" in text
    assert "cannot" not in text
