"""An active run is read at one moment: whatever it writes meanwhile, nothing looks damaged.

While the reader makes its system calls, the run takes one step after the other, from any call on.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import resvar
from resvar.condition import run_stamp
from resvar.errors import UserError
from resvar.files import write_json
from resvar.reports.records import RunState
from resvar.reports.search import glance, read_records
from resvar.rundir import (
    CONFIG,
    LOCK,
    METRICS,
    PREDICTIONS,
    RESULT,
    RUN_FILES,
    locked,
    write_metrics,
    write_settings,
)
from tests.reports.pages import rows, write_curved
from tests.reports.runs import make_result, make_settings

ONE, OTHER = make_settings("original", 20), make_settings("original", 20, overrides=["lr=0.05"])
EVALUATED = {100: 80.0, 400: 50.0}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def ending(run, settings):
    """What a run writes from its last evaluation on, in this order."""
    yield lambda: write_metrics(run / METRICS, rows(EVALUATED))
    yield lambda: (run / PREDICTIONS).write_bytes(b"")
    yield lambda: write_json(run / RESULT, make_result(settings, 50.0))


def starting_over(run):
    """What `--fresh` removes and the new run writes, with other settings."""
    for name in RUN_FILES:
        yield lambda name=name: (run / name).unlink(missing_ok=True)
    yield lambda: write_settings(run, OTHER)
    yield lambda: write_metrics(run / METRICS, rows({100: 80.0}))
    yield from ending(run, OTHER)


def interleaved(read, steps, first, stride):
    """The value of `read`, and its number of system calls.

    A step is taken before every `stride`-th of them.
    """
    calls = 0

    def count(_frame, event, function):
        nonlocal calls
        if event == "c_call" and function.__module__ in ("posix", "fcntl"):
            calls += 1
            if calls >= first and (calls - first) % stride == 0:
                next(steps, lambda: None)()

    sys.setprofile(count)
    try:
        value = read()
    finally:
        sys.setprofile(None)
    return value, calls


def every_interleaving(tmp_path, prepare, read):
    """The values of `read`, for steps that begin at any of its calls and come fast or slowly."""
    run = tmp_path / "runs" / "run"
    for stride in (1, 3):
        first, calls = 1, 2
        while first <= calls:
            begin(run)
            steps = prepare(run)
            with locked(run):
                value, calls = interleaved(lambda: read(run), steps, first, stride)
            yield value
            first += 1


@lru_cache
def begun_files():
    """Name → content of a run before its last evaluation."""
    with TemporaryDirectory() as name:
        errors = {100: 80.0}
        run = write_curved(Path(name), "original", 20, errors=errors, test_error=None)
        return {path.name: path.read_bytes() for path in run.iterdir()}


def begin(run):
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    for name, content in begun_files().items():
        (run / name).write_bytes(content)


def finishing(run):
    return ending(run, ONE)


def fresh(run):
    for step in ending(run, ONE):
        step()
    return starting_over(run)


@pytest.mark.heavy
@pytest.mark.parametrize("prepare", [finishing, fresh])
@pytest.mark.parametrize("reader", [read_records, glance])
def test_status_and_report_see_one_moment(tmp_path, prepare, reader):
    seen = set()
    for (record,) in every_interleaving(tmp_path, prepare, lambda run: reader([run.parent])):
        assert record.state in (RunState.RUNNING, RunState.DONE), record
        if record.state is RunState.DONE and reader is read_records:
            assert list(record.metrics["iteration"]) == [100, 400], "of the finished run"
        seen.add(record.state)
    assert seen == {RunState.RUNNING, RunState.DONE}


@pytest.mark.parametrize("prepare", [finishing, fresh])
def test_load_run_reads_one_moment(tmp_path, prepare):
    def read(run):
        try:
            return resvar.load_run(run)
        except UserError as error:
            return str(error)

    for run in every_interleaving(tmp_path, prepare, read):
        if isinstance(run, str):
            assert "there is no run here" in run, "while it is started over"
        elif run.result is not None:
            assert run.result["config_hash"] == run.config.hash
            assert list(run.metrics["iteration"]) == [100, 400]


def test_a_run_that_ends_is_never_stopped(tmp_path):
    """Its lock is free from the moment at which its result is there."""
    run = tmp_path / "run"
    for first in range(1, 60):
        begin(run)
        with ExitStack() as lock:
            lock.enter_context(locked(run))
            steps = iter([*ending(run, ONE), lock.close])
            (record,), _ = interleaved(lambda: read_records([run]), steps, first, 1)
        assert record.state in (RunState.RUNNING, RunState.DONE), first


def test_a_stamp_changes_with_settings_and_result_alone(tmp_path):
    run = write_curved(tmp_path, "original", 20)
    before = run_stamp(run)
    (run / METRICS).unlink()
    (run / LOCK).touch()
    assert run_stamp(run) == before
    os.utime(run / RESULT, ns=(0, 0))
    assert run_stamp(run) != before
    (run / RESULT).unlink()
    (run / CONFIG).unlink()
    assert run_stamp(run) == (None, None)
    assert json.dumps(run_stamp(tmp_path / "none")) == "[null, null]"
