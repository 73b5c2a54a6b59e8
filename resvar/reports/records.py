"""Run directories as records: settings, state, progress, result and metrics of each run.

A report reads records and nothing else. A run that cannot be read becomes a record with the reason;
it does not affect the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.condition import read_result, read_undisturbed, run_stamp
from resvar.config import TRAINING_HALF, Settings, deviations, effective
from resvar.errors import UnreadableError, UserError
from resvar.files import shipped
from resvar.models.ordering import in_paper_order
from resvar.rundir import (
    CONFIG,
    ENVIRONMENT,
    FAILURE,
    LOCK,
    RESULT,
    RUN_FILES,
    RunProgress,
    is_locked,
    read_divergence,
    read_json,
    read_metrics,
    read_progress,
    read_settings,
)
from resvar.settings import network_deviations
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


def read_records(folders: Sequence[Path]) -> list[Record]:
    """Every run at or below `folders`, once each.

    A run directory contains `config.yaml` or `result.json`; it is not searched for further runs.
    Hidden folders (`.git`, `.venv`) are skipped. A folder that cannot be searched is a record too.

    Returns:
        The records by protocol (the paper's first), dataset, variant in the paper's order, depth,
        seed and path; unreadable ones last.

    Raises:
        UserError: a folder does not exist, or there is no run in any of them.
    """
    return in_report_order(_records(folders, full=True))


def glance(folders: Sequence[Path]) -> list[Record]:
    """The state of every run at or below `folders`, fast: three seconds for ten thousand runs.

    The metrics are not read. Labels are empty.

    Returns:
        The finished runs, then the others in the order of `read_records`.

    Raises:
        UserError: as `read_records`.
    """
    found = _records(folders, full=False)
    done = [record for record in found if record.state is RunState.DONE]
    return done + in_report_order([record for record in found if record.state is not RunState.DONE])


def _records(folders: Sequence[Path], full: bool) -> list[Record]:
    """Every run at or below `folders`, once each.

    Raises:
        UserError: a folder does not exist, or there is no run in any of them.
    """
    for folder in folders:
        _require_folder(folder, alone=len(folders) == 1)
    seen: set[tuple[int, int]] = set()
    found = [record for folder in folders for record in _search(folder, seen, full)]
    if not found:
        where = ", ".join(str(folder) for folder in folders) or "no folder"
        raise UserError(f"{where}: there is no run here; `resvar train` makes one.")
    return found


def read_record(folder: Path, full: bool = True) -> Record:
    """The record of one run directory; damaged or unreadable if one of its files is.

    Args:
        full: with label and metrics.
    """
    gone = f"{folder}: there is no run here."
    return _begun_record(folder, full) or Record(folder, None, RunState.DAMAGED, message=gone)


def _begun_record(folder: Path, full: bool) -> Record | None:
    """The record of a run directory; None if it has neither settings nor a result."""
    known = Record(folder, None, RunState.DAMAGED)

    def read() -> Record | None:
        nonlocal known
        if not any(run_stamp(folder)):
            return None
        settings = read_settings(folder)
        known = replace(known, settings=settings, label=label_of(settings) if full else "")
        return _with_standing(known, settings, full)

    try:
        return read_undisturbed(folder, read)
    except UserError as error:
        unreadable = isinstance(error, UnreadableError) or _is_foreign(folder)
        state = RunState.UNREADABLE if unreadable else RunState.DAMAGED
        return replace(known, state=state, message=str(error))


def _with_standing(record: Record, settings: Settings, full: bool) -> Record:
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


# --- comparable runs ------------------------------------------------------------------------------


def label_of(settings: Settings) -> str:
    """The label that runs in one table share, apart from their dataset.

    The protocol, and in parentheses every setting that deviates from it or from the usual network
    of this depth: `quick (iterations=5, lr=0.05)`. A protocol that is not shipped is identified by
    the first digits of a hash over its values, `mine (3f09c2)`, since its name may mean anything.
    Settings without effect, such as Muon's for a run with SGD, do not count.
    """
    network = [f"{key}={shown(value)}" for key, value in network_deviations(settings).items()]
    if settings.protocol in shipped("protocols"):
        training = [f"{key}={shown(value)}" for key, value in deviations(settings).items()]
    else:
        values = effective(settings).model_dump(include=set(TRAINING_HALF))
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        training = [digest[:6]]
    differing = ", ".join(training + network)
    return f"{settings.protocol} ({differing})" if differing else settings.protocol


def with_more(record: Record, names: Set[str]) -> str:
    """The label of a record, with the further settings that its folder's name shows."""
    there = {part.partition("=")[0] for part in record.folder.parent.name.split(",")}
    more = [f"{n}={shown(getattr(settings_of(record), n))}" for n in sorted(names & there)]
    if not more:
        return record.label
    head, _, inside = record.label.removesuffix(")").partition(" (")
    return f"{head} ({', '.join([*([inside] if inside else []), *more])})"


def follows_paper(settings: Settings) -> bool:
    """Whether protocol, images and network are the paper's: its figures are comparable."""
    return (
        settings.protocol == "paper"
        and settings.dataset != "sample"
        and not deviations(settings)
        and not network_deviations(settings)
    )


def shown(value: Any) -> str:
    """A setting's value in the syntax of `--set`."""
    return value if isinstance(value, str) else json.dumps(value)


def in_report_order(records: Sequence[Record]) -> list[Record]:
    """Sorted by protocol, label, dataset, variant, depth, seed and path; unread ones last.

    The paper's protocol is the first; the others follow by their longest run, the longest first.
    """
    known = [record.settings for record in records if record.settings]
    rank = {name: at for at, name in enumerate(in_paper_order({s.variant for s in known}))}
    images: dict[str, int] = {}
    for s in known:
        images[s.protocol] = max(images.get(s.protocol, 0), s.iterations * s.batch_size)

    def key(record: Record) -> tuple[Any, ...]:
        settings, path = record.settings, record.folder.as_posix()
        if settings is None or record.state in UNREAD:
            return (1, path)
        name = settings.protocol
        protocol = (name != "paper", -images[name], name, record.label)
        cell = (rank[settings.variant], settings.depth, settings.seed)
        return (0, protocol, settings.dataset, cell, path)

    return sorted(records, key=key)


# --- finding runs ---------------------------------------------------------------------------------

SEED_FOLDER = re.compile("seed-[0-9]+")
"""The default name of a run directory; also a file of this name counts as a run."""


def _require_folder(folder: Path, alone: bool) -> None:
    """Check that `folder` can be searched.

    Args:
        alone: it is the only folder. Otherwise one without read permission becomes a record.

    Raises:
        UserError: it is missing, not a folder, or not readable.
    """
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        raise UserError(f"{folder}: there is no such folder.") from None
    except NotADirectoryError:
        raise UserError(f"{folder}: this is not a folder.") from None
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(folder)!r}: this is not a folder name ({error}).") from error
    except OSError as error:
        if alone:
            raise _cannot_be_searched(folder, error) from error


