"""From run directories to records: what each run is, how far it came, and what it found.

A report reads these records and nothing else. A damaged run becomes a record that says so, and
never spoils the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.config import TRAINING_HALF, Settings, deviations
from resvar.errors import UserError
from resvar.files import shipped
from resvar.models.architecture import plan
from resvar.models.ordering import in_paper_order
from resvar.rundir import (
    CONFIG,
    FAILURE,
    NOTE_FORMAT,
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
    """How a run stands."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"  # Slurm has it and will start it
    REQUEUED = "requeued"  # the same, and it was at work before
    STOPPED = "stopped"  # begun, and nobody works there: it goes on when started again
    FAILED = "failed"  # the last attempt ended with an error
    WAITING = "waiting"  # listed in a sweep, no directory yet
    DAMAGED = "damaged"  # its files cannot be read, or contradict one another


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        settings: None where they cannot be read, or nobody did: `glance` at a finished run.
        result: the content of `result.json`, checked, where the state is done; else None.
        progress: None where nothing is known, such as before the first iteration.
        message: why the run failed, or what is damaged; else empty.
        label: what makes runs comparable; see `label_of`. Empty where there are no settings, or
            nobody asked.
        diverged: the state is failed, and that because the loss was no number any more.
        metrics: the rows of `metrics.csv`; None where they were not asked for.
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
        """The state, where a diverged run is told from one that failed otherwise."""
        return "diverged" if self.diverged else self.state.value


def read_records(folders: Sequence[Path]) -> list[Record]:
    """Every run at or below `folders`, once each.

    A run directory is one with a `config.yaml` or `result.json`; it is not searched for further
    runs, and hidden folders (`.git`, `.venv`) are not searched at all.

    Returns:
        The records by protocol (the paper's first), dataset, variant in the paper's order, depth,
        seed and path; damaged runs last.

    Raises:
        UserError: a folder does not exist, or there is no run in any of them.
    """
    return in_report_order([read_record(run) for run, _ in _found(folders)])


def glance(folders: Sequence[Path]) -> list[Record]:
    """How every run at or below `folders` stands and nothing else; ten thousand take two seconds.

    A finished run is believed if its `result.json` is sound by itself: whether that agrees with
    `config.yaml`, and whether `metrics.csv` can be read, a report finds out. Labels are empty.

    Returns:
        The finished runs, then the others as `read_records` has them.

    Raises:
        UserError: as `read_records`.
    """
    found = [_glance_at(run, names) for run, names in _found(folders)]
    done = [record for record in found if record.state is RunState.DONE]
    return done + in_report_order([record for record in found if record.state is not RunState.DONE])


def _glance_at(folder: Path, names: Collection[str]) -> Record:
    """A run directory in which there is what `names` say."""
    if RESULT not in names:
        return read_record(folder, full=False)
    if CONFIG in names:
        with suppress(UserError):
            path = folder / RESULT
            return Record(folder, None, RunState.DONE, result=_sound(read_json(path), path))
    return read_record(folder)  # says what is damaged


def _found(folders: Sequence[Path]) -> list[tuple[Path, Collection[str]]]:
    """Every run directory at or below `folders`, once each, with the names inside.

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
    """The record of one run directory; what cannot be read makes it a damaged one.

    Args:
        full: with label and metrics.
    """
    try:
        settings = read_settings(folder)
        label = label_of(settings) if full else ""
    except UserError as error:
        return Record(folder, None, RunState.DAMAGED, message=str(error))
    try:
        metrics = read_metrics(folder) if full else None
        # A link to nowhere is no missing result but a damaged one.
        if os.path.lexists(folder / RESULT):
            result = _checked(read_json(folder / RESULT), settings, folder)
            return Record(
                folder, settings, RunState.DONE, result=result, label=label, metrics=metrics
            )
    except UserError as error:
        return Record(folder, settings, RunState.DAMAGED, message=str(error), label=label)
    progress = read_progress(folder)
    state, message, diverged = RunState.STOPPED, "", False
    try:
        ended = read_divergence(folder)
    except UserError as error:
        return Record(folder, settings, RunState.DAMAGED, message=str(error), label=label)
    if is_locked(folder):
        state = RunState.RUNNING
    elif ended is not None:
        state, message, diverged = RunState.FAILED, ended.message, True
        at = RunProgress(ended.iteration, settings.iterations, 0.0, 0.0)
        progress = replace(progress or at, iteration=ended.iteration)
    elif (folder / FAILURE).exists():
        state = RunState.FAILED
        message, diverged = _read_failure(folder / FAILURE)
    return Record(folder, settings, state, None, progress, message, label, diverged, metrics)


def settings_of(record: Record) -> Settings:
    """The settings of a run that is not damaged."""
    assert record.settings is not None  # only a damaged run has none
    return record.settings


def result_of(record: Record) -> dict[str, Any]:
    """The result of a run that is done."""
    assert record.result is not None  # that is what done means
    return record.result


# --- what makes runs comparable -------------------------------------------------------------------


def label_of(settings: Settings) -> str:
    """The name under which runs may share a table, apart from their dataset.

    The protocol, and in parentheses every setting in which the run leaves it, or in which its
    network is not the one that its depth names: `quick (iterations=5, lr=0.05)`. A protocol that
    is not shipped has the first digits of a hash over its values instead, `mine (3f09c2)`, since
    nothing says what its name stands for.
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
    """The settings in which the network is not the one that the CIFAR family has at this depth.

    Where basic units and bottlenecks both fit a depth, the unit is listed: nothing else says it.
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
    """Whether a run is the paper's in protocol and network, so that its figures may be compared."""
    return (
        settings.protocol == "paper"
        and not deviations(settings)
        and not network_deviations(settings)
    )


