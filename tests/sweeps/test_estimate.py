"""What a sweep will take: reckoned by hand, and from a throughput that is measured here."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from resvar.cli import run_command
from resvar.config import resolve
from resvar.console import duration
from resvar.errors import UserError
from resvar.files import write_json
from resvar.kernels.build import BuildError
from resvar.rundir import DIVERGED, PROGRESS, RESULT, write_note, write_settings
from resvar.sweeps import estimate as estimate_module
from resvar.sweeps import launch, measure
from resvar.sweeps.estimate import estimate, given_throughput, makespan, measured_throughput
from resvar.sweeps.grid import PlannedRun, Sweep, plan_sweep
from resvar.sweeps.measure import _measure, measured_speeds
from resvar.sweeps.slots import Slot
from resvar.training import execution, throughput
from resvar.training.execution import Execution
from tests.reports.runs import make_result
from tests.support.commands import contents

SETS = (
    "iterations=100", "batch_size=64", "eval_every=40", "milestones=[]", "warmup_iterations=0",
)  # fmt: skip
WORK = 100 * 64 + 3 * 10_000 / 3
"""Images of a run by hand: the updates, and three evaluations that count a third each."""


def plan(root: Path, depths: str = "8,14", seeds: str = "2") -> Sweep:
    names = {"variants": "original,full-preact", "depths": depths, "seeds": seeds}
    return plan_sweep(None, names, SETS, root)


def note(folder: Path, **changes: object) -> None:
    folder.mkdir(parents=True)
    held = {"iteration": 25, "iterations": 100, "seconds": 9.0, "images_per_second": 3.0} | changes
    (folder / PROGRESS).write_text(json.dumps(held), encoding="utf-8")


def finish(run: PlannedRun) -> None:
    run.folder.mkdir(parents=True)
    write_settings(run.folder, run.settings)
    write_json(run.folder / RESULT, make_result(run.settings, 50.0))


# --- by hand --------------------------------------------------------------------------------------


def test_the_hours_of_each_network_and_in_all(tmp_path):
    todo = plan(tmp_path).runs
    found = estimate(todo, given_throughput("8=50,14=20", todo))
    shallow, deep = found.parts
    assert (shallow.name, deep.name) == ("ResNet-8", "ResNet-14")
    assert (shallow.speed, deep.speed) == (50, 20)
    assert shallow.whole == pytest.approx(WORK / 50)
    assert deep.whole == pytest.approx(WORK / 20)
    assert len(shallow.left) == len(deep.left) == 4
    assert found.total == pytest.approx(4 * WORK / 50 + 4 * WORK / 20)
    assert found.by_the_clock(1) == pytest.approx(found.total)
    assert found.by_the_clock(8) == found.by_the_clock(99) == pytest.approx(WORK / 20)


def test_of_a_run_that_has_begun_only_what_is_left_counts(tmp_path):
    todo = plan(tmp_path, depths="8").runs
    note(todo[0].folder)
    note(todo[1].folder, iteration="soon")
    note(todo[2].folder, iteration=100)
    found = estimate(todo, given_throughput("8=50", todo))
    whole = WORK / 50
    begun = (WORK - 25 * 64) / 50  # all three evaluations are to come
    measuring = 10_000 / 3 / 50  # the last evaluation may not be done
    assert found.lengths == pytest.approx((begun, whole, measuring, whole))
    assert found.total == pytest.approx(begun + measuring + 2 * whole)


def test_the_evaluation_images_of_a_folder_are_counted(tmp_path):
    folder = ["dataset=folder", "normalize=imagenet", "num_classes=2"]
    names = {"variants": "original", "depths": "8"}
    todo = plan_sweep(None, names, [*SETS, *folder], tmp_path).runs
    for number in range(7):
        image = tmp_path / "data" / "val" / f"class-{number % 2}" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    images = 100 * 64 + 3 * 7 / 3
    found = estimate(todo, given_throughput("8=50", todo), tmp_path / "data")
    assert found.total == pytest.approx(images / 50)
    unknown = estimate(todo, given_throughput("8=50", todo), tmp_path / "nowhere")
    assert unknown.total == pytest.approx(WORK / 50)


@pytest.mark.parametrize(
    ("lengths", "devices", "end"),
    [
        ([3, 3, 2, 2, 2], 2, 7),
        ([2, 2, 2, 3, 3], 2, 7),
        ([1] * 7, 3, 3),
        ([5, 1, 1, 1], 2, 5),
        ([4], 9, 4),
        ([], 3, 0),
    ],
)
def test_whoever_is_free_takes_the_next_run(lengths, devices, end):
    assert makespan(lengths, devices) == end


@for_all(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(1, 50))
def test_no_schedule_is_shorter_and_none_of_a_list_is_much_longer(lengths, devices):
    """Graham (1966): at most the ideal and the longest run together."""
    end, ideal = makespan(lengths, devices), sum(lengths) / devices
    assert end >= max(ideal, max(lengths)) * (1 - 1e-9)
    assert end <= (ideal + max(lengths)) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("8=50", ["depth 14 is missing", "resvar bench --depth 14"]),
        ("8", ["--images-per-second 8:", "DEPTH=N"]),
        ("eight=50,14=20", ["DEPTH=N"]),
        ("8=fast,14=20", ["DEPTH=N"]),
        ("", ["DEPTH=N"]),
        ("8=0,14=20", ["depth 8", "above 0"]),
        ("8=-1,14=20", ["depth 8", "above 0"]),
        ("8=50,14=nan", ["depth 14", "above 0"]),
        ("8=inf,14=20", ["depth 8", "above 0"]),
    ],
)
def test_a_throughput_that_cannot_be(tmp_path, text, parts):
    with pytest.raises(UserError) as refused:
        given_throughput(text, plan(tmp_path).runs)
    for part in parts:
        assert part in str(refused.value)


# --- runs that share a device ---------------------------------------------------------------------

ASSISTANT = """
import glob, json, os, sys
request = json.loads(sys.stdin.readline())
for number, _ in enumerate(request["kinds"]):
    open(f"warm-{number}-{os.getpid()}", "x").close()
    print("a library says hello")
    print(json.dumps({"warm": True}), flush=True)
    assert os.read(0, 1)
    together = len(glob.glob(f"warm-{number}-*"))
    print(json.dumps({"speed": together, "device": "slide rule"}), flush=True)
