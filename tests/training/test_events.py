"""TensorBoard event files say what metrics.csv says, whatever happened to the run."""

from __future__ import annotations

import csv
import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from resvar.cli import run_command
from resvar.config import resolve
from resvar.rundir import EVENTS
from resvar.settings import differences
from resvar.training.events import TAGS
from tests.support.commands import contents, train

pytest.importorskip("tensorboard")

ON = ("--set", "tensorboard=true")


def points(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Every (tag, step, value) of every event file, as TensorBoard's own reader finds them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for path in folder.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                yield value.tag, event.step, value.tensor.float_val[0]


def rows(folder: Path) -> list[tuple[str, int, float]]:
    """The same from metrics.csv."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [
            (tag, int(row["iteration"]), pytest.approx(float(row[column]), rel=1e-6))
            for row in csv.DictReader(file)
            for column, tag in TAGS.items()
            if column in row
        ]


def assert_events_are_the_metrics(folder: Path, evaluations: int) -> None:
    found = sorted(points(folder))
    assert len(found) == evaluations * (len(TAGS) - 2)  # no images are held out
    assert found == sorted(rows(folder), key=lambda row: row[:2])


def test_a_run_writes_its_evaluations(warm, tmp_path):
    done = warm.run(*train(*ON, "--out", "run"), cwd=tmp_path)
    assert done.code == 0, done.err
    assert_events_are_the_metrics(tmp_path / "run", 4)  # of 14 iterations after 4, 8, 12, 14


@pytest.mark.parametrize(
    "place", ["after-metrics.csv:4", "iteration:10", "evaluation:3", "before-result.json:1"]
)
def test_no_point_is_there_twice_or_taken_back_after_a_kill(warm, tmp_path, place):
    killed = warm.run(*train(*ON, "--out", "run"), cwd=tmp_path, RESVAR_TEST_KILL=place)
    assert killed.code == -signal.SIGKILL
    assert warm.run(*train(*ON, "--out", "run"), cwd=tmp_path).code == 0
    assert_events_are_the_metrics(tmp_path / "run", 4)


def test_none_are_written_unless_asked_for_and_fresh_removes_them(warm, tmp_path):
    assert warm.run(*train("--out", "run"), cwd=tmp_path).code == 0
    folder = tmp_path / "run"
    assert not list(folder.glob(EVENTS))
    (folder / "events.out.tfevents.1.host").write_text("somebody else's", encoding="utf-8")
    assert warm.run(*train(*ON, "--fresh", "--out", "run"), cwd=tmp_path).code == 0
    assert len(list(folder.glob(EVENTS))) == 1
    assert warm.run(*train("--fresh", "--out", "run"), cwd=tmp_path).code == 0
    assert [path.name for path in folder.glob("events*")] == ["events.out.tfevents.1.host"]


def test_it_is_the_same_run_with_and_without(warm, tmp_path):
    stopped = warm.run(*train("--out", "run"), cwd=tmp_path, RESVAR_TEST_KILL="iteration:10")
    assert stopped.code == -signal.SIGKILL
    done = warm.run(*train(*ON, "--out", "run"), cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert_events_are_the_metrics(tmp_path / "run", 4)  # including those before it was enabled
    options = {"variant": "original", "depth": 20, "protocol": "quick"}
    without, with_it = resolve(options=options), resolve(None, options, ["tensorboard=true"])
    assert without.hash == with_it.hash
    assert differences(without, with_it) == differences(with_it, without) == []


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
@pytest.mark.parametrize(
    "command",
    [["train", "--variant", "original", "--depth", "8"],
     ["sweep", "--variants", "original", "--depths", "8"]],
)  # fmt: skip
def test_without_the_package_it_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, command, package
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "resvar.training.events.find_spec", lambda name: None if name == package else find(name)
    )
    options = ["--protocol", "quick", "--set", f"{package}=true", "--out", str(tmp_path / "runs")]
    assert run_command([*command, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{package}=true" in line
    assert f"pip install 'resvar[{package}]'" in line
    assert contents(tmp_path) == {}
