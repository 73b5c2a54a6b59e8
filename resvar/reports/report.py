"""`resvar report`: read the runs, say what they say, to the screen or into a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resvar.console import console_for_output, deliver
from resvar.reports.findings import build
from resvar.reports.records import read_records
from resvar.reports.render import print_report, render


def write_report(folders: Sequence[Path], format: str, out: Path | None) -> None:
    """Report on every run at or below `folders`.

    Args:
        format: `table` (for the terminal), `markdown`, `csv`, `latex` or `json`.
        out: a file to write instead of the screen.

    Raises:
        UserError: there is no run, two runs contradict each other, or `out` cannot be written.
    """
    report = build(read_records(folders))
    if out is None and format == "table":
        print_report(report, console_for_output())
        return
    deliver(render(report, format), out)
