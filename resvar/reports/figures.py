"""The figures of a report, for a paper, a lecture or a pull request.

Per group of comparable runs: the final test errors, V1 against V2, the 3 × 3 map, and the training
curves (`curves.py`). A title names the protocol; where it is not the paper's, it adds that nothing
is comparable, and no published figure is drawn. Shape, width or words repeat what colour shows.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from resvar.console import plain, pluralize
from resvar.models.ordering import MAP_PLACES
from resvar.reports.cells import Entry
from resvar.reports.curves import curve_picture, depths_with_curves
from resvar.reports.findings import Group, Placement, PlacementMap, Report
from resvar.reports.plotting import Picture, house_style, panels, style, titled
from resvar.reports.tables import row_name, states_text
from resvar.reports.verdicts import V1, V2, V1V2Comparison
from resvar.sequences import chunks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GREY = "#000000", "#767676"
"""Text and lines, and less important items."""

ABREAST = 3
"""Depths in one figure of test errors."""

DEPTHS = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#000000", "v"),
    ("#E69F00", "P"), ("#56B4E9", "X"), ("#767676", "*"),
)  # fmt: skip
"""Colour and marker of a depth, in turn."""

WHERE = {
    "lead": "before the first convolution",
    "trail": "after the last convolution",
    "after_add": "after the addition",
}

NOT_COMPARABLE = "Published figures are left out: these runs are not comparable with them."


MOST_ROWS = 40
"""Variants in one figure of test errors; more would be illegible."""


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


def left_out(report: Report) -> Iterator[str]:
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
    finished = {entry.depth for entry in group.entries.values() if entry.summary}
    measured = [depth for depth in group.depths if depth in finished]
    if not measured:
        yield "errors", "no test errors and no map: no run is finished."
    elif (rows := len(group.variants)) > MOST_ROWS:
        limit = f"{rows} variants, more than the {MOST_ROWS} that it can show."
        yield "errors", f"no figure of test errors: {limit}"
    else:
        for depths in chunks(measured, ABREAST):
            yield "-".join(["errors", *map(str, depths)]), partial(_errors, group, depths)
    if any(pair.comparison is not None for pair in group.v1_v2):
        yield "v1-v2", partial(_slopes, group)
    elif group.dataset == "sample":
        yield "v1-v2", "no slopes: runs on the sample say nothing about V1 and V2."
    else:
        yield "v1-v2", "no slopes: no depth has finished runs of both V1 and V2."
    maps = [found for found in group.maps if any(at.entry.summary for at in found.placements)]
    for found in maps:
        yield f"map-{found.depth}", partial(_map, group, found)
    if measured and not maps:
        yield "map", "no map: no depth has all of the paper's orderings, or others."
    with_metrics = depths_with_curves(group)
    for depth in group.depths:
        missing = f"no curves of ResNet-{depth}: no run has a metrics.csv."
        drawn = partial(curve_picture, group, depth) if depth in with_metrics else missing
        yield f"curves-{depth}", drawn


def _slug(group: Group, name: str) -> str:
    """`quick-errors-110-164`, or `cifar100-quick-…`: only CIFAR-10 is not named."""
    dataset = "" if group.dataset == "cifar10" else f"{group.dataset} "
    return re.sub(r"[^a-z0-9]+", "-", f"{dataset}{group.label} {name}".lower()).strip("-")


# --- final test errors ----------------------------------------------------------------------------


NARROWEST = 0.6
"""The narrowest axis, in points of test error: twice the standard error of 10,000 images at an
error of 10 %. A far smaller difference must not look large."""


def _errors(group: Group, depths: Sequence[int]) -> Picture:
    """A row per variant: every run, the median with its figure, the published median."""
    wide, tall = 1.9 + 2.3 * len(depths), 1.5 + 0.48 * len(group.variants)
    figure, axes = panels(1, len(depths), (max(wide, 4.2), tall), sharey=True, sharex=True)
    for panel, depth in zip(axes[0], depths, strict=True):
        panel.set_title(f"ResNet-{depth}", loc="left", fontsize=9)
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        for row, variant in enumerate(group.variants):
            _error_row(panel, row, group.entries[variant, depth], group.like_paper)
        panel.margins(x=0.16)
        panel.set_xlabel("test error, %")
    first = axes[0][0]
    low, high = first.get_xlim()
    lacking = max(0.0, NARROWEST - (high - low))
    first.set_xlim(low - lacking / 2, high + lacking / 2)
    first.set_yticks(range(len(group.variants)), [plain(row_name(v)) for v in group.variants])
    first.set_ylim(len(group.variants) - 0.4, -0.6)
    caption = "Small marks: runs; bar with figure: their median."
    if not group.like_paper:
        caption += f" {NOT_COMPARABLE}"
    elif any(group.entries[v, d].published for v in group.variants for d in depths):
        caption += " Open diamond: published median."
    caption += _open(group, depths)
    return titled("Test error of the last iteration", group.heading, figure, caption)


def _error_row(panel: Axes, row: int, entry: Entry, like_paper: bool) -> None:
    colour, _, marker = style(entry.variant)
    if like_paper and entry.published:
        panel.plot(
            entry.published.test_error, row + 0.3, "D", color=INK, mfc="none", ms=4.5, zorder=4
        )
    if entry.summary is None:
        words = states_text(entry.unfinished) or "missing"
        at = (0.5, row)
        panel.annotate(words, at, xycoords=("axes fraction", "data"), color=GREY, style="italic",
                       ha="center", va="center")  # fmt: skip
        return
    values, median = entry.summary.values, entry.summary.median
    height = min(0.36, 0.09 * (len(values) - 1))
    offsets = [height * (k / (len(values) - 1) - 0.5) if height else 0.0
               for k in range(len(values))]  # fmt: skip
    panel.plot(values, [row + y for y in offsets], marker, color=colour, mec="white", mew=0.4,
               ms=5, zorder=3)  # fmt: skip
    panel.plot([median] * 2, [row - 0.28, row + 0.28], color=INK, linewidth=1.6, zorder=2)
    panel.annotate(f"{median:.2f}", (median, row - 0.28), xytext=(0, 1), textcoords="offset points",
                   ha="center", va="bottom", fontsize=7)  # fmt: skip


# --- V1 against V2 --------------------------------------------------------------------------------


def _slopes(group: Group) -> Picture:
    """A line per depth from the median of V1 to the median of V2, and a point per run."""
    pairs = [pair for pair in group.v1_v2 if pair.comparison is not None]
    figure, ((panel,),) = panels(1, 1, (5.0, 3.0 + 0.12 * len(pairs)))
    left: list[tuple[float, str, str]] = []
    right: list[tuple[float, str, str]] = []
    for index, pair in enumerate(pairs):
        colour, marker = DEPTHS[index % len(DEPTHS)]
        before, after = _slope(panel, pair, colour, marker)
        left.append((before, f"{before:.2f}", INK))
        text = f"{after:.2f}  ResNet-{pair.depth}, {_signed(after - before)}"
        right.append((after, text, INK))
        theirs = _published_slope(panel, pair) if group.like_paper else None
        if theirs is not None:
            text = f"{theirs:.2f}  paper, {pair.depth}: {_signed(pair.published_difference or 0)}"
            right.append((theirs, text, GREY))
    panel.set_xlim(-0.35, 1.95)
    panel.margins(y=0.12)
    panel.set_xticks([0, 1], [row_name(V1), row_name(V2)])
    panel.grid(visible=False, axis="x")
    panel.spines["bottom"].set_visible(False)
    panel.tick_params(axis="x", length=0)
    panel.set_ylabel("test error, %")
    _label(panel, left, -0.06, "right")
    _label(panel, right, 1.06, "left")
    caption = "Lines join medians; small marks: runs. A line that falls: V2 has the lower error."
    caption += " Dashed: the paper's." if group.like_paper else f" {NOT_COMPARABLE}"
    caption += _open(group, [pair.depth for pair in pairs], (V1, V2))
    if bare := [f"ResNet-{d.depth}" for d in group.v1_v2 if d.comparison is None]:
        caption += f" Not shown, without a finished run: {', '.join(bare)}."
    return titled("From V1 to V2", group.heading, figure, caption)


def _slope(panel: Axes, pair: V1V2Comparison, colour: str, marker: str) -> tuple[float, float]:
    """Draw one depth; the medians of V1 and V2."""
    summaries = [entry.summary for entry in (pair.v1, pair.v2) if entry.summary is not None]
    medians = summaries[0].median, summaries[1].median
    panel.plot([0, 1], medians, color=colour, marker=marker, linewidth=1.8, ms=6, zorder=3)
    for x, summary in enumerate(summaries):
        if summary.n > 1:
            panel.plot([x] * summary.n, summary.values, "_", color=colour, ms=7, mew=0.9)
    return medians


def _published_slope(panel: Axes, pair: V1V2Comparison) -> float | None:
    """Draw the paper's line; its right end."""
    if pair.v1.published is None or pair.v2.published is None:
        return None
    ends = pair.v1.published.test_error, pair.v2.published.test_error
    panel.plot([0, 1], ends, color=GREY, linestyle="--", marker="D", mfc="white", linewidth=1, ms=4)
    return ends[1]


