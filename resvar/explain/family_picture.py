"""The family table as a vector figure for slides: units in brackets, on a white card.

The card makes it readable on white and on dark slides. The widths of texts are estimates that leave
room for the usual fonts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from resvar.explain.complexity import Complexity, StageRow, conv_label
from resvar.explain.drawing import svg_line, svg_path, svg_text
from resvar.explain.family import (
    FamilyRow,
    before_units,
    family_columns,
    family_notes,
    family_rows,
    family_title,
    family_totals,
)
from resvar.streams import folded

LINE, PAD, EDGE = 20, 9, 24
"""Height of a line, space above and below a row, space around the table, in pixels."""

COMMON_GAP = 6
"""Between a line that all networks share and the units below it."""

COLUMN_GAP = 26
BRACKET_WIDTH = 6

FAMILY_STYLE = """
  .family text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1a1a1a;
    text-anchor: middle }
  .family .title { font-size: 18px; font-weight: 600; text-anchor: start }
  .family .name { font-weight: 600 } .family .left { text-anchor: start }
  .family .note { font-size: 12px; fill: #555555; text-anchor: start }
  .family .line { stroke: #1a1a1a; stroke-width: 1.2; fill: none }
  .family .rule { stroke: #c8c8c8; stroke-width: 1 } .family .strong { stroke-width: 1.8 }
  .family .card { fill: #ffffff; stroke: #d0d0d0 }
"""


@dataclass(frozen=True)
class Band:
    """A row of the picture: the texts of its first two columns, and what each network has.

    Attributes:
        common: a line above the units that all networks share.
        cells: for each network, lines of text, or a unit.
    """

    label: str
    output: str
    common: str
    cells: Sequence[Sequence[str] | StageRow]
    kind: str = ""

    @property
    def height(self) -> int:
        """In pixels."""
        lines = max(len(_cell_labels(cell)) for cell in self.cells) + bool(self.common)
        return lines * LINE + 2 * PAD + (COMMON_GAP if lines > 1 and self.common else 0)


def family_svg(networks: Sequence[Complexity]) -> str:
    """The table of a family as one SVG document."""
    bands = list(_bands(networks))
    edges = _column_edges(bands)
    heading = family_title(networks)
    top = EDGE + 34
    parts = [svg_text(EDGE, EDGE + 12, heading, "title"), _rule(edges, top, "strong")]
    last_of_part = {bands[0].label, "head", bands[-1].label}
    for band in bands:
        parts += _band(band, edges, top)
        top += band.height
        parts.append(_rule(edges, top, "strong" if band.label in last_of_part else "rule"))
    top += 8
    for note in family_notes(networks):
        for line in folded(note, (edges[-1] - EDGE) // 6):
            top += 17
            parts.append(svg_text(EDGE, top, line, "note"))
    width, height = edges[-1] + EDGE, top + EDGE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="family" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(heading)}">',
            f"<style>{FAMILY_STYLE}</style>",
            f'<rect class="card" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="8"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _rule(edges: Sequence[int], y: int, kind: str) -> str:
    return svg_line(EDGE, y, edges[-1], y, kind)


def _bands(networks: Sequence[Complexity]) -> Iterator[Band]:
    yield Band("layer", "output", "", [[name] for name in family_columns(networks)], "name")
    for row in family_rows(networks):
        yield Band(row.name, row.size, row.common, [_band_cell(row, stage) for stage in row.stages])
    for name, values in family_totals(networks):
        yield Band(name, "", "", [[value] for value in values])


def _band_cell(row: FamilyRow, stage: StageRow | None) -> Sequence[str] | StageRow:
    if stage is not None and stage.units:
        return stage
    return [] if row.common else [before_units(stage)]


def _cell_labels(cell: Sequence[str] | StageRow) -> Sequence[str]:
    return [conv_label(conv) for conv in cell.convolutions] if isinstance(cell, StageRow) else cell


def _column_edges(bands: Sequence[Band]) -> list[int]:
    """The left edges of the columns, and the right edge of the last."""
    layer = max(text_width(band.label) for band in bands if band.output)
    output = max(text_width(band.output) for band in bands)
    total = max(text_width(band.label) for band in bands)  # it may run over both columns
    widths = [layer, max(output, total - layer - COLUMN_GAP)]
    for index in range(len(bands[0].cells)):
        widths.append(max(_cell_width(band.cells[index], band.kind) for band in bands))
    edges = [EDGE]
    for width in widths:
        edges.append(edges[-1] + width + COLUMN_GAP)
    edges[-1] -= COLUMN_GAP
    return edges


def text_width(text: str, kind: str = "") -> int:
    """The width of a text in pixels, for a wide font; a `name` is bold."""
    each = 10 if kind == "name" else 9
    return sum(5 if letter in " ,.·:il()" else each for letter in text)


def _cell_width(cell: Sequence[str] | StageRow, kind: str) -> int:
    inside = max((text_width(label, kind) for label in _cell_labels(cell)), default=0)
    return inside + _bracket_extra(cell) if isinstance(cell, StageRow) else inside


def _bracket_extra(stage: StageRow) -> int:
    """The width of both brackets and of the count behind them."""
    return 2 * BRACKET_WIDTH + 8 + text_width(_times(stage))


def _times(stage: StageRow) -> str:
    return f"× {stage.units}"


def _band(band: Band, edges: Sequence[int], top: int) -> Iterator[str]:
    height = band.height
    middle = top + height / 2
    for edge, text in zip(edges, (band.label, band.output), strict=False):
        if text:
            yield svg_text(edge, middle + 5, text, f"left {band.kind}")
    start = top
    if band.common:
        across = (edges[2] + edges[-1]) / 2
        yield svg_text(across, top + PAD + 15, band.common)
        above = LINE + COMMON_GAP
        start, height = top + above, height - above
    for index, cell in enumerate(band.cells):
        last = index == len(band.cells) - 1
        right = edges[index + 3] - (0 if last else COLUMN_GAP)
        yield from _svg_cell(cell, (edges[index + 2] + right) / 2, start + height / 2, band.kind)


def _svg_cell(
    cell: Sequence[str] | StageRow, centre: float, middle: float, kind: str
) -> Iterator[str]:
    """Lines of text around a centre, for a unit in brackets with its count behind them."""
    labels = _cell_labels(cell)
    top = middle - len(labels) * LINE / 2
    inside = max(map(text_width, labels), default=0)
    if isinstance(cell, StageRow):
        left = centre - (inside + _bracket_extra(cell)) / 2
        right = left + 2 * BRACKET_WIDTH + inside
        bottom = top + len(labels) * LINE
        for x, inner in ((left, left + BRACKET_WIDTH), (right, right - BRACKET_WIDTH)):
            yield svg_path(f"M{inner:g},{top:g} H{x:g} V{bottom:g} H{inner:g}")
        yield svg_text(right + 6, middle + 5, _times(cell), "left")
        centre = (left + right) / 2
    for number, label in enumerate(labels):
        yield svg_text(centre, top + number * LINE + 15, label, kind)
