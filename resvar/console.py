"""Text for people: durations, plurals, the console, and output to a file. No torch."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from resvar.files import write_output

LONGEST_DURATION = 1e11
"""Seconds, three thousand years. A longer one was not measured."""


def duration(seconds: float | None) -> str:
    """`48 s`, `6:05 min`, `3:20 h`, `2 d 4 h`; `?` for None, infinity and absurd lengths."""
    if seconds is None or not math.isfinite(seconds) or seconds > LONGEST_DURATION:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d} h"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def pluralize(count: int, noun: str) -> str:
    """`1 run`, `2 runs`, `0 runs`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def moment(seconds: float) -> str:
    """Weekday and local time, `seconds` from now: `Tue 16:30`."""
    try:
        return time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
    except (OverflowError, ValueError, OSError):
        return "beyond any calendar"


def plain(text: str) -> str:
    """`text` with line breaks, control characters and lone surrogates escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def console_for_output(**options: Any) -> Console:
    """A console on stdout, 200 columns wide unless that is a terminal: a log keeps its lines whole.

    Markup and emoji codes are off: a folder may be called `[/x]`.
    """
    width = None if sys.stdout.isatty() else 200
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, **options)


def print_line(text: str) -> None:
    """Print a text at once, also where stdout is a file or a pipe, and as one line there."""
    print(text, flush=True)


def log(text: str) -> None:
    """Print a line on stderr: stdout is for the result of a command."""
    print(text, file=sys.stderr, flush=True)


def deliver(text: str, out: Path | None, quiet: bool = False) -> None:
    """Write the text of a command to the screen, or atomically to the file `out`.

    Args:
        quiet: do not print that `out` was written.

    Raises:
        UserError: `out` cannot be written.
    """
    if out is None:
        sys.stdout.write(text)
        return
    write_output(out, text.encode(errors="backslashreplace"))
    if not quiet:
        print(f"Wrote {out}")
