"""Progress of a download or extraction, on stderr. No torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def show_progress(
    title: str, total: int | None, start: int, show: bool, lines: bool = True
) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the number of bytes done and shows progress on stderr.

    Below the title, a terminal shows a bar; a log, with `lines`, gets a line per tenth.
    """
    if not show:
        yield lambda _done: None
        return
    from resvar.console import console_for_progress

    console = console_for_progress(sys.stderr)
    console.print(title, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _tenths(console, total, start) if lines else lambda _done: None
        return
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task(title.split()[0], total=total, completed=start)
        yield lambda done: bar.update(task, completed=done)


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
