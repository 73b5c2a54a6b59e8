"""What the commands share when they speak to a person. No torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from resvar.errors import UserError
from resvar.files import write_text


def duration(seconds: float | None) -> str:
    """`48 s`, `6:05 min`, `3:20 h`, `2 d 4 h`; `?` for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d} h"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def console_for_output(**options: Any) -> Console:
    """A console on stdout; wide where stdout is no terminal, so that a log's lines stay whole."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, **options)


def deliver(text: str, out: Path | None, quiet: bool = False) -> None:
    """Write a command's text to `out`, as a whole or not at all, or to the screen.

    Args:
        quiet: do not say that `out` was written.

    Raises:
        UserError: `out` cannot be written.
    """
    if out is None:
        sys.stdout.write(text)
        return
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}).") from error
    if not quiet:
        print(f"Wrote {out}")