def _label(panel: Axes, labels: Sequence[tuple[float, str, str]], x: float, side: str) -> None:
    """Texts at heights, moved apart where they would overlap."""
    low, high = panel.get_ylim()
    least = (high - low) * 0.055
    ordered = sorted(labels)
    for at, (_, text, colour) in zip(spread([y for y, _, _ in ordered], least), ordered,
                                     strict=True):  # fmt: skip
        panel.text(x, at, text, color=colour, ha=side, va="center", fontsize=7.5)


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


# --- the map --------------------------------------------------------------------------------------


def _map(group: Group, found: PlacementMap) -> Picture:
    """A row per place of BN, a column per place of ReLU; light is a low error."""
    import matplotlib

    figure, ((panel,),) = panels(1, 1, (5.6, 4.3))
    medians = [at.entry.summary.median for at in found.placements if at.entry.summary]
    colours = matplotlib.colormaps["cividis_r"]
    for row, bn in enumerate(MAP_PLACES):
        for column, relu in enumerate(MAP_PLACES):
            here = [at for at in found.placements if (at.bn, at.relu) == (bn, relu)]
            own = [at.entry.summary.median for at in here if at.entry.summary]
            shade = (
                (min(own) - min(medians)) / ((max(medians) - min(medians)) or 1) if own else None
            )
            fill = colours(shade * 0.9) if shade is not None else None
            _draw_map_cell(panel, (column, row), here, fill, group.like_paper)
    panel.set_xlim(-0.52, 2.52)
    panel.set_ylim(2.52, -0.52)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labeltop=True, labelbottom=False)
    panel.set_xticks(range(3), [f"ReLU {_broken(WHERE[place])}" for place in MAP_PLACES])
    panel.set_yticks(range(3), [f"BN {_broken(WHERE[place])}" for place in MAP_PLACES])
    caption = (
        "Large: median test error, %; light is low. A thick frame marks the lowest, which does "
        "not by itself mean that it is better. Hatched: no finished run."
    )
    if not group.like_paper:
        caption += f" {NOT_COMPARABLE}"
    if found.outside:
        caption += f" Not on the map: {plain(', '.join(found.outside))}."
    title = f"Where BN and ReLU go, ResNet-{found.depth}"
    return titled(title, group.heading, figure, caption)