def _cannot_be_searched(folder: Path, error: OSError) -> UnreadableError:
    return UnreadableError(f"{folder}: this folder cannot be read ({error.strerror}).")


def _search(root: Path, seen: set[tuple[int, int]], full: bool) -> Iterator[Record]:
    """The runs at or below `root`.

    Links are followed; a loop ends at the first folder visited before.

    Args:
        seen: (device, inode) of the folders visited; updated.
    """
    waiting = [root]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                inside = {entry.name: entry for entry in entries}
        except OSError as error:
            if os.path.lexists(here):  # otherwise it was removed meanwhile
                message = str(_cannot_be_searched(here, error))
                yield Record(here, None, RunState.UNREADABLE, message=message)
            continue
        if (record := _record_in(here, inside.keys(), full)) is not None:
            yield record
            if record.settings is not None or record.state not in UNREAD:
                continue  # but another program's config.yaml hides no runs below it
        below = [name for name, entry in inside.items() if name[0] != "." and _may_hold_runs(entry)]
        waiting.extend(here / name for name in sorted(below, reverse=True))


def _record_in(folder: Path, names: Set[str], full: bool) -> Record | None:
    """The record of a folder with files of these names; None if it is not a run directory."""
    if not names & {CONFIG, RESULT, LOCK, FAILURE}:
        return None
    return _begun_record(folder, full) or record_without_settings(folder)


def record_without_settings(folder: Path) -> Record | None:
    """The record of a run that starts, or that failed before it had settings; None if neither."""
    if is_locked(folder):
        message = "it has not written its settings yet"
        return Record(folder, None, RunState.RUNNING, message=message)
    if (failure := read_failure(folder)) is not None:
        return Record(folder, None, RunState.FAILED, message=failure[0])
    return None


def _may_hold_runs(entry: os.DirEntry[str]) -> bool:
    try:
        return SEED_FOLDER.fullmatch(entry.name) is not None or entry.is_dir()
    except PermissionError:  # of what a link leads to
        return True
    except OSError:  # a link that leads to itself
        return False


def _is_foreign(folder: Path) -> bool:
    """Whether the only file of a run is a `config.yaml` of another program."""
    if any(os.path.lexists(folder / name) for name in {*RUN_FILES, LOCK} - {CONFIG}):
        return False
    try:
        return read_yaml(folder / CONFIG).keys().isdisjoint(("variant", "depth"))
    except UserError:
        return False
