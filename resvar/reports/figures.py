"""The figures of a report, for a paper, a lecture or a pull request.

Per group of comparable runs: the final test errors, V1 against V2, the 3 × 3 map, and the training
curves (`curves.py`). A title names the protocol; where it is not the paper's, it adds that nothing
is comparable, and no published figure is drawn. Every test error comes with the number of runs n,
and with an interval or a range where n is at least 2. Shape, width or words repeat what colour
shows.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from resvar.console import pluralize, points
from resvar.reports.cells import Cell
from resvar.reports.curves import curve_picture, depths_with_curves
from resvar.reports.findings import Group, Report
from resvar.reports.map_picture import map_picture
from resvar.reports.plotting import (
    CAPTION_POINTS,
    GREY,
    INK,
    INTERIM,
    NOT_COMPARABLE,
    Picture,
    brief,
    house_style,
    interim_cells,
    panels,
    style,
    text_inches,
    titled,
    variant_label,
)
from resvar.reports.statistics import Summary
from resvar.reports.tables import states_text
from resvar.reports.verdicts import V1, V2, V1V2Comparison, counts
from resvar.sequences import chunks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ABREAST = 3
"""Depths in one figure of test errors."""

DEPTHS = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#000000", "v"),
    ("#E69F00", "P"), ("#56B4E9", "X"), ("#767676", "*"),
)  # fmt: skip
"""Colour and marker of a depth, in turn."""

MOST_ROWS = 40
"""Variants in one figure of test errors; more would be illegible."""

LONGEST_SLUG = 224
"""Bytes of a group in the name of a file; file systems allow 255 in all."""


def figures(report: Report, curves: bool = True) -> Iterator[tuple[Group, Picture]]:
    """Every figure of a report with its group, each drawn on request.

    File names consist of letters, digits and hyphens, and no two are the same.

    Args:
        curves: also the training curves, of which the HTML page has its own charts.
    """
    taken: set[str] = set()
    for group in report.groups:
        for name, make in _planned(group):
            if isinstance(make, str):
                continue
            slug = _slug(group, name)
            numbered = (slug if number == 1 else f"{slug}-{number}" for number in count(1))
            taken.add(name := next(name for name in numbered if name not in taken))
            if curves or make.func is not curve_picture:
                with house_style():
                    picture = make()
                yield group, replace(picture, name=name)


def figures_left_out(report: Report) -> Iterator[str]:
    """A sentence for each figure without data, and one for the runs that cannot be read."""
    for group in report.groups:
        for _, make in _planned(group):
            if isinstance(make, str):
                yield f"{group.label}: {make}"
    if report.unread:
        runs = pluralize(len(report.unread), "run")
        yield f"{runs} that could not be read or are damaged; `resvar report` shows why."


def _planned(group: Group) -> Iterator[tuple[str, partial[Picture] | str]]:
    """The name of each figure of a group, and the call that draws it, or why it is missing."""
    finished = {cell.depth for cell in group.cells.values() if cell.summary}
    measured = [depth for depth in group.depths if depth in finished]
    if not measured:
        yield "errors", "no test errors and no map: no run is finished."
    elif (rows := len(group.variants)) > MOST_ROWS:
        limit = f"{rows} variants, more than the {MOST_ROWS} that it can show."
        yield "errors", f"no figure of test errors: {limit}"
    else:
        for depths in chunks(measured, ABREAST):
            yield "-".join(["errors", *map(str, depths)]), partial(_errors, group, depths)
    if any(map(_summaries, group.v1_v2)):
        yield "v1-v2", partial(_slopes, group)
    elif group.dataset == "sample":
        yield "v1-v2", "no slopes: runs on the sample say nothing about V1 and V2."
    else:
        yield "v1-v2", "no slopes: no depth has at least two finished runs of both V1 and V2."
    maps = [found for found in group.maps if any(at.cell.summary for at in found.placements)]
    for found in maps:
        yield f"map-{found.depth}", partial(map_picture, group, found)
    if measured and not maps:
        yield "map", "no map: no depth has all five published orderings, or an unpublished one."
    with_metrics = depths_with_curves(group)
    for depth in group.depths:
        missing = f"no curves of ResNet-{depth}: no run has a metrics.csv."
        drawn = partial(curve_picture, group, depth) if depth in with_metrics else missing
        yield f"curves-{depth}", drawn


def _slug(group: Group, name: str) -> str:
    """`quick-errors-110-164`, or `cifar100-quick-…`: only CIFAR-10 is not named."""
    dataset = "" if group.dataset == "cifar10" else f"{group.dataset} "
    own, kind = (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
                 for text in (f"{dataset}{group.label}", name))  # fmt: skip
    return f"{brief(own, LONGEST_SLUG, '-')}-{kind}"


# --- final test errors ----------------------------------------------------------------------------


NARROWEST = 0.6
"""The narrowest axis, in points of test error: twice the standard error of 10,000 images at an
error of 10 %. A far smaller difference must not look large."""


def _errors(group: Group, depths: Sequence[int]) -> Picture:
    """A row per variant: every run, the median with its figure, n, interval, published median."""
    names = [variant_label(variant) for variant in group.variants]
    cells = [group.cells[variant, depth] for variant in group.variants for depth in depths]
    interim = interim_cells(group)
    beside = {key: _beside(cell, key in interim) for key, cell in group.cells.items()}
    widest = max(text_inches(line, CAPTION_POINTS) for depth in depths for variant in group.variants
                 for line in beside[variant, depth])  # fmt: skip
    wide = 0.4 + max(text_inches(name, 8) for name in names) + (2.0 + widest) * len(depths)
    size = max(wide, 4.2), 1.3 + 0.56 * len(group.variants)
    figure, axes = panels(1, len(depths), size, sharey=True, sharex=True)
    for panel, depth in zip(axes[0], depths, strict=True):
        panel.set_title(f"ResNet-{depth}", loc="left", fontsize=9)
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        for row, variant in enumerate(group.variants):
            _error_row(panel, row, group.cells[variant, depth], group.like_paper)
            _write_beside(panel, row, beside[variant, depth])
        panel.margins(x=0.16)
        panel.set_xlabel("test error, %")
    first = axes[0][0]
    first.set_xlim(_error_limits(first.get_xlim(), [e.summary for e in cells if e.summary]))
    first.set_yticks(range(len(names)), names)
    first.set_ylim(len(names) - 0.4, -0.6)
    for panel, depth in zip(axes[0], depths, strict=True):
        for row, variant in enumerate(group.variants):
            _draw_interval(panel, row, group.cells[variant, depth].summary)
    return titled("Test error of the last iteration", group.heading, figure,
                  _errors_caption(group, cells))  # fmt: skip


def _error_limits(runs: tuple[float, float], summaries: Sequence[Summary]) -> tuple[float, float]:
    """The limits of the runs, wider for intervals: by a quarter at most, since those of two runs
    would dwarf the runs."""
    low, high = runs
    lacking, more = max(0.0, NARROWEST - (high - low)), (high - low) / 4
    ends = [end for summary in summaries for end in mean_interval(summary) or ()]
    return (
        min(low - lacking / 2, max(low - more, min(ends, default=low) - more / 8)),
        max(high + lacking / 2, min(high + more, max(ends, default=high) + more / 8)),
    )


def _errors_caption(group: Group, cells: Sequence[Cell]) -> str:
    sizes = [cell.summary.n for cell in cells if cell.summary]
    caption = "Small marks: n runs; bar with figure: their median."
    if max(sizes) > 1:
        caption += " Line below: mean with its 95 % t interval; an arrow where it leaves the axis."
    if min(sizes) == 1:
        caption += " A single run (n = 1) has no interval."
    if {(cell.variant, cell.depth) for cell in cells if cell.summary} & interim_cells(group):
        caption += f" Interim: {INTERIM}"
    if not group.like_paper:
        return f"{caption} {NOT_COMPARABLE}"
    if runs := {cell.published.runs for cell in cells if cell.published}:
        of = f" median of {runs.pop()} runs" if len(runs) == 1 and None not in runs else " figure"
        caption += f" Open diamond: published{of}."
    return caption


def _error_row(panel: Axes, row: int, cell: Cell, like_paper: bool) -> None:
    colour, _, marker = style(cell.variant)
    if like_paper and cell.published:
        panel.plot(
            cell.published.test_error, row + 0.36, "D", color=INK, mfc="none", ms=4.5, zorder=4
        )
    if cell.summary is None:
        return
    values, median = cell.summary.values, cell.summary.median
    height = min(0.3, 0.08 * (len(values) - 1))
    offsets = [height * (k / (len(values) - 1) - 0.5) - 0.1 if height else -0.1
               for k in range(len(values))]  # fmt: skip
    panel.plot(values, [row + y for y in offsets], marker, color=colour, mec="white", mew=0.4,
               ms=5, zorder=3)  # fmt: skip
    panel.plot([median] * 2, [row - 0.32, row + 0.1], color=INK, linewidth=1.6, zorder=2)
    panel.annotate(f"{median:.2f}", (median, row - 0.32), xytext=(0, 1), textcoords="offset points",
                   ha="center", va="bottom", fontsize=7)  # fmt: skip


def _draw_interval(panel: Axes, row: int, summary: Summary | None) -> None:
    """The interval of the mean as far as the axis reaches; an arrow where it reaches further."""
    if summary is None or (interval := mean_interval(summary)) is None:
        return
    low, high = panel.get_xlim()
    y = row + 0.2
    ends = max(interval[0], low), min(interval[1], high)
    panel.plot(ends, [y, y], color=INK, linewidth=1.0, zorder=2)
    panel.plot(summary.mean, y, "|", color=INK, ms=6, mew=1.0, zorder=2)
    for end, edge, mark in zip(interval, ends, "<>", strict=True):
        panel.plot(edge, y, "|" if end == edge else mark, color=INK, ms=4, clip_on=False)


def mean_interval(summary: Summary) -> tuple[float, float] | None:
    """The 95 % t interval of the mean of a cell, in percent; None for a single run."""
    from scipy.special import stdtrit

    if summary.sd is None:
        return None
    half = float(stdtrit(summary.n - 1, 0.975)) * summary.sd / math.sqrt(summary.n)
    return summary.mean - half, summary.mean + half


def _beside(cell: Cell, interim: bool) -> list[str]:
    """`n = 5`, and the runs without a result, in lines."""
    lines = [f"n = {cell.summary.n}{', interim' if interim else ''}"] if cell.summary else []
    return [*lines, *textwrap.wrap(states_text(cell.unfinished), 18)] or ["missing"]


def _write_beside(panel: Axes, row: int, lines: Sequence[str]) -> None:
    panel.annotate("\n".join(lines), (1.0, row), xycoords=("axes fraction", "data"),
                   xytext=(6, 0), textcoords="offset points", ha="left", va="center",
                   fontsize=CAPTION_POINTS, color=INK if "n =" in lines[0] else GREY)  # fmt: skip


# --- V1 against V2 --------------------------------------------------------------------------------

LABEL_POINTS = 7.5


def _summaries(pair: V1V2Comparison) -> list[Summary]:
    """Of V1 and V2; empty unless both have two runs, since a slope of single runs may be luck."""
    found = [cell.summary for cell in (pair.v1, pair.v2) if cell.summary and cell.summary.n > 1]
    return found if len(found) == 2 else []


def _slopes(group: Group) -> Picture:
    """A line per depth from the median of V1 to the median of V2, and a point per run."""
    pairs = [pair for pair in group.v1_v2 if _summaries(pair)]
    texts = [_difference_label(pair) for pair in pairs]
    wide = 3.2 + max(text_inches(text, LABEL_POINTS) for text in texts)
    figure, ((panel,),) = panels(1, 1, (wide, 2.7 + 0.3 * len(pairs)))
    left: list[tuple[float, str, str]] = []
    right: list[tuple[float, str, str]] = []
    for index, (pair, text) in enumerate(zip(pairs, texts, strict=True)):
        colour, marker = DEPTHS[index % len(DEPTHS)]
        before, after = _slope(panel, _summaries(pair), colour, marker)
        left.append((before, f"{before:.2f}", INK))
        right.append((after, f"{after:.2f}  {text}", INK))
        theirs = _published_slope(panel, pair) if group.like_paper else None
        if theirs is not None:
            right.append((theirs, f"{theirs:.2f}  {_published_difference(pair)}", GREY))
    panel.set_xlim(-0.4, 1.1)  # the texts on the right are in the margin
    panel.margins(y=0.12)
    panel.set_xticks([0, 1], [variant_label(V1), variant_label(V2)])
    panel.grid(visible=False)
    panel.spines["bottom"].set_visible(False)
    panel.tick_params(axis="x", length=0)
    panel.set_ylabel("test error, %")
    _label(panel, left, 0.0, -0.1)
    _label(panel, right, 1.0, 1.1)
    return titled("From V1 to V2", group.heading, figure, _slopes_caption(group, pairs))


def _slopes_caption(group: Group, pairs: Sequence[V1V2Comparison]) -> str:
    levels = sorted({100 * pair.comparison.level for pair in pairs if pair.comparison})
    level = " or ".join(f"{level:.4g} %" for level in levels)
    caption = (
        "Lines join the medians of n runs; small marks: runs. Δ: mean of V2 − mean of V1, below 0 "
        f"where V2 has the lower error, with the {level} interval of the difference."
    )
    if any(pair.interim for pair in pairs):
        caption += f" Interim: {INTERIM}"
    caption += " Dashed: the paper's." if group.like_paper else f" {NOT_COMPARABLE}"
    caption += _open(group, [pair.depth for pair in pairs])
    if bare := [f"ResNet-{pair.depth}" for pair in group.v1_v2 if not _summaries(pair)]:
        caption += f" Not shown, with fewer than two runs of V1 or V2: {', '.join(bare)}."
    return caption


def _difference_label(pair: V1V2Comparison) -> str:
    """`ResNet-110, n = 5: Δ −0.24 [−0.40, −0.08]`."""
    first, second = (summary.n for summary in _summaries(pair))
    interim = ", interim" if pair.interim else ""
    told = f"ResNet-{pair.depth}{interim}, {counts((first, second))}"
    found = pair.comparison
    if found is None or found.difference is None:
        return f"{told}: no Δ"
    declared = "" if found.n == (first, second) else f" of the declared {counts(found.n)}"
    span = f"[{', '.join(map(_signed, found.interval))}]" if found.interval else "without interval"
    return f"{told}: Δ{declared} {_signed(found.difference)} {span}"


def _published_difference(pair: V1V2Comparison) -> str:
    """`paper, ResNet-110, median of 5: −0.24`."""
    sides = [cell.published for cell in (pair.v1, pair.v2) if cell.published]
    runs = {side.runs for side in sides}
    of = f", median of {sides[0].runs}" if len(runs) == 1 and sides[0].runs else ""
    return f"paper, ResNet-{pair.depth}{of}: {_signed(pair.published_difference or 0.0)}"


def _slope(
    panel: Axes, summaries: Sequence[Summary], colour: str, marker: str
) -> tuple[float, float]:
    """Draw one depth; the medians of V1 and V2."""
    medians = summaries[0].median, summaries[1].median
    panel.plot([0, 1], medians, color=colour, marker=marker, linewidth=1.8, ms=6, zorder=3)
    for x, summary in enumerate(summaries):
        panel.plot([x] * summary.n, summary.values, "_", color=colour, ms=7, mew=0.9)
    return medians


def _published_slope(panel: Axes, pair: V1V2Comparison) -> float | None:
    """Draw the paper's line; its right end."""
    if pair.v1.published is None or pair.v2.published is None:
        return None
    ends = pair.v1.published.test_error, pair.v2.published.test_error
    panel.plot([0, 1], ends, color=GREY, linestyle="--", marker="D", mfc="white", linewidth=1, ms=4)
    return ends[1]


