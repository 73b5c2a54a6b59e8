"""The report's figures as sections of its page; the curves are there already, and can be read."""

from __future__ import annotations

from itertools import groupby, islice

from resvar.console import plain
from resvar.reports.figures import figures
from resvar.reports.findings import Report
from resvar.reports.html import Picture, Section
from resvar.reports.plotting import inline_svg

MOST_PICTURES = 24
"""On one page, so that neither its size nor the time it takes grows with the number of runs."""


def gallery(report: Report) -> tuple[Section, ...]:
    """A section per group that has a figure."""
    drawn = list(islice(figures(report, curves=False), MOST_PICTURES + 1))
    shown, more = drawn[:MOST_PICTURES], len(drawn) > MOST_PICTURES
    made = []
    for _, held in groupby(shown, key=lambda pair: id(pair[0])):
        pairs = list(held)
        group = pairs[0][0]
        pictures = tuple(Picture(p.title, inline_svg(p), p.caption) for _, p in pairs)
        last = more and pairs[-1] is shown[-1]
        notes = ("There are more: `resvar report --figures DIR` writes them all.",) if last else ()
        made.append(Section(f"Figures, protocol {plain(group.label)}", notes, pictures=pictures))
    return tuple(made)
