"""Run directories as records: settings, state, progress, result and metrics of each run.

A report reads records and nothing else. A run that cannot be read becomes a record with the reason;
it does not affect the others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.condition import read_result, read_undisturbed, run_stamp
from resvar.errors import UnreadableError, UserError
from resvar.reports.comparable import label_of
from resvar.rundir import (
    CONFIG,
    ENVIRONMENT,
    FAILURE,
    LOCK,
    RUN_FILES,
    RunProgress,
    is_locked,
    read_divergence,
    read_json,
    read_metrics,
    read_progress,
    read_settings,
)
from resvar.settings import Settings
from resvar.strict_yaml import read_yaml

if TYPE_CHECKING:
    import pandas


class RunState(StrEnum):
    """The state of a run."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"  # Slurm will start it
    REQUEUED = "requeued"  # Slurm will start it again
    STOPPED = "stopped"  # started, but no process is running; a rerun resumes it
    FAILED = "failed"  # the last attempt ended with an error
    WAITING = "waiting"  # listed in a sweep, no directory yet
    DAMAGED = "damaged"  # its files are not what was written, or contradict one another
    UNREADABLE = "unreadable"  # by permissions, of a later version, or not of resvar at all


UNREAD = (RunState.DAMAGED, RunState.UNREADABLE)
"""The states of a run about which a report knows little but that it exists."""


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        settings: None if they are unreadable, or were not read (`glance` at a finished run).
        result: the validated content of `result.json` of a finished run; else None.
        progress: None if unknown, such as before the first iteration.
        message: why the run failed or cannot be read; else empty.
        label: equal for comparable runs; see `label_of`. Empty without settings, or if not asked
            for.
        diverged: the state is failed, because the loss became NaN or infinite.
        metrics: the rows of `metrics.csv`; None if not requested.
        environment: the content of `environment.json`; None if it is missing or unreadable, or was
            not requested.
    """

    folder: Path
    settings: Settings | None
    state: RunState
    result: dict[str, Any] | None = None
    progress: RunProgress | None = None
    message: str = ""
    label: str = ""
    diverged: bool = False
    metrics: pandas.DataFrame | None = field(default=None, repr=False, compare=False)
    environment: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def is_read(self) -> bool:
        """Whether the run has settings, and everything requested could be read."""
        return self.settings is not None and self.state not in UNREAD

    @property
    def word(self) -> str:
        """The state; `diverged` for a run that failed because it diverged."""
        return "diverged" if self.diverged else self.state.value


def read_record(folder: Path, full: bool = True) -> Record:
    """The record of one run directory; damaged or unreadable if one of its files is.

    Args:
        full: with label and metrics.
    """
    gone = f"{folder}: there is no run here."
    return begun_record(folder, full) or Record(folder, None, RunState.DAMAGED, message=gone)


def begun_record(folder: Path, full: bool) -> Record | None:
    """The record of a run directory; None if it has neither settings nor a result."""
    known = Record(folder, None, RunState.DAMAGED)

    def read() -> Record | None:
        nonlocal known
        if not any(run_stamp(folder)):
            return None
        settings = read_settings(folder)
        known = replace(known, settings=settings, label=label_of(settings) if full else "")
        return _with_state(known, settings, full)

    try:
        return read_undisturbed(folder, read)
    except UserError as error:
        unreadable = isinstance(error, UnreadableError) or _is_foreign(folder)
        state = RunState.UNREADABLE if unreadable else RunState.DAMAGED
        return replace(known, state=state, message=str(error))


def _with_state(record: Record, settings: Settings, full: bool) -> Record:
    """The record with the state of its run.

    A run writes its metrics, then its result, and then releases its lock. It is read in reverse
    order, so that a run which ends meanwhile is seen as running or finished and never otherwise.
    """
    folder = record.folder
    at_work = is_locked(folder)
    result = read_result(folder, settings)
    if full:
        record = replace(record, metrics=read_metrics(folder))
        with suppress(UserError):  # it is not needed for any figure
            record = replace(record, environment=read_json(folder / ENVIRONMENT))
    if result is not None:
        return replace(record, state=RunState.DONE, result=result)
    divergence, progress = read_divergence(folder), read_progress(folder)
    if at_work:
        return replace(record, state=RunState.RUNNING, progress=progress)
    if divergence is not None:
        at = progress or RunProgress(divergence.iteration, settings.iterations, 0.0, 0.0)
        progress = replace(at, iteration=divergence.iteration)
        failure: tuple[str, bool] | None = (divergence.message, True)
    else:
        failure = read_failure(folder)
    if failure is None:
        return replace(record, state=RunState.STOPPED, progress=progress)
    message, diverged = failure
    return replace(
        record, state=RunState.FAILED, progress=progress, message=message, diverged=diverged
    )


def record_without_settings(folder: Path) -> Record | None:
    """The record of a run that starts, or that failed before it had settings; None if neither."""
    if is_locked(folder):
        message = "it has not written its settings yet"
        return Record(folder, None, RunState.RUNNING, message=message)
    if (failure := read_failure(folder)) is not None:
        return Record(folder, None, RunState.FAILED, message=failure[0])
    return None


def read_failure(folder: Path) -> tuple[str, bool] | None:
    """Why the last attempt at a run failed, and whether it diverged; None if it did not fail."""
    path = folder / FAILURE
    if not os.path.lexists(path):
        return None
    try:
        note: Mapping[str, Any] = read_json(path)
    except UserError as error:
        return str(error), False
    return str(note.get("message", "no reason is given")), note.get("diverged") is True


def settings_of(record: Record) -> Settings:
    """The settings of an undamaged run."""
    assert record.settings is not None
    return record.settings


def result_of(record: Record) -> dict[str, Any]:
    """The result of a finished run."""
    assert record.result is not None
    return record.result


def _is_foreign(folder: Path) -> bool:
    """Whether the only file of a run is a `config.yaml` of another program."""
    if any(os.path.lexists(folder / name) for name in {*RUN_FILES, LOCK} - {CONFIG}):
        return False
    try:
        return read_yaml(folder / CONFIG).keys().isdisjoint(("variant", "depth"))
    except UserError:
        return False