def _label(panel: Axes, labels: Sequence[tuple[float, str, str]], x: float, at: float) -> None:
    """Texts beside the lines' ends, moved apart where they would overlap.

    Args:
        labels: height, text and colour.
        x, at: of the ends, and of the texts; to the left or to the right of them.
    """
    low, high = panel.get_ylim()
    ordered = sorted(labels)
    heights = spread([height for height, _, _ in ordered], (high - low) * 0.055)
    for y, (height, text, colour) in zip(heights, ordered, strict=True):
        panel.plot([x + 0.25 * (at - x), at], [height, y], color=GREY, linewidth=0.5)
        panel.annotate(f" {text} ", (at, y), va="center", ha="left" if at > x else "right",
                       color=colour, fontsize=LABEL_POINTS, annotation_clip=False)  # fmt: skip


def spread(heights: Sequence[float], least: float) -> list[float]:
    """Ascending heights moved as little as possible so that neighbours are `least` apart.

    Heights that push each other form a block, centred on the mean of the wanted heights.
    """
    blocks: list[list[float]] = []  # of each, the heights in it
    for height in heights:
        blocks.append([height])
        while (
            len(blocks) > 1
            and _block_start(blocks[-1], least) - _block_end(blocks[-2], least) < least
        ):
            last = blocks.pop()
            blocks[-1] += last
    return [
        _block_start(block, least) + index * least
        for block in blocks
        for index in range(len(block))
    ]


def _block_start(block: Sequence[float], least: float) -> float:
    return sum(block) / len(block) - (len(block) - 1) * least / 2


def _block_end(block: Sequence[float], least: float) -> float:
    return _block_start(block, least) + (len(block) - 1) * least


# --- words ----------------------------------------------------------------------------------------


def _open(group: Group, depths: Sequence[int]) -> str:
    """The cells of V1 and V2 with unfinished runs, of which the figure shows the finished ones."""
    found = [
        f"{variant_label(cell.variant)}, ResNet-{cell.depth} ({states_text(cell.unfinished)})"
        for cell in group.cells.values()
        if cell.depth in depths and cell.variant in (V1, V2) and cell.unfinished
    ]  # fmt: skip
    return f" Without the runs that are not finished: {'; '.join(found)}." if found else ""


def _signed(difference: float) -> str:
    """With a typographic minus."""
    return points(difference).replace("-", "−")
