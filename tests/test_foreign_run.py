"""Looking at a run directory that somebody else has packed: nothing hangs, nothing is written."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

import resvar
from resvar.errors import RunError, UserError
from resvar.evaluation.trained import open_trained
from resvar.probes.measurements import read_probe
from resvar.reports.records import RunState
from resvar.reports.search import glance, read_records
from resvar.rundir import is_locked, read_predictions, snapshots
from tests.frozen.make import unpack
from tests.support.commands import ROOT

FILES = [
    "config.yaml", "environment.json", "metrics.csv", "checkpoint.pt", "checkpoint.previous.pt",
    "result.json", "predictions.npy", "progress.json", "failure.json", "diverged.json",
    "probe.json", "run.lock", "log.txt", "snapshots/iteration-000006.safetensors",
]  # fmt: skip


@pytest.fixture(params=["begun", "finished"])
def foreign(request, tmp_path) -> Path:
    folder = tmp_path / "foreign"
    shutil.copytree(ROOT / "tests" / "frozen" / "format-1" / request.param, folder)
    unpack(folder)
    (folder / "snapshots").mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_no_reader_waits_for_a_pipe(foreign, name):
    (foreign / name).unlink(missing_ok=True)
    os.mkfifo(foreign / name)
    signal.alarm(120)  # ends the process, which says where it waits
    assert not is_locked(foreign)
    for read in (
        resvar.load_run, open_trained, read_probe, read_predictions,
        lambda at: [resvar.load_model(path) for path in snapshots(at).values()],
    ):  # fmt: skip
        with contextlib.suppress(UserError, RunError):
            read(foreign)
    for read in (glance, read_records):
        (record,) = read([foreign])
        if name in ("config.yaml", "result.json"):
            assert record.state is RunState.DAMAGED
            assert name in record.message
    signal.alarm(0)


def test_commands_write_through_no_planted_link(foreign, warm, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    for name in ("run.lock", "log.txt", "probe.json", "failure.json", "checkpoint.pt.tmp",
                 "probe.json.tmp", "config.yaml.tmp", "run.lock.tmp"):  # fmt: skip
        (foreign / name).unlink(missing_ok=True)
        (foreign / name).symlink_to(tmp_path / "mine")
    (tmp_path / "page.html.tmp").symlink_to(tmp_path / "mine")
    for arguments in (
        ["status", "foreign"],
        ["report", "foreign", "--format", "html", "--out", "page.html"],
        ["evaluate", "foreign", "--device", "cpu"],
        ["export", "foreign", "--out", "weights.safetensors"],
        ["probe", "foreign", "--images", "4", "--device", "cpu"],
        ["train", "--config", "foreign/config.yaml", "--out", "foreign"],
        ["train", "--config", "foreign/config.yaml", "--out", "foreign", "--fresh"],
    ):
        done = warm.run(*arguments, cwd=tmp_path)
        assert "Traceback" not in done.err, done
        assert (tmp_path / "mine").read_bytes() == b"mine", arguments