"""
"""A process that measures how many are warm when it may go, and that prints other lines too."""


@pytest.mark.process
def test_as_many_measure_at_the_same_time_as_share_the_device(tmp_path, monkeypatch):
    script = tmp_path / "assistant.py"
    script.write_text(ASSISTANT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "SAFE_PYTHON", (sys.executable, str(script)))
    kinds = [(run.settings, False) for run in plan(tmp_path, seeds="1").runs[:2]]
    assert measured_speeds(kinds, Slot("cpu 0", 1, "cpu"), 3) == ([3.0, 3.0], "slide rule")


def on_gpus(names: str) -> list[Slot]:
    return [
        Slot(f"gpu {gpu}, {number}", 1, "cuda", {"CUDA_VISIBLE_DEVICES": gpu})
        for number, gpu in enumerate(names)
    ]


@pytest.mark.parametrize(
    ("slots", "runs", "together"),
    [
        (on_gpus("01"), 8, 1),
        (on_gpus("010"), 8, 2),
        (on_gpus("0000"), 3, 3),  # the fourth place stays free
        ([Slot(f"cpu {number}", 1, "cpu") for number in range(4)], 8, 4),
    ],
)
def test_runs_share_a_gpu_or_the_processor(tmp_path, monkeypatch, slots, runs, together):
    asked = []

    def answer(kinds, slot, count):
        asked.append((slot, count))
        return [50.0] * len(kinds), "slide rule"

    monkeypatch.setattr(estimate_module, "measured_speeds", answer)
    todo = plan(tmp_path).runs[:runs]
    found = measured_throughput(todo, slots)
    assert asked == [(slots[0], together)]
    assert found.together == together
    assert found.source.startswith(f"Measured here on slide rule, {together} run")


def test_a_device_with_several_runs_does_them_at_a_time(work, capsys):
    speeds = ["--images-per-second", "8=5,14=5"]
    assert run_command([*SWEEP, "--estimate", *speeds, "--per-gpu", "2", "--jobs", "6"]) == 0
    out = capsys.readouterr().out
    one = WORK / 5
    assert "images per second of each of 2 runs on a device as --images-per-second says" in out
    assert f"A device trains 2 runs at a time: {duration(4 * one)} of device time." in out
    assert f"Wall time: {duration(2 * one)} with 6 runs at a time, {duration(4 * one)} on 1" in out
    assert f" such device, {duration(one)} on 4 such devices." in out
    assert not list(work.iterdir())


# --- as a command ---------------------------------------------------------------------------------

SWEEP = (
    "sweep", "--variants", "original,full-preact", "--depths", "8,14", "--seeds", "2",
    *(word for text in SETS for word in ("--set", text)),
)  # fmt: skip


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder without data: an estimate needs none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESVAR_DATA", str(tmp_path / "none"))
    return tmp_path


def times(speed, runs):
    """The words of the time that a run takes, and all of them."""
    return f"{duration(WORK / speed)} {duration(runs * WORK / speed)}".split()


def test_it_leaves_out_what_is_finished_or_diverged_and_writes_nothing(work, capsys):
    runs = plan(Path("runs")).runs
    finish(runs[0])
    runs[1].folder.mkdir(parents=True)
    write_settings(runs[1].folder, runs[1].settings)
    write_note(runs[1].folder / DIVERGED, {"iteration": 3, "message": "the loss is NaN"})
    before = contents(work)
    assert run_command([*SWEEP, "--estimate", "--images-per-second", "8=0.5,14=0.2"]) == 0
    assert contents(work) == before
    out = capsys.readouterr().out
    assert "8 runs in runs, 1 of them finished already, 1 diverged." in out
    assert "Not measured here" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if "ResNet" in line}
    assert rows["ResNet-8"] == ["2", "0.5", *times(0.5, 2)]
    assert rows["ResNet-14"] == ["4", "0.2", *times(0.2, 4)]
    assert re.search(rf"total +6 +– +– +{duration(2 * WORK / 0.5 + 4 * WORK / 0.2)}\n", out)
    assert "on 1 such device," in out
    assert "on 6 such devices." in out
    assert "slots here" not in out


@pytest.mark.process
def test_measured_here_each_network_once_and_the_deeper_is_slower(work, capsys):
    two = [word if word != "8,14" else "110,8" for word in SWEEP]
    assert run_command([*two, "--estimate", "--device", "cpu", "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "Measured here on" in out
    assert "in 2 slots here" in out
    rows = [line.split() for line in out.splitlines() if "ResNet" in line]
    assert [row[:2] for row in rows] == [["ResNet-110", "4"], ["ResNet-8", "4"]]
    deep, shallow = (float(row[2].replace(",", "")) for row in rows)
    assert 2 * deep < shallow  # by fifteen, on an idle machine
    assert not list(work.iterdir())


class NoRuns:
    """In place of the runs of a sweep."""

    diverged = ()

    def __init__(self, *_):
        pass

    run = report = lambda _: None


@pytest.mark.usefixtures("work")
def test_a_sweep_that_is_given_the_speed_does_not_measure(monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("it measures")

    monkeypatch.setattr(launch, "measured_throughput", refuse)
    monkeypatch.setattr(launch, "require_inputs", lambda *_: None)
    monkeypatch.setattr(launch, "LocalSweep", NoRuns)
    local = [*SWEEP, "--device", "cpu", "--jobs", "2"]
    assert run_command([*local, "--images-per-second", "8=5,14=2"]) == 0
    out = capsys.readouterr().out
    assert "8 to do, 2 at a time" in out
    assert "Measuring" not in out
    # Two of each depth at a time, and a place that is free takes the next.
    total = makespan([WORK / 5, WORK / 5, WORK / 2, WORK / 2] * 2, 2)
    assert f"About {duration(total)} in total. Ctrl-C" in out
    with pytest.raises(AssertionError, match="it measures"):
        run_command(local)


def test_a_sweep_that_is_given_a_wrong_speed_starts_nothing(work, monkeypatch, capsys):
    monkeypatch.setattr(launch, "require_inputs", lambda *_: None)
    assert run_command([*SWEEP, "--device", "cpu", "--images-per-second", "8=5"]) == 2
    err = capsys.readouterr().err
    assert "depth 14 is missing" in err
    assert len(err.splitlines()) == 1
    assert not list(work.iterdir())


@pytest.mark.usefixtures("work")
def test_a_finished_sweep_costs_nothing(capsys):
    for run in plan(Path("runs")).runs:
        finish(run)
    assert run_command([*SWEEP, "--estimate"]) == 0
    assert "8 runs in runs, 8 of them finished already." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--images-per-second", "8=1,14=1", "--dry-run"], "--dry-run cannot be combined"),
        (
            ["--images-per-second", "8=1,14=1", "--launcher", "slurm"],
            "so add --estimate",
        ),
        (["--estimate", "--dry-run"], "one at a time"),
        (["--estimate", "--images-per-second", "8=1"], "depth 14 is missing"),
        (["--estimate", "--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(work, capsys, more, part):
    assert run_command([*SWEEP, *more]) == 2
    err = capsys.readouterr().err
    assert part in err
    assert len(err.splitlines()) == 1
    assert not list(work.iterdir())


def test_a_run_that_has_begun_is_measured_without_what_it_cannot_have(monkeypatch):
    """A new one that asks for it is refused before the sweep starts."""

    def refuse(_say=None):
        raise BuildError("no C++ compiler is found")

    monkeypatch.setattr(execution, "load_operators", refuse)
    monkeypatch.setattr(Execution, "prepare_process", lambda _plan: None)
    monkeypatch.setattr(throughput, "measure_throughput", lambda plan, **_: plan.kernels)
    settings = resolve(options={"variant": "original", "depth": 8}, overrides=["kernels=fused"])

    def speeds(begun):
        request = {"kinds": [(settings.model_dump(), begun)], "threads": 1, "device": "cpu"}
        return [answer["speed"] for answer in _measure(request, ready=lambda: None)]

    assert speeds(begun=True) == ["plain"]
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        speeds(begun=False)
