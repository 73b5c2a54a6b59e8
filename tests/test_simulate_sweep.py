"""scripts/simulate_sweep.py: the simulation agrees with the closed forms, where there are any."""

from __future__ import annotations

import math
import subprocess
import sys
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from simulate_sweep import make_load, run_scenario
from sweep_model import Conditions, daly, expected_busy, simulate, young

from resvar.sweeps.estimate import makespan
from tests.support.commands import ROOT

SCRIPT = ROOT / "scripts" / "simulate_sweep.py"


def repeated(work, interval, conditions, runs=100, times=40):
    """Sweeps of `runs` equal runs on one device: busy seconds and seconds by the clock of a run,
    each as mean and standard error."""
    found = [
        simulate([work] * runs, [interval] * runs, 1, conditions, seed) for seed in range(times)
    ]
    for what in ([o.busy / runs for o in found], [o.makespan / runs for o in found]):
        yield fmean(what), stdev(what) / math.sqrt(times)


# --- without a failure ----------------------------------------------------------------------------


@given(
    lengths=st.lists(st.floats(1, 1e5), min_size=1, max_size=30),
    devices=st.integers(1, 40),
    interval=st.floats(10, 1e5),
    start=st.floats(0, 100),
    checkpoint=st.floats(0, 100),
)
def test_without_failures_it_is_the_schedule_itself(lengths, devices, interval, start, checkpoint):
    conditions = Conditions(start=start, checkpoint=checkpoint)
    found = simulate(lengths, [interval] * len(lengths), devices, conditions, 0)
    whole = [start + length + math.ceil(length / interval) * checkpoint for length in lengths]
    assert found.makespan == pytest.approx(makespan(whole, devices))
    assert found.busy == pytest.approx(sum(whole))
    assert (found.lost, found.interruptions) == (0, 0)


# --- one device, against the closed forms ---------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "interval", "checkpoint", "start", "mtbf"),
    [(10, 1, 0.1, 0.0, 5), (10, 1, 0.1, 0.5, 5), (12, 3, 0.5, 1.0, 4), (5, 5, 0.0, 0.0, 5),
     (20, 0.5, 0.05, 0.2, 50)],
)  # fmt: skip
def test_one_device_takes_as_long_as_daly_says(work, interval, checkpoint, start, mtbf):
    """Equation 20 of Daly (2006), written out here once more; the time away comes on top: failures
    come at a rate of 1 / M while the device works, so work / M of them are expected."""
    segment = mtbf * math.exp(start / mtbf) * (math.exp((interval + checkpoint) / mtbf) - 1)
    expected = mtbf * (math.exp(start / mtbf) - 1) + work / interval * segment
    conditions = Conditions(failure=mtbf, repair=2.0, start=start, checkpoint=checkpoint)
    assert expected_busy(work, interval, conditions) == pytest.approx(expected)
    (busy, error), (clock, clock_error) = repeated(work, interval, conditions)
    assert error < 0.02 * expected, "else the comparison says little"
    assert abs(busy - expected) < 4 * error
    assert abs(clock - expected * (1 + 2.0 / mtbf)) < 4 * clock_error


def test_failures_and_preemptions_add_up():
    conditions = Conditions(failure=30.0, preemption=10.0, repair=6.0, requeue=2.0)
    assert conditions.mtbf == pytest.approx(7.5)
    away = (6.0 + 3 * 2.0) / 4  # preemptions are three times as frequent
    (busy, error), (clock, clock_error) = repeated(10, 1, conditions)
    expected = 10 * 7.5 * math.expm1(1 / 7.5)
    assert abs(busy - expected) < 4 * error
    assert abs(clock - expected * (1 + away / 7.5)) < 4 * clock_error


def test_without_checkpoints_a_run_starts_over_each_time():
    conditions = Conditions(failure=5.0, start=1.0, checkpoint=0.5)
    (busy, error), _ = repeated(6.0, math.inf, conditions)
    expected = 5 * (math.exp((1.0 + 6.0 + 0.5) / 5) - 1)
    assert abs(busy - expected) < 4 * error