def shown(value: Any) -> str:
    """A setting's value as `--set` takes it."""
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
    """Run directories at or below `folder`, each with the names inside.

    `seen` holds (device, inode) of what was visited.

    Links are followed, and a loop ends at the first folder that was seen before.
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
        except OSError:  # gone meanwhile, or not ours to read
            continue
        waiting.extend(here / name for name in sorted(below, reverse=True))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False for a link that leads to itself, too."""
    try:
        return entry.is_dir()
    except OSError:
        return False


# --- reading one run ------------------------------------------------------------------------------

_NUMBER = (int, float)
_RESULT_TYPES: dict[str, Any] = {
    "variant": (str,), "depth": (int,), "seed": (int,), "protocol": (str,), "dataset": (str,),
    "iterations": (int,), "parameters": (int,), "test_error": _NUMBER,
    "best_test_error": _NUMBER, "train_loss": _NUMBER, "train_error": _NUMBER,
    "seconds": _NUMBER, "images_per_second": _NUMBER, "device": (str,), "precision": (str,),
    "config_hash": (str,), "commit": (str, type(None)),
}  # fmt: skip
_PERCENT = ("test_error", "best_test_error", "train_error", "holdout_error")
_AS_CONFIGURED = ("variant", "depth", "seed", "protocol", "dataset", "iterations")


def _checked(result: dict[str, Any], settings: Settings, folder: Path) -> dict[str, Any]:
    """The result, if it is sound and that of these settings.

    Raises:
        UserError: what is wrong with it.
    """
    path = folder / RESULT
    _sound(result, path)
    for key in _AS_CONFIGURED:
        if result[key] != (asked := getattr(settings, key)):
            raise UserError(f"{path}: '{key}' is {result[key]}, but {CONFIG} says {asked}.")
    if result["config_hash"] != settings.hash:
        raise UserError(
            f"{path}: 'config_hash' is not that of {CONFIG}, so the result is of other settings."
        )
    return result


def _sound(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """The result, if it is whole and made of numbers.

    Raises:
        UserError: what is wrong with it.
    """
    if (written := result.get("format", NOTE_FORMAT)) != NOTE_FORMAT:
        raise UserError(
            f"{path}: 'format' is {written!r}; this version of resvar reads {NOTE_FORMAT}."
        )
    types = _RESULT_TYPES | ({"holdout_error": _NUMBER} if "holdout_error" in result else {})
    for key, kinds in types.items():
        if key not in result:
            raise UserError(f"{path}: '{key}' is missing.")
        value: Any = result[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"{path}: '{key}' is {value!r}, which is of the wrong type.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}: '{key}' is {value}, which is no finite number.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{path}: '{key}' is far too large a number.")
        if key in _PERCENT and not 0 <= value <= 100:
            raise UserError(f"{path}: '{key}' is {value}, which is no percentage.")
    return result


def _read_failure(path: Path) -> tuple[str, bool]:
    """Message of `failure.json`, and whether the run diverged."""
    try:
        note: Mapping[str, Any] = read_json(path)
    except UserError as error:
        return str(error), False
    return str(note.get("message", "no reason is given")), note.get("diverged") is True
