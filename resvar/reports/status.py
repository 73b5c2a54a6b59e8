"""`resvar status`: which runs are done, running, queued, waiting or failed, and the time left."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median

from rich.console import Console, Group
from rich.live import Live

from resvar.condition import require_usable, run_stamp
from resvar.console import console_for_output, duration, moment, per_second, pluralize
from resvar.errors import Stopped, UserError
from resvar.reports.queue import with_queue
from resvar.reports.records import (
    UNREAD,
    Record,
    RunState,
    read_record,
    record_without_settings,
    result_of,
)
from resvar.reports.search import SEED_FOLDER, glance
from resvar.reports.tables import reason
from resvar.rundir import CHECKPOINT, RunProgress
from resvar.settings import CIFAR_TEST_IMAGES
from resvar.sweeps.grid import manifests
from resvar.sweeps.submission import SUBMISSIONS
from resvar.table import (
    Filled,
    Prose,
    Table,
    TableCell,
    TerminalTable,
    Value,
    filled,
    left,
    print_table,
    right,
)

UNDER_WAY = (RunState.RUNNING, RunState.QUEUED, RunState.REQUEUED)
"""A run in one of these states continues by itself."""

TROUBLED = (RunState.FAILED, *UNREAD)
"""The states whose reason is a sentence; it is shown below the table."""

MOST = 40
"""Finished runs with a row each; more are summarised by cell. Also the rows for another state."""

MOST_SHOWN = {RunState.QUEUED.value: 5, RunState.WAITING.value: 5}
"""Rows for runs in one of these states, which come last; `MOST` for the others."""

NAMED = 3
"""Runs that a note names; it counts the others that failed for the same reason."""


def print_status(folder: Path) -> None:
    """Print the state of every run below a folder, and of runs that a sweep has yet to start.

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
        interval: seconds between refreshes; None: 2, or 10 if Slurm is queried.

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
            tables = [TerminalTable(_status_table(open_runs, folder))] if open_runs else []
            live.update(Group(*tables, Prose(_summary(records)), Prose(unknown)), refresh=True)
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
    """Seconds between refreshes; more if each one queries a cluster's controller."""
    return 10.0 if (folder / SUBMISSIONS).is_dir() else 2.0


def _print(records: Sequence[Record], unknown: str, folder: Path, console: Console) -> None:
    for table in _tables(records, folder):
        print_table(table, console)
        console.print()
    console.print(Prose(_summary(records)), crop=False)
    if unknown:
        console.print(Prose(unknown), crop=False)


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
        raise Stopped("stopped watching; the runs continue.") from None


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
    if any(record.settings is not None for record in found):  # reached by a link, or just begun
        seen = {record.folder.resolve() for record in known}
        found = [r for r in found if r.settings is None or r.folder.resolve() not in seen]
    return found


def _planned_record(run: Path) -> Record:
    """The record of a planned run that the search did not find."""
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
    open_runs = [r for r in records if not r.diverged and r.state not in (RunState.DONE, *UNREAD)]
    rests = [_rest(record) for record in open_runs]
    if None in rests and not lengths:
        return None
    left = sum(fmean(lengths) if rest is None else rest for rest in rests)
    return left / max(1, len(running))


def _length(record: Record) -> float | None:
    """Seconds that the whole run takes at its present speed, evaluations included."""
    progress, settings = record.progress, record.settings
    if progress is None or settings is None or not progress.images_per_second:
        return None
    return settings.work(_eval_images(progress)) / progress.images_per_second


def _rest(record: Record) -> float | None:
    """Seconds left of a started run; while it is running, the same as on its own bar."""
    progress, settings = record.progress, record.settings
    if progress is None or settings is None:
        return None
    if record.state is RunState.RUNNING and progress.seconds_left is not None:
        return progress.seconds_left
    if not progress.images_per_second:
        return None
    return settings.work(_eval_images(progress), progress.iteration) / progress.images_per_second


def _eval_images(progress: RunProgress) -> int:
    return CIFAR_TEST_IMAGES if progress.test_images is None else progress.test_images


# --- tables ---------------------------------------------------------------------------------------


def _tables(records: Sequence[Record], folder: Path) -> list[Table]:
    """A row for each run; of many finished ones a row for each cell."""
    done = [record for record in records if record.state is RunState.DONE]
    if len(done) <= MOST:
        return [_status_table(records, folder)] if records else []
    still_open = [record for record in records if record.state is not RunState.DONE]
    return [_cell_table(done, folder), *([_status_table(still_open, folder)] if still_open else [])]


