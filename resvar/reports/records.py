"""Run directories as records: settings, state, progress, result and metrics of each run.

A report reads records and nothing else. A damaged run becomes a record with the reason; it does not
affect the others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.condition import read_result
from resvar.config import TRAINING_HALF, Settings, deviations
from resvar.errors import UserError
from resvar.files import shipped
from resvar.models.architecture import plan
from resvar.models.ordering import in_paper_order
from resvar.rundir import (
    CONFIG,
    FAILURE,
    RESULT,
    RunProgress,
    is_locked,
    read_divergence,
    read_json,
    read_metrics,
    read_progress,
    read_settings,
)

if TYPE_CHECKING:
    import pandas


class RunState(StrEnum):
    """The state of a run."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"  # Slurm will start it
    REQUEUED = "requeued"  # Slurm will start it again
    STOPPED = "stopped"  # started, but no process is at work; the same command resumes it
    FAILED = "failed"  # the last attempt ended with an error
    WAITING = "waiting"  # listed in a sweep, no directory yet
    DAMAGED = "damaged"  # its files cannot be read, or contradict one another


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        settings: None if they are unreadable, or were not read (`glance` at a finished run).
        result: the validated content of `result.json` of a finished run; else None.
        progress: None if unknown, such as before the first iteration.
        message: why the run failed, or what is damaged; else empty.
        label: equal for comparable runs; see `label_of`. Empty without settings, or if not asked
            for.
        diverged: the state is failed, because the loss became NaN or infinite.
        metrics: the rows of `metrics.csv`; None if not asked for.
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

    @property
    def word(self) -> str:
        """The state; `diverged` for a run that failed because it diverged."""
        return "diverged" if self.diverged else self.state.value


def read_records(folders: Sequence[Path]) -> list[Record]:
    """Every run at or below `folders`, once each.

    A run directory contains `config.yaml` or `result.json`; it is not searched for further runs.
    Hidden folders (`.git`, `.venv`) are skipped.

    Returns:
        The records by protocol (the paper's first), dataset, variant in the paper's order, depth,
        seed and path; damaged runs last.

    Raises:
        UserError: a folder does not exist, or there is no run in any of them.
    """
    return in_report_order([read_record(run) for run, _ in _found(folders)])


def glance(folders: Sequence[Path]) -> list[Record]:
    """The state of every run at or below `folders`, fast: two seconds for ten thousand runs.

    Of a finished run the metrics are not read. Labels are empty.

    Returns:
        The finished runs, then the others in the order of `read_records`.

    Raises:
        UserError: as `read_records`.
    """
    found = [_glance_at(run, names) for run, names in _found(folders)]
    done = [record for record in found if record.state is RunState.DONE]
    return done + in_report_order([record for record in found if record.state is not RunState.DONE])


def _glance_at(folder: Path, names: Collection[str]) -> Record:
    """The record of a run directory with files of these names."""
    if RESULT not in names:
        return read_record(folder, full=False)
    if CONFIG in names:
        with suppress(UserError):
            if (result := read_result(folder)) is not None:
                return Record(folder, None, RunState.DONE, result=result)
    return read_record(folder)  # with the reason why it is damaged


