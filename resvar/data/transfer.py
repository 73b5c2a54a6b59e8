"""Progress of a download or extraction, on stderr. No torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDEST_BAR = 40
"""Columns."""

FIGURES = len("170.5 of 170.5 MB, 100.5 MB/s, 59:59 min left") + 1
"""Columns."""


@contextlib.contextmanager
def show_progress(
    title: str, total: int | None, start: int, show: bool, lines: bool = True
) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the number of bytes done and shows progress on stderr.

    Below the title, if any, a terminal shows a bar; a log, with `lines`, gets a line per tenth.
    """
    if not show:
        yield lambda _done: None
        return
    if title:
        show_line(title)
    console = _stderr_console()
    if console.is_terminal:
        with _bar(console, total, start) as tell:
            yield tell
    else:
        yield _tenths(console, total, start) if lines else lambda _done: None


def show_line(text: str) -> None:
    """Print a line on stderr; a terminal wraps it between words."""
    console = _stderr_console()
    console.print(text, highlight=False, soft_wrap=not console.is_terminal)


def _stderr_console() -> Console:
    from resvar.console import console_for_progress

    return console_for_progress(sys.stderr)


@contextlib.contextmanager
def _bar(console: Console, total: int | None, start: int) -> Iterator[Callable[[int], None]]:
    from rich import progress

    from resvar.console import duration

    width = max(4, min(WIDEST_BAR, console.width - FIGURES))
    columns = progress.BarColumn(width), progress.TextColumn("{task.fields[figures]}", markup=False)
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=start, figures="")

        def tell(done: int) -> None:
            bar.update(task, completed=done)
            now = bar.tasks[0]
            figures = megabytes(done)
            if total is not None:
                figures = f"{figures.removesuffix(' MB')} of {megabytes(total)}"
            if now.speed:
                figures += f", {speed(now.speed)}"
                if total is not None:
                    figures += f", {duration((total - done) / now.speed)} left"
            bar.update(task, figures=figures)

        yield tell


def _tenths(console: Console, total: int | None, start: int) -> Callable[[int], None]:
    """A function that prints a line per tenth, or per 20 MB where the total is unknown."""
    from resvar.console import percent

    step = max(total / 10, 1.0) if total is not None else 20e6
    printed = int(start / step)

    def tell(done: int) -> None:
        nonlocal printed
        if int(done / step) > printed:
            printed = int(done / step)
            part = f"{percent(100 * done / total, 0)} of " if total else ""
            text = part + megabytes(total or done)
            console.print(f"  {text}", highlight=False)

    return tell


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def speed(rate: float) -> str:
    """`1.2 MB/s`, `70 kB/s`, `20 bytes/s`, of a rate in bytes per second."""
    if rate >= 1e6:
        return f"{rate / 1e6:,.1f} MB/s"
    return f"{rate / 1e3:.0f} kB/s" if rate >= 1e3 else f"{rate:.0f} bytes/s"
