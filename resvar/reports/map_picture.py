"""The figure of the 3 × 3 map: test errors by the places of BN and ReLU."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from resvar.models.ordering import MAP_PLACES
from resvar.reports.findings import Group
from resvar.reports.placement_map import Placement, PlacementMap
from resvar.reports.plotting import (
    INK,
    INTERIM,
    NOT_COMPARABLE,
    Picture,
    interim_cells,
    panels,
    titled,
    variant_label,
)
from resvar.reports.tables import states_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ON_LIGHT, ON_DARK = "#010101", "#fefefe"
"""Text on a coloured cell; like the cell's colour, the same in dark mode."""

WHERE = {
    "lead": "before the first convolution",
    "trail": "after the last convolution",
    "after_add": "after the addition",
}


def map_picture(group: Group, found: PlacementMap) -> Picture:
    """A row per place of BN, a column per place of ReLU; light is a low error."""
    import matplotlib

    figure, ((panel,),) = panels(1, 1, (5.6, 4.3))
    finished = [at.cell.summary for at in found.placements if at.cell.summary]
    low, high = (of(summary.median for summary in finished) for of in (min, max))
    decided = min(summary.n for summary in finished) > 1  # the lowest of single runs is luck
    colours = matplotlib.colormaps["cividis_r"]
    for place in product(MAP_PLACES, MAP_PLACES):
        here = [at for at in found.placements if (at.bn, at.relu) == place]
        own = [at.cell.summary.median for at in here if at.cell.summary]
        fill = colours((min(own) - low) / ((high - low) or 1) * 0.9) if own else None
        best = decided and any(at.best for at in here)
        lines = [line for at in here for line in _lines_of(group, at, small=len(here) > 1)]
        row, column = map(MAP_PLACES.index, place)
        _draw_map_cell(panel, (column, row), lines, fill, best)
    panel.set_xlim(-0.52, 2.52)
    panel.set_ylim(2.52, -0.52)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labeltop=True, labelbottom=False)
    panel.set_xticks(range(3), [f"ReLU {_broken(WHERE[place])}" for place in MAP_PLACES])
    panel.set_yticks(range(3), [f"BN {_broken(WHERE[place])}" for place in MAP_PLACES])
    title = f"Where BN and ReLU go, ResNet-{found.depth}"
    return titled(title, group.heading, figure, _map_caption(group, found, decided))


def _map_caption(group: Group, found: PlacementMap, decided: bool) -> str:
    cells = [placement.cell for placement in found.placements]
    caption = "Large: median test error of n runs, %, with their range; light is low."
    if decided:
        caption += (
            " A thick frame marks the lowest, which does not by itself mean that it is better."
        )
    else:
        caption += " No cell is marked as the lowest, since some have a single run."
    if interim_cells(group) & {(cell.variant, cell.depth) for cell in cells if cell.summary}:
        caption += f" Interim: {INTERIM}"
    if not all(cell.summary for cell in cells):
        caption += " Hatched: no finished run."
    if not group.like_paper:
        caption += f" {NOT_COMPARABLE}"
    if found.outside:
        caption += f" Not on the map: {', '.join(map(variant_label, found.outside))}."
    return caption


CellLine = tuple[str, float, str]
"""Text, size and weight of a line in a cell."""

POINT = 0.0135
"""The height of a unit of a line's size, as a share of a cell's."""


def _draw_map_cell(
    panel: Axes, at: tuple[int, int], lines: Sequence[CellLine], fill: Any, best: bool
) -> None:
    from matplotlib.patches import Rectangle

    corner = at[0] - 0.48, at[1] - 0.48
    frame: dict[str, Any] = {"edgecolor": INK, "linewidth": 2.6 if best else 0.5}
    if fill is None:
        frame |= {"facecolor": "white", "edgecolor": "#BBBBBB", "hatch": "////"}
    else:
        frame |= {"facecolor": fill}
    panel.add_patch(Rectangle(corner, 0.96, 0.96, zorder=3 if best else 2, **frame))
    ink = INK if fill is None else ON_LIGHT if _luminance(fill) > 0.18 else ON_DARK
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1.0} if fill is None else None
    total = sum(size for _, size, _ in lines) * POINT
    scale = min(1.0, 0.92 / total)
    y = at[1] - total * scale / 2
    for text, size, weight in lines:
        half = size * POINT * scale / 2
        panel.text(at[0], y + half, text, ha="center", va="center", color=ink,
                   fontsize=size * 0.78 * scale, weight=weight, bbox=background,
                   zorder=4)  # fmt: skip
        y += 2 * half


def _lines_of(group: Group, placement: Placement, small: bool) -> Iterator[CellLine]:
    """The lines about one ordering."""
    cell, large = placement.cell, 13.0 if small else 17.0
    others = states_text(cell.unfinished)
    yield variant_label(cell.variant, 26), 8.5, "normal"
    if cell.summary is None:
        others = others or "missing"
    else:
        yield f"{cell.summary.median:.2f}", large, "bold"
        lowest, highest = min(cell.summary.values), max(cell.summary.values)
        span = f": {lowest:.2f}–{highest:.2f}" if cell.summary.n > 1 else ""
        yield f"n = {cell.summary.n}{span}", 8.5, "normal"
        if (cell.variant, cell.depth) in interim_cells(group):
            yield "interim", 8.5, "normal"
    for line in textwrap.wrap(others, 26):
        yield line, 8.5, "normal"
    if group.like_paper and cell.published is not None:
        yield f"paper {cell.published.test_error:.2f}", 8.5, "normal"


def _luminance(colour: Sequence[float]) -> float:
    """The relative luminance of an sRGB colour, 0 to 1 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _broken(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 18))
