"""`resvar report`: read the runs, say what they say, to the screen or into a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from resvar.console import console_for_output, deliver, plain
from resvar.errors import Stopped, UserError
from resvar.reports.findings import Report, build
from resvar.reports.records import Record, read_records
from resvar.reports.render import print_report, render
from resvar.reports.status import planned_runs, unsettled, watch


def write_report(
    folders: Sequence[Path], format: str, out: Path | None, figures: Path | None = None
) -> None:
    """Report on every run at or below `folders`.

    Args:
        format: `table` (for the terminal), `markdown`, `csv`, `latex`, `json` or `html`.
        out: a file to write instead of the screen.
        figures: a folder that gets the report's figures.

    Raises:
        UserError: there is no run, two runs contradict each other, or `out` or `figures` cannot
            be written.
    """
    if figures is not None:
        _write_figures(build(read_records(folders)), figures)
    if format == "html":
        text, _ = _page(folders, out)
        deliver(text, out)
        return
    report = build(read_records(folders))
    if out is None and format == "table":
        print_report(report, console_for_output())
        return
    deliver(render(report, format), out)


def _write_figures(report: Report, folder: Path) -> None:
    """A line on stderr per figure, so that the report itself can go down a pipe."""
    from resvar.reports.figures import figures, left_out  # Matplotlib is for figures alone
    from resvar.reports.plotting import write_pictures

    for _, picture in figures(report):
        paths = write_pictures([picture], folder, ("svg", "pdf", "png"))
        print(f"Wrote {', '.join(str(path) for path in paths)}.", file=sys.stderr, flush=True)
    for sentence in left_out(report):
        print(f"Left out: {plain(sentence)}", file=sys.stderr, flush=True)


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
    from resvar.probes.section import sections
    from resvar.reports.gallery import gallery
    from resvar.reports.html import Page, render_html  # Jinja is for this format alone

    records = read_records(folders)
    report = build(records)
    waiting = _waiting(folders, records)
    # A page that is renewed takes no time for figures from the runs at work; its last one has them.
    drawn = gallery(report) if refresh is None else ()
    page = Page(
        out=out,
        folders=tuple(folders),
        waiting=len(waiting),
        sections=(*drawn, *sections(records)),
        refresh=refresh,
    )
    return render_html(report, page), unsettled([*records, *waiting])


def _waiting(folders: Sequence[Path], records: Sequence[Record]) -> list[Record]:
    """The runs that sweeps in these folders have planned and not begun."""
    found: dict[Path, Record] = {}
    for folder in folders:
        with suppress(UserError):  # a damaged list of a sweep says nothing about the runs
            found |= {record.folder: record for record in planned_runs(folder, records)}
    return list(found.values())