def _found(folders: Sequence[Path]) -> list[tuple[Path, Collection[str]]]:
    """Every run directory at or below `folders`, once each, with the names of its files.

    Raises:
        UserError: a folder does not exist, or there is no run in any of them.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder.")
    seen: set[tuple[int, int]] = set()
    found = [run for folder in folders for run in _runs(folder, seen)]
    if not found:
        where = ", ".join(str(folder) for folder in folders) or "no folder"
        raise UserError(f"{where}: there is no run here; `resvar train` makes one.")
    return found


def read_record(folder: Path, full: bool = True) -> Record:
    """The record of one run directory; damaged if a file is unreadable.

    Args:
        full: with label and metrics.
    """
    record = Record(folder, None, RunState.DAMAGED)
    try:
        settings = read_settings(folder)
        record = replace(record, settings=settings, label=label_of(settings) if full else "")
        metrics = read_metrics(folder) if full else None
        if (result := read_result(folder, settings)) is not None:
            return replace(record, state=RunState.DONE, result=result, metrics=metrics)
        divergence = read_divergence(folder)
    except UserError as error:
        return replace(record, message=str(error))
    progress, message, diverged = read_progress(folder), "", False
    state = RunState.STOPPED
    if is_locked(folder):
        state = RunState.RUNNING
    elif divergence is not None:
        state, message, diverged = RunState.FAILED, divergence.message, True
        at = RunProgress(divergence.iteration, settings.iterations, 0.0, 0.0)
        progress = replace(progress or at, iteration=divergence.iteration)
    elif (folder / FAILURE).exists():
        state = RunState.FAILED
        message, diverged = _read_failure(folder / FAILURE)
    return replace(
        record, state=state, progress=progress, message=message, diverged=diverged, metrics=metrics
    )


def settings_of(record: Record) -> Settings:
    """The settings of an undamaged run."""
    assert record.settings is not None
    return record.settings


def result_of(record: Record) -> dict[str, Any]:
    """The result of a finished run."""
    assert record.result is not None
    return record.result


# --- comparable runs ------------------------------------------------------------------------------


def label_of(settings: Settings) -> str:
    """The label that runs in one table share, apart from their dataset.

    The protocol, and in parentheses every setting that deviates from it or from the usual network
    of this depth: `quick (iterations=5, lr=0.05)`. A protocol that is not shipped is identified by
    the first digits of a hash over its values, `mine (3f09c2)`, since its name may mean anything.
    """
    network = [f"{key}={shown(value)}" for key, value in network_deviations(settings).items()]
    if settings.protocol in shipped("protocols"):
        training = [f"{key}={shown(value)}" for key, value in deviations(settings).items()]
    else:
        values = settings.model_dump(include=set(TRAINING_HALF))
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        training = [digest[:6]]
    differing = ", ".join(training + network)
    return f"{settings.protocol} ({differing})" if differing else settings.protocol


def network_deviations(settings: Settings) -> dict[str, Any]:
    """The settings in which the network deviates from that of the CIFAR family at this depth.

    Includes the unit if both basic units and bottlenecks fit the depth.
    """
    asked = settings.model_dump()
    found: dict[str, Any] = {} if settings.family == "cifar" else {"family": settings.family}
    try:
        unit = plan(settings.depth, settings.family).unit
    except UserError:
        unit = None
    if asked["unit"] != unit:
        found["unit"] = asked["unit"]
    usual = plan(settings.depth, settings.family, asked["unit"])
    names = ("stem", "cardinality", "base_width", "shortcut", "stride_on")
    return found | {name: asked[name] for name in names if asked[name] != getattr(usual, name)}


def follows_paper(settings: Settings) -> bool:
    """Whether protocol and network are the paper's, so that its figures are comparable."""
    return (
        settings.protocol == "paper"
        and not deviations(settings)
        and not network_deviations(settings)
    )


def shown(value: Any) -> str:
    """A setting's value in the syntax of `--set`."""
    return value if isinstance(value, str) else json.dumps(value)


def in_report_order(records: Sequence[Record]) -> list[Record]:
    """Sorted by protocol, label, dataset, variant, depth, seed and path; damaged ones last."""
    variants = in_paper_order({record.settings.variant for record in records if record.settings})
    rank = {variant: index for index, variant in enumerate(variants)}

    def key(record: Record) -> tuple[Any, ...]:
        settings, path = record.settings, record.folder.as_posix()
        if settings is None or record.state is RunState.DAMAGED:
            return (1, path)
        protocol = (settings.protocol != "paper", settings.protocol, record.label)
        cell = (rank[settings.variant], settings.depth, settings.seed)
        return (0, protocol, settings.dataset, cell, path)

    return sorted(records, key=key)


# --- finding runs ---------------------------------------------------------------------------------


def _runs(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, Collection[str]]]:
    """Run directories at or below `folder`, each with the names of its files.

    Links are followed; a loop ends at the first folder visited before.

    Args:
        seen: (device, inode) of the folders visited; updated.
    """
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                inside = {entry.name: entry for entry in entries}
            if CONFIG in inside or RESULT in inside:
                yield here, inside.keys()
                continue
            below = [name for name, entry in inside.items() if name[0] != "." and _is_folder(entry)]
        except OSError:  # removed meanwhile, or not readable
            continue
        waiting.extend(here / name for name in sorted(below, reverse=True))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also False for a link that points to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


# --- reading one run ------------------------------------------------------------------------------


def _read_failure(path: Path) -> tuple[str, bool]:
    """Message of `failure.json`, and whether the run diverged."""
    try:
        note: Mapping[str, Any] = read_json(path)
    except UserError as error:
        return str(error), False
    return str(note.get("message", "no reason is given")), note.get("diverged") is True
