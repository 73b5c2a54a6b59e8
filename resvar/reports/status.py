"""`resvar status`: which runs are done, running, queued, waiting or failed, and the time left."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from resvar.condition import require_usable, run_stamp
from resvar.config import CIFAR_TEST_IMAGES
from resvar.console import console_for_output, duration, moment
from resvar.errors import Stopped, UserError
from resvar.reports.queue import with_queue
from resvar.reports.records import (
    UNREAD,
    Record,
    RunState,
    glance,
    read_record,
    record_without_settings,
)
from resvar.sweeps.grid import manifests
from resvar.sweeps.submission import SUBMISSIONS

UNDER_WAY = (RunState.RUNNING, RunState.QUEUED, RunState.REQUEUED)
"""A run in one of these states needs nobody: it continues by itself."""

MOST = 100
MOST_SHOWN = {RunState.QUEUED.value: 5, RunState.WAITING.value: 5}
"""Lines of the table for runs in one of these states, which come last; `MOST` for the others."""


def print_status(folder: Path) -> None:
    """Print the state of every run below a folder, and of those that a sweep has yet to start.

    Raises:
        UserError: the folder does not exist, or contains neither a run nor a sweep; or the list of
            a sweep is damaged, after the runs that are there were printed.
    """
    try:
        found = overview(folder)
    except UserError:
        with suppress(UserError):
            _print(glance([folder]), "", folder, console_for_output())
        raise
    _print(*found, folder, console_for_output())


def watch_status(folder: Path, interval: float | None) -> None:
    """Show the state and refresh it until no run is running, stopped or waiting.

    A terminal shows one refreshed table; elsewhere it is printed again when a run's state changes.

    Args:
        interval: seconds between two looks; None: 2, or 10 if Slurm is asked.

    Raises:
        UserError: there is neither a run nor a sweep, or the interval is not above 0.
        Stopped: Ctrl-C or SIGTERM.
    """
    console = console_for_output()
    if not console.is_terminal:
        _watch_in_lines(folder, _pause(folder) if interval is None else interval, console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def look() -> bool:
            records, unknown = overview(folder)
            open_runs = [record for record in records if record.state is not RunState.DONE]
            lines = [_summary(records), *([unknown] if unknown else [])]
            live.update(Group(_status_table(open_runs, folder), *lines), refresh=True)
            return unsettled(records)

        watch(look, _pause(folder) if interval is None else interval)
    print_status(folder)


def _watch_in_lines(folder: Path, interval: float, console: Console) -> None:
    known: Counter[RunState] = Counter()

    def look() -> bool:
        records, unknown = overview(folder)
        counts = Counter(record.state for record in records)
        if counts != known:
            known.clear()
            known.update(counts)
            _print(records, unknown, folder, console)
        return unsettled(records)

    watch(look, interval)


def _pause(folder: Path) -> float:
    """Seconds between two looks; more if each one queries a cluster's controller."""
    return 10.0 if (folder / SUBMISSIONS).is_dir() else 2.0


def _print(records: Sequence[Record], unknown: str, folder: Path, console: Console) -> None:
    open_runs = [record for record in records if record.state is not RunState.DONE]
    if open_runs:
        console.print(_status_table(open_runs, folder))
    console.print(_summary(records), highlight=False, soft_wrap=True)
    if unknown:
        console.print(unknown, highlight=False, soft_wrap=True)


def watch(look: Callable[[], bool], interval: float) -> None:
    """Call `look` every `interval` seconds until it returns False.

    Raises:
        UserError: the interval is not above 0.
        Stopped: Ctrl-C or SIGTERM.
    """
    if not 0 < interval < math.inf:
        raise UserError(f"--interval {interval:g}: it must be a number of seconds above 0.")
    try:
        while look():
            time.sleep(interval)
    except KeyboardInterrupt:
        raise Stopped("no longer watching; the runs themselves continue.") from None


def unsettled(records: Sequence[Record]) -> bool:
    """Whether a run may still change: running, queued, waiting or stopped."""
    return any(r.state in (*UNDER_WAY, RunState.STOPPED, RunState.WAITING) for r in records)


def overview(folder: Path) -> tuple[list[Record], str]:
    """The records of `standing` with their state in Slurm, and a sentence if Slurm does not answer.

    Raises:
        UserError: there is neither a run nor a sweep.
    """
    return with_queue(folder, standing(folder))


