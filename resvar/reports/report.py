"""The command `resvar report`: read the runs, print the report or write it to a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from resvar.console import console_for_output, deliver, log, output_format, print_line
from resvar.errors import Stopped, UserError
from resvar.reports.findings import Report, build
from resvar.reports.records import Record
from resvar.reports.render import RENDERERS, print_report, render_report, require_parts
from resvar.reports.search import read_records
from resvar.reports.status import planned_runs, unsettled, watch

if TYPE_CHECKING:  # only the page and the figures need Jinja and Matplotlib
    from resvar.reports.html import Section

    MakeSections = Callable[[Sequence[Record]], Sequence[Section]]

MOST_PICTURES = 24
"""Figures on one page, so that neither its size nor its time grows with the number of runs."""

RENEW_SECONDS = 5.0


def write_report(
    folders: Sequence[Path],
    format: str | None,
    out: Path | None,
    figures: Path | None = None,
    sections: MakeSections | None = None,
    full: bool = False,
    what: Sequence[str] = (),
) -> None:
    """Report on every run at or below `folders`.

    Args:
        format: `table` (for the terminal), `markdown`, `csv`, `latex`, `json` or `html`; None: by
            the suffix of `out`.
        out: a file to write instead of the screen.
        figures: a folder for the report's figures.
        sections: makes further sections of the HTML page from the records.
        full: print everything, not only the first screen; the other formats always do.
        what: the parts that `table`, `markdown` or `latex` contain, or the one in `csv`: `table`,
            `verdicts`, `comparisons`, `runs`. None: all of them; in `csv` the runs.

    Raises:
        UserError: there is no run, two runs contradict each other, `out` or `figures` cannot be
            written, or a part is unknown or not for this format.
    """
    format = output_format(out, format, tuple(RENDERERS))
    require_parts(format, what)
    if figures is not None:
        _write_figures(build(read_records(folders)), figures)
    if format == "html":
        deliver(_page(folders, out, sections)[0], out)
        return
    report = build(read_records(folders))
    if out is None and format == "table":
        print_report(report, console_for_output(), full, what)
    else:
        deliver(render_report(report, format, full, what), out)


def _write_figures(report: Report, folder: Path) -> None:
    """One line on stderr per figure; stdout carries the report itself."""
    from resvar.reports.figures import figures, figures_left_out
    from resvar.reports.plotting import write_pictures

    for _, picture in figures(report):
        paths = write_pictures([picture], folder, ("svg", "pdf", "png"))
        log(f"Wrote {', '.join(map(str, paths))}.")
    for sentence in figures_left_out(report):
        log(f"Left out: {sentence}")


def watch_report(
    folders: Sequence[Path],
    format: str | None,
    out: Path | None,
    interval: float | None,
    sections: MakeSections | None = None,
) -> None:
    """Rewrite the page until no run is running, stopped or waiting; the page reloads itself.

    The last page, also after Ctrl-C, does not reload.

    Args:
        interval: seconds between refreshes; None: 5.

    Raises:
        UserError: the page is not HTML, there is no `out`, or a reason of `write_report`.
        Stopped: Ctrl-C.
    """
    if out is None or output_format(out, format, tuple(RENDERERS)) != "html":
        raise UserError("--watch rewrites a page: it needs --out FILE.html.")
    seconds = RENEW_SECONDS if interval is None else interval
    written = ""

    def renew() -> bool:
        nonlocal written
        text, may_change = _page(folders, out, sections, seconds)
        if may_change and text != written:
            deliver(text, out, quiet=bool(written))
            if not written:
                print_line("It is rewritten until every run is finished; press Ctrl-C to stop.")
            written = text
        return may_change

    try:
        watch(renew, seconds)
    except Stopped:
        deliver(_page(folders, out, sections)[0], out, quiet=True)
        raise
    deliver(_page(folders, out, sections)[0], out)


def _page(
    folders: Sequence[Path],
    out: Path | None,
    sections: MakeSections | None,
    refresh: float | None = None,
) -> tuple[str, bool]:
    """The page, and whether one of its runs may still change."""
    from resvar.reports.html import Page, render_html

    records = read_records(folders)
    report = build(records)
    waiting = _waiting_runs(folders, records)
    # Figures would slow down active runs: a page that reloads has none, the last one has all.
    drawn = figure_sections(report) if refresh is None else []
    page = Page(
        out=out,
        folders=tuple(folders),
        waiting=len(waiting),
        sections=(*drawn, *(sections(records) if sections is not None else ())),
        refresh=refresh,
    )
    return render_html(report, page), unsettled([*records, *waiting])


def _waiting_runs(folders: Sequence[Path], records: Sequence[Record]) -> list[Record]:
    """The runs that sweeps in these folders have planned but not started."""
    found: dict[Path, Record] = {}
    for folder in folders:
        with suppress(UserError):  # a damaged manifest of a sweep does not concern the runs
            found |= {record.folder: record for record in planned_runs(folder, records)}
    return list(found.values())


def figure_sections(report: Report) -> list[Section]:
    """A section with the figures of each group but its curves, which the page draws itself."""
    from resvar.reports.figures import figures
    from resvar.reports.html import Image, Section
    from resvar.reports.plotting import page_svg

    drawn = list(islice(figures(report, curves=False), MOST_PICTURES + 1))
    made = []
    by_group = groupby(drawn[:MOST_PICTURES], key=lambda pair: (pair[0].label, pair[0].dataset))
    for group, held in by_group:
        images = tuple(Image(p.title, page_svg(p), p.caption) for _, p in held)
        made.append(Section("Figures", pictures=images, group=group))
    if len(drawn) > MOST_PICTURES:
        note = "Not all figures are shown; `resvar report --figures DIR` writes them all."
        made[-1] = replace(made[-1], notes=(note,))
    return made