def _draw_map_cell(
    panel: Axes, at: tuple[int, int], here: Sequence[Placement], fill: Any, like_paper: bool
) -> None:
    from matplotlib.patches import Rectangle

    corner = at[0] - 0.48, at[1] - 0.48
    best = any(placement.best for placement in here)
    frame: dict[str, Any] = {"edgecolor": INK, "linewidth": 2.6 if best else 0.5}
    if fill is None:
        frame |= {"facecolor": "white", "edgecolor": "#BBBBBB", "hatch": "////"}
    else:
        frame |= {"facecolor": fill}
    panel.add_patch(Rectangle(corner, 0.96, 0.96, zorder=3 if best else 2, **frame))
    ink = INK if fill is None or _luminance(fill) > 0.18 else "#FFFFFF"
    lines = [line for p in here for line in _draw_map_lines(p, like_paper, small=len(here) > 1)]
    total = sum(size for _, size, _ in lines)
    y = at[1] - total / 2 * 0.0135
    for text, size, weight in lines:
        y += size / 2 * 0.0135
        background = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        panel.text(at[0], y, text, ha="center", va="center", color=ink, fontsize=size * 0.78,
                   weight=weight, bbox=background if fill is None else None, zorder=4)  # fmt: skip
        y += size / 2 * 0.0135


def _draw_map_lines(
    placement: Placement, like_paper: bool, small: bool
) -> Iterator[tuple[str, float, str]]:
    """Text, size and weight of the lines about one ordering."""
    entry, large = placement.entry, 13.0 if small else 17.0
    others = states_text(entry.unfinished)
    yield plain(row_name(entry.variant)), 8.5, "normal"
    if entry.summary is None:
        yield others or "missing", 9.5, "normal"
    else:
        yield f"{entry.summary.median:.2f}", large, "bold"
        yield f"n = {entry.summary.n}" + (f"; {others}" if others else ""), 8.5, "normal"
    if like_paper and entry.published is not None:
        yield f"paper {entry.published.test_error:.2f}", 8.5, "normal"


def _luminance(colour: Sequence[float]) -> float:
    """The relative luminance of an sRGB colour, 0 to 1 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _broken(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 18))


# --- words ----------------------------------------------------------------------------------------


def _open(group: Group, depths: Sequence[int], among: Sequence[str] | None = None) -> str:
    """The cells with finished and unfinished runs, of which the figure shows the finished ones."""
    found = [
        f"{plain(row_name(entry.variant))}, ResNet-{entry.depth} ({states_text(entry.unfinished)})"
        for entry in group.entries.values()
        if entry.depth in depths and entry.summary and entry.unfinished
        and (among is None or entry.variant in among)
    ]  # fmt: skip
    return f" Without the runs that are not finished: {'; '.join(found)}." if found else ""


def _signed(difference: float) -> str:
    """With a typographic minus."""
    return f"{difference:+.2f}".replace("-", "−")