def standing(folder: Path) -> list[Record]:
    """The records of a folder's runs, and a waiting one for each run planned by a sweep.

    Raises:
        UserError: there is neither a run nor a sweep.
    """
    try:
        records = glance([folder])
    except UserError:
        if not (waiting := planned_runs(folder, [])):
            raise
        return waiting
    return records + planned_runs(folder, records)


def planned_runs(folder: Path, known: Sequence[Record]) -> list[Record]:
    """The records of the runs planned by sweeps in `folder` that are not among the known ones.

    Raises:
        UserError: the manifest of a sweep is damaged.
    """
    begun = {record.folder for record in known}
    planned = [folder / run for runs in manifests(folder).values() for run in runs]
    found = [_planned_record(run) for run in dict.fromkeys(planned) if run not in begun]
    if any(record.settings is not None for record in found):  # a link leads there, or just begun
        seen = {record.folder.resolve() for record in known}
        found = [r for r in found if r.settings is None or r.folder.resolve() not in seen]
    return found


def _planned_record(run: Path) -> Record:
    """The record of a planned run that the search has not met."""
    if any(run_stamp(run)):
        return read_record(run, full=False)
    if (record := record_without_settings(run)) is not None:
        return record
    try:
        require_usable(run)
    except UserError as error:  # its sweep fails it for this reason
        return Record(run, None, RunState.FAILED, message=str(error))
    return Record(run, None, RunState.WAITING)


def seconds_left(records: Sequence[Record]) -> float | None:
    """Seconds until all are done, at the speed of the running ones; None if unknown.

    A waiting run is assumed to take as long as the finished and running ones on average.
    """
    running = [record for record in records if record.state is RunState.RUNNING]
    lengths = [float(r.result["seconds"]) for r in records if r.result is not None]
    lengths += [length for r in running if (length := _length(r)) is not None]
    if not lengths:
        return None
    left = 0.0
    for record in records:
        if not record.diverged and record.state not in (RunState.DONE, *UNREAD):
            length = _length(record) or fmean(lengths)
            share = record.progress.share if record.progress is not None else 0.0
            left += length * (1 - share)
    return left / max(1, len(running))


def _length(record: Record) -> float | None:
    """Seconds that the whole run takes at its present speed, evaluations included."""
    progress, settings = record.progress, record.settings
    if progress is None or settings is None or not progress.images_per_second:
        return None
    test_images = CIFAR_TEST_IMAGES if progress.test_images is None else progress.test_images
    return settings.work(test_images) / progress.images_per_second


def _status_table(records: Sequence[Record], folder: Path) -> Table:
    """The unfinished runs; of many in one state only the first ones."""
    table = Table("run", "state", "iteration", "images/s", "left", "", box=None, pad_edge=False)
    counts: Counter[str] = Counter()
    for record in sorted(records, key=lambda record: record.state.value in MOST_SHOWN):
        counts[word := record.word] += 1
        if counts[word] > MOST_SHOWN.get(word, MOST):
            continue
        progress = record.progress
        length = _length(record)
        running = record.state is RunState.RUNNING
        table.add_row(
            str(record.folder.relative_to(folder)),
            word,
            f"{progress.iteration:,} / {progress.iterations:,}" if progress else "",
            f"{progress.images_per_second:,.0f}" if progress and running else "",
            duration(length * (1 - progress.share)) if progress and length and running else "",
            record.message,
        )
    for word, count in counts.items():
        if (more := count - MOST_SHOWN.get(word, MOST)) > 0:
            table.add_row(f"… and {more} more", word, "", "", "", "")
    return table


def _summary(records: Sequence[Record]) -> str:
    counts = Counter(record.word for record in records)
    words = ", ".join(f"{counts[word]} {word}" for word in (*RunState, "diverged") if counts[word])
    text = f"{len(records)} {'run' if len(records) == 1 else 'runs'}: {words}."
    left = seconds_left(records)
    if counts[RunState.RUNNING] and left is not None:
        return f"{text} It should end in {duration(left)}, {moment(left)}."
    if sum(counts[word] for word in (RunState.DONE, "diverged", *UNREAD)) == len(records):
        return text
    work = f" About {duration(left)} of work is left." if left is not None else ""
    if counts[RunState.QUEUED] or counts[RunState.REQUEUED]:
        return f"{text} Slurm starts what is queued.{work}"
    if counts[RunState.RUNNING]:
        return text
    return f"{text} Nothing is running; rerun the same command to resume.{work}"
