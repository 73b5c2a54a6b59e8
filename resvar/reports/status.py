"""`resvar status`: what is done, running, waiting or failed, and when it should end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.table import Table

from resvar.console import console_for_output, duration
from resvar.errors import UserError
from resvar.reports.records import Record, State, read_records
from resvar.sweeps.grid import manifests


def print_status(folder: Path) -> None:
    """Print the standing of every run below a folder, and of those that a sweep still has to start.

    Raises:
        UserError: the folder does not exist, or neither a run nor a sweep was ever started there.
    """
    records = standing(folder)
    console = console_for_output()
    open_runs = [record for record in records if record.state is not State.DONE]
    if open_runs:
        console.print(_table(open_runs, folder))
    console.print(_summary(records), highlight=False, soft_wrap=True)


def standing(folder: Path) -> list[Record]:
    """The records of a folder's runs, and one in state waiting for each that a sweep has planned.

    Raises:
        UserError: nothing was ever started there.
    """
    planned = [folder / run for runs in manifests(folder).values() for run in runs]
    try:
        records = read_records([folder])
    except UserError:
        if not planned:
            raise
        records = []
    known = {record.folder for record in records}
    waiting = [run for run in dict.fromkeys(planned) if run not in known]
    return records + [Record(run, None, State.WAITING) for run in waiting]


def seconds_left(records: Sequence[Record]) -> float | None:
    """Seconds until all are done, at the pace of those at work; None where nothing tells.

    A waiting run is taken to last as long as the finished and running ones do on average.
    """
    running = [record for record in records if record.state is State.RUNNING]
    lengths = [float(r.result["seconds"]) for r in records if r.result is not None]
    lengths += [length for r in running if (length := _length(r)) is not None]
    if not lengths:
        return None
    left = 0.0
    for record in records:
        if record.diverged:
            continue  # that is how it ended
        if record.state in (State.RUNNING, State.STOPPED, State.FAILED, State.WAITING):
            length = _length(record) or fmean(lengths)
            share = record.progress.share if record.progress is not None else 0.0
            left += length * (1 - share)
    return left / max(1, len(running))


def _length(record: Record) -> float | None:
    """Seconds that a whole run takes at the pace it has now, evaluations included."""
    progress, settings = record.progress, record.settings
    if progress is None or settings is None or not progress.images_per_second:
        return None
    return settings.work / progress.images_per_second


def _table(records: Sequence[Record], folder: Path) -> Table:
    """The runs that are not done; of those that wait only the first few."""
    table = Table("run", "state", "iteration", "images/s", "left", "", box=None, pad_edge=False)
    shown = [record for record in records if record.state is not State.WAITING]
    waiting = [record for record in records if record.state is State.WAITING]
    for record in shown + waiting[:5]:
        progress = record.progress
        length = _length(record)
        running = record.state is State.RUNNING
        table.add_row(
            str(record.folder.relative_to(folder)),
            _word(record),
            f"{progress.iteration:,} / {progress.iterations:,}" if progress else "",
            f"{progress.images_per_second:,.0f}" if progress and running else "",
            duration(length * (1 - progress.share)) if progress and length and running else "",
            record.message,
        )
    if len(waiting) > 5:
        table.add_row(f"… and {len(waiting) - 5} more", "waiting", "", "", "", "")
    return table


def _summary(records: Sequence[Record]) -> str:
    counts = Counter(record.state for record in records)
    words = ", ".join(f"{count} {word}" for word, count in _counted(records))
    text = f"{len(records)} runs: {words}."
    left = seconds_left(records)
    if counts[State.RUNNING] and left is not None:
        end = time.strftime("%a %H:%M", time.localtime(time.time() + left))
        return f"{text} It should end in {duration(left)}, {end}."
    if counts[State.DONE] + sum(record.diverged for record in records) == len(records):
        return text
    work = f" About {duration(left)} of work is left." if left is not None else ""
    return f"{text} Nothing is running; type the same command again to go on.{work}"


def _word(record: Record) -> str:
    return "diverged" if record.diverged else record.state.value


def _counted(records: Sequence[Record]) -> list[tuple[str, int]]:
    """How many records a word is true of, in the order of the states; diverged ones behind."""
    counts = Counter(_word(record) for record in records)
    words = [state.value for state in State] + ["diverged"]
    return [(word, counts[word]) for word in words if counts[word]]