def test_checkpoints_without_end_cost_without_end_and_lose_nothing():
    conditions = Conditions(failure=5.0, checkpoint=0.01)
    found = [simulate([5.0] * 100, [t] * 100, 1, conditions, 0) for t in (1e-1, 1e-2, 1e-3)]
    lost = [one.lost / one.work for one in found]
    spent = [one.checkpoints / one.work for one in found]
    assert lost[0] > 0.005
    assert lost[1] < 0.005
    assert spent == pytest.approx([0.1, 1, 10], rel=0.1)
    free = Conditions(failure=5.0)
    nothing = simulate([5.0] * 100, [1e-3] * 100, 1, free, 0)
    assert nothing.interruptions > 50
    assert nothing.overhead < 1e-3


# --- the optimum ----------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [0.001, 0.01, 0.1, 0.3])
def test_daly_is_where_his_expected_time_is_least_and_young_is_near(checkpoint):
    conditions = Conditions(failure=1.0, checkpoint=checkpoint)
    least = minimize_scalar(
        lambda t: expected_busy(1.0, t, conditions), bounds=(1e-4, 5), method="bounded"
    ).x
    higher, first = daly(checkpoint, 1.0), young(checkpoint, 1.0)
    assert higher == pytest.approx(least, rel=0.01)
    assert abs(higher - least) < abs(first - least)
    assert first == pytest.approx(math.sqrt(2 * checkpoint))
    assert daly(3.0, 1.0) == 1.0


def test_the_simulated_optimum_is_youngs():
    load = make_load("110=240,164=160", 300)
    conditions = Conditions(preemption=7200.0, checkpoint=1.0, start=10.0)
    found = run_scenario(load, conditions, 20, 0)
    assert young(1.0, 7200.0) / 2 <= found.best <= 2 * young(1.0, 7200.0)
    edges = [one.overhead for one in found.intervals.values()]
    assert min(edges[0], edges[-1]) > 3 * found.intervals[found.best].overhead


# --- a sweep --------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.floats(1, 50), min_size=1, max_size=20),
    devices=st.integers(1, 25),
    interval=st.floats(0.5, 10),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_time_is_neither_made_nor_lost(lengths, devices, interval, seed):
    conditions = Conditions(
        failure=20, preemption=30, repair=5, requeue=1, start=0.3, checkpoint=0.1
    )
    found = simulate(lengths, [interval] * len(lengths), devices, conditions, seed)
    assert found.work == sum(lengths)
    assert found.makespan >= max(sum(lengths) / devices, max(lengths))
    assert found.makespan * devices >= found.busy * (1 - 1e-9)
    assert min(found.lost, found.starts, found.checkpoints, found.interruptions) >= 0
    assert found.interruptions or not found.lost


def test_the_runs_are_those_of_table_2_and_the_intervals_the_defaults():
    load = make_load("110=200,164=100", 25)
    assert len(load.lengths) == len(load.intervals) == 25
    images = 64_000 * 128 + 164 * 10_000 / 3
    assert set(load.lengths) == {images / 200, images / 100}
    assert load.defaults == {"ResNet-110": 391 * 128 / 200, "ResNet-164": 391 * 128 / 100}
    assert load.lengths[:10] == load.lengths[10:20]


# --- as a command ---------------------------------------------------------------------------------


def call(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.process
def test_the_same_seed_gives_the_same_tables_and_figure(tmp_path):
    common = ("--images-per-second", "110=240,164=160", "--checkpoint", 0.5, "--runs", 40)
    for name in ("a", "b"):
        done = call(*common, "--figures", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "sweep.svg").read_bytes() == (
        tmp_path / "b" / "sweep.svg"
    ).read_bytes()
    assert "mathdefault" not in (tmp_path / "a" / "sweep.svg").read_text(encoding="utf-8")
    for words in ("40 runs", "On 100 devices", "Interrupted every 2.0 h", "1,000"):
        assert words in done.stdout


@pytest.mark.process
def test_a_throughput_that_is_missing_is_named():
    done = call("--images-per-second", "110=240", "--checkpoint", 0.5)
    assert done.returncode == 2
    assert "depth 164 is missing" in done.stderr
    assert "Traceback" not in done.stderr