def _status_table(records: Sequence[Record], folder: Path) -> Table:
    """The runs; of many in one state only the first ones. Columns without a value are left out."""
    shown: list[Record | tuple[str, str]] = []
    counts: Counter[str] = Counter()
    for record in sorted(records, key=lambda record: record.state.value in MOST_SHOWN):
        counts[word := record.word] += 1
        if counts[word] <= MOST_SHOWN.get(word, MOST):
            shown.append(record)
    for word, count in counts.items():
        if (more := count - MOST_SHOWN.get(word, MOST)) > 0:
            shown.append((f"… and {more:,} more", word))

    def column(value: Callable[[Record], Value]) -> Callable[[Record | tuple[str, str]], Value]:
        return lambda item: value(item) if isinstance(item, Record) else TableCell("")

    columns = (
        left("run", lambda r: r[0] if isinstance(r, tuple) else _name(r, folder), wrap=20),
        left("state", lambda r: r[1] if isinstance(r, tuple) else r.word),
        right("iteration", column(_progress_text), drop=1),
        right("test error %", column(_test_error), ".2f"),
        right("time", column(_spent), drop=2),
        right("images/s", column(_speed), drop=3),
        right("left", column(_left)),
        left("", column(lambda r: r.message if r.state not in TROUBLED else None), wrap=20),
    )
    kept = [column for column in columns if any(_has_value(column, r) for r in records)]
    return filled("", kept, shown, _reasons(records, folder))


def _reasons(records: Sequence[Record], folder: Path) -> Iterator[str]:
    """A note for each reason for which runs failed or cannot be read."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.state in TROUBLED:
            found.setdefault((record.word, reason(record)), []).append(_name(record, folder))
    for (word, why), names in list(found.items())[:MOST]:
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        yield f"{', '.join(names[:NAMED])}{more} {word}: {why}"
    if len(found) > MOST:
        yield f"… and {len(found) - MOST:,} more reasons."


def _has_value(column: Filled, record: Record) -> bool:
    return column.value(record) not in (None, "")


def _cell_table(done: Sequence[Record], folder: Path) -> Table:
    """The finished runs of each cell: how many, and their test errors."""
    cells: dict[str, list[Record]] = {}
    for record in done:
        name = _name(record, folder)
        above, _, last = name.rpartition("/")
        cell = above if above and SEED_FOLDER.fullmatch(last) else name
        cells.setdefault(cell, []).append(record)

    def errors(cell: str) -> list[float]:
        return [result_of(record)["test_error"] for record in cells[cell]]

    def seconds(cell: str) -> float:
        return fmean(result_of(record)["seconds"] for record in cells[cell])

    columns = (
        left("cell", str, wrap=20),
        right("done", lambda c: len(cells[c]), ",d"),
        right("test error %,\nmedian", lambda c: median(errors(c)), ".2f"),
        right("lowest to\nhighest", lambda c: "{:.2f} to {:.2f}".format(*_ends(errors(c))), drop=1),
        right("time\na run", lambda c: duration(seconds(c)), drop=2),
    )
    names = list(cells)
    more = len(names) - MOST
    notes = [f"… and {more:,} more cells; `resvar report` has all."] if more > 0 else []
    return filled("", columns, names[:MOST], notes)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _name(record: Record, folder: Path) -> str:
    """The run's folder below `folder`; of `folder` itself its own name."""
    name = record.folder.relative_to(folder).as_posix()
    return name if name != "." else record.folder.resolve().name


def _progress_text(record: Record) -> str | None:
    if record.result is not None:
        return f"{record.result['iterations']:,}"
    progress = record.progress
    return f"{progress.iteration:,} / {progress.iterations:,}" if progress is not None else None


def _test_error(record: Record) -> float | None:
    return record.result["test_error"] if record.result is not None else None


def _spent(record: Record) -> str | None:
    if record.result is not None:
        return duration(record.result["seconds"])
    return duration(record.progress.seconds) if record.progress is not None else None


def _speed(record: Record) -> str | None:
    running = record.state is RunState.RUNNING and record.progress is not None
    speed = record.progress.images_per_second if running and record.progress else 0.0
    return per_second(speed) if speed else None


def _left(record: Record) -> str | None:
    rest = _rest(record) if record.state is RunState.RUNNING else None
    return duration(rest) if rest is not None else None


def _summary(records: Sequence[Record]) -> str:
    counts = Counter(record.word for record in records)
    found = [word for word in (*RunState, "diverged") if counts[word]]
    words = ", ".join(f"{counts[word]:,} {word}" for word in found)
    text = f"{pluralize(len(records), 'run')}: {words}."
    left = seconds_left(records)
    if counts[RunState.RUNNING] and left is not None:
        return f"{text} It should end in {duration(left)}, {moment(left)}."
    if sum(counts[word] for word in (RunState.DONE, "diverged", *UNREAD)) == len(records):
        return text
    work = f" About {duration(left)} of work is left." if left is not None else ""
    if counts[RunState.QUEUED] or counts[RunState.REQUEUED]:
        return f"{text} Slurm starts the queued runs.{work}"
    if counts[RunState.RUNNING]:
        return text
    unfinished = [record for record in records if record.state is not RunState.DONE]
    verb = "resume" if any((r.folder / CHECKPOINT).exists() for r in unfinished) else "start"
    return f"{text} Nothing is running; rerun the command to {verb}.{work}"
