"""The runs at or below some folders, found by their files, in the order of a report."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from resvar.errors import UnreadableError, UserError
from resvar.models.ordering import in_paper_order
from resvar.reports.records import (
    UNREAD,
    Record,
    RunState,
    begun_record,
    record_without_settings,
)
from resvar.rundir import CONFIG, FAILURE, LOCK, RESULT

SEED_FOLDER = re.compile("seed-[0-9]+")
"""The default name of a run directory; also a file of this name counts as a run."""


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
    return begun_record(folder, full) or record_without_settings(folder)


def _may_hold_runs(entry: os.DirEntry[str]) -> bool:
    try:
        return SEED_FOLDER.fullmatch(entry.name) is not None or entry.is_dir()
    except PermissionError:  # of what a link leads to
        return True
    except OSError:  # a link that leads to itself
        return False
