"""`resvar report`: read the runs, say what they say, to the screen or into a file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from resvar.console import console_for_output, deliver
from resvar.errors import Stopped, UserError
from resvar.reports.findings import build
from resvar.reports.records import Record, read_records
from resvar.reports.render import print_report, render
from resvar.reports.status import planned_runs, unsettled, watch


def write_report(folders: Sequence[Path], format: str, out: Path | None) -> None:
    """Report on every run at or below `folders`.

    Args:
        format: `table` (for the terminal), `markdown`, `csv`, `latex`, `json` or `html`.
        out: a file to write instead of the screen.

    Raises:
        UserError: there is no run, two runs contradict each other, or `out` cannot be written.
    """
    if format == "html":
        text, _ = _page(folders, out)
        deliver(text, out)
        return
    report = build(read_records(folders))
    if out is None and format == "table":
        print_report(report, console_for_output())
        return
    deliver(render(report, format), out)


def watch_report(
    folders: Sequence[Path], format: str, out: Path | None, interval: float | None
) -> None:
    """Write the page again and again while runs are at work; the page loads itself again too.

    Ends when no run is running, stopped or waiting. The last page, also after Ctrl-C, stays still.

    Args:
        interval: seconds between two looks; None: 5.

    Raises:
        UserError: the format is not `html`, there is no `out`, or what `write_report` refuses.
        Stopped: Ctrl-C.
    """
    if format != "html" or out is None:
        raise UserError("--watch renews a page: it needs --format html and --out FILE.html.")
    seconds = 5.0 if interval is None else interval
    shown = ""

    def renew() -> bool:
        nonlocal shown
        text, more = _page(folders, out, seconds)
        if not more:
            return False
        if text != shown:
            deliver(text, out, quiet=bool(shown))
            if not shown:
                print("It is renewed until every run is finished; Ctrl-C ends that.", flush=True)
            shown = text
        return True

    try:
        watch(renew, seconds)
    except Stopped:
        deliver(_page(folders, out)[0], out, quiet=True)
        raise
    deliver(_page(folders, out)[0], out)


def _page(
    folders: Sequence[Path], out: Path | None, refresh: float | None = None
) -> tuple[str, bool]:
    """The page, and whether any of its runs may still change."""
    from resvar.reports.html import Page, render_html  # Jinja is for this format alone

    records = read_records(folders)
    waiting = _waiting(folders, records)
    from resvar.probes.section import sections

    page = Page(
        out=out,
        folders=tuple(folders),
        waiting=len(waiting),
        sections=sections(records),
        refresh=refresh,
    )
    return render_html(build(records), page), unsettled([*records, *waiting])


def _waiting(folders: Sequence[Path], records: Sequence[Record]) -> list[Record]:
    """The runs that sweeps in these folders have planned and not begun."""
    found: dict[Path, Record] = {}
    for folder in folders:
        with suppress(UserError):  # a damaged list of a sweep says nothing about the runs
            found |= {record.folder: record for record in planned_runs(folder, records)}
    return list(found.values())
