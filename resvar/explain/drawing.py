"""A residual unit in the style of figure 4 of arXiv:1603.05027: a vector figure, or text.

The signal runs down: the shortcut is the straight line on the left, the branch the column of boxes
on the right. Colours mark the ops in the vector figure; in the terminal they mark the place of an
op in its ordering, which the margin also names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from resvar.models.architecture import Architecture
from resvar.models.layout import Layer, unit_layers
from resvar.models.ordering import Ordering
from resvar.table import Prose


class Box(NamedTuple):
    """A layer in a figure; `place` numbers the convolutions: `conv 1`, `between 1`."""

    place: str
    op: str
    label: str


@dataclass(frozen=True)
class Figure:
    """A unit to draw: the name of its ordering, its layers, and a line below the name."""

    name: str
    boxes: tuple[Box, ...]
    caption: str = ""

    @classmethod
    def of(cls, ordering: Ordering, architecture: Architecture, caption: str = "") -> Figure:
        """A unit of the architecture that keeps the shape."""
        stage = architecture.stages[0]
        convs, boxes = 0, []
        for layer in unit_layers(ordering, architecture, stage, stage.out, size=1):
            convs += layer.op == "conv"
            numbered = layer.place in ("conv", "between")
            place = f"{layer.place} {convs}" if numbered else layer.place
            boxes.append(Box(place, layer.op, _layer_label(layer)))
        return cls(ordering.name, tuple(boxes), caption)

    def at(self, place: str) -> list[Box]:
        return [box for box in self.boxes if box.place == place]

    @property
    def branch(self) -> list[Box]:
        """All boxes between the split and the addition."""
        return [box for box in self.boxes if box.place not in ("addition", "after_add")]


def _layer_label(layer: Layer) -> str:
    if layer.op != "conv":
        return {"bn": "BN", "relu": "ReLU", "add": "⊕"}[layer.op]
    kernel = f"{layer.kernel}×{layer.kernel}"
    return f"{kernel}, C={layer.groups}" if layer.groups > 1 else f"conv {kernel}"


# --- in the terminal ------------------------------------------------------------------------------

ROWS = (
    "lead", "conv 1", "between 1", "conv 2", "between 2", "conv 3", "trail", "addition",
    "after_add",
)  # fmt: skip
"""The places of all units from top to bottom."""

INDENT = " " * 4
"""Left of the shortcut; the boxes of the branch begin three columns right of it."""

NAME_WIDTH = 28
PLACE_STYLES = {"lead": "bold cyan", "trail": "bold magenta", "after_add": "bold yellow"}
LEGEND = "┃ shortcut   │ branch   ⊕ addition   [ ] convolution   ( ) BN or ReLU"


@dataclass(frozen=True)
class Drawing:
    """Units side by side for a Rich console, as many per line as fit its width.

    A place is at the same height in all units and named in the margin, so colour is optional.
    """

    figures: Sequence[Figure]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        labels = [box.label for figure in self.figures for box in figure.branch]
        box_width = max(8, *map(len, labels)) + 2
        words = [word for figure in self.figures for word in (figure.name, figure.caption)]
        longest = min(max(map(len, words)), NAME_WIDTH)
        width = max(len(INDENT) + 3 + box_width, longest) + 2
        fitting = max(1, (options.max_width - len("after_add ")) // width)
        lines = -(-len(self.figures) // fitting)
        per_line = -(-len(self.figures) // lines)
        for first in range(0, len(self.figures), per_line):
            yield from _side_by_side(self.figures[first : first + per_line], box_width, width)
            yield Text()
        yield Prose(LEGEND, "dim")


def _side_by_side(figures: Sequence[Figure], box_width: int, width: int) -> Iterator[Text]:
    heights = {place: max(len(figure.at(place)) for figure in figures) for place in ROWS}
    columns = [_unit_lines(figure, heights, box_width, width) for figure in figures]
    for lines in zip(*columns, strict=True):
        label = lines[0][0]
        line = Text(no_wrap=True).append(f"{label:<10}", style=PLACE_STYLES.get(label, "dim"))
        for _, cell in lines:
            cell.align("left", width)
            line.append_text(cell)
        line.rstrip()
        yield line


def _unit_lines(
    figure: Figure, heights: dict[str, int], box_width: int, width: int
) -> Iterator[tuple[str, Text]]:
    """The lines of one unit, from its name to the final arrow, each with its word in the margin."""
    for words, style in ((figure.name, "bold"), (figure.caption, "dim")):
        text = Text(words, style=style)
        text.truncate(width - 2, overflow="ellipsis")
        yield "", text
    reach = 2 + box_width // 2  # from the shortcut to the middle of the boxes
    yield "", Text(f"{INDENT}x")
    yield "", Text(f"{INDENT}┣{'─' * reach}┐")
    for place, height in heights.items():
        style = PLACE_STYLES.get(place, "")
        boxes = figure.at(place)
        empty = f"{INDENT}┃{' ' * reach}│"
        if place == "addition":
            lines = [Text(f"{INDENT}⊕{'─' * reach}┘")]
        elif place == "after_add":
            lines = [Text(_bracketed(box, 8), style=style) for box in boxes]
            empty = f"{INDENT}┃"
        else:
            left = f"{INDENT}┃  "
            lines = [Text(left).append(_bracketed(box, box_width), style=style) for box in boxes]
        lines += [Text(empty) for _ in range(height - len(lines))]
        word = "" if place.startswith("conv") else place.split()[0]
        for number, line in enumerate(lines):
            yield "" if number else word, line
    yield "", Text(f"{INDENT}▼")


def _bracketed(box: Box, width: int) -> str:
    left, right = "[]" if box.op == "conv" else "()"
    return f"{left}{box.label:^{width - 2}}{right}"


# --- as a vector figure ---------------------------------------------------------------------------

BOX_WIDTH, BOX_HEIGHT = 92, 24
STEP = BOX_HEIGHT + 12
COLUMN = 190
MARGIN = 14

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1a1a1a; text-anchor: middle }
  .name { font-weight: 600 } .small { font-size: 11px; fill: #555 }
  .line { stroke: #1a1a1a; stroke-width: 1.4; fill: none } .shortcut { stroke-width: 3 }
  rect { stroke: #1a1a1a; stroke-width: 1 }
  .weight { fill: #eeeeee } .bn { fill: #9ecae9 } .relu { fill: #fdb863 }
  .paper { fill: #ffffff; stroke: none }
"""


def figures_svg(figures: Sequence[Figure]) -> str:
    """Units side by side as one SVG document."""
    names = [figure.name for figure in figures]
    tallest = max(len(figure.branch) for figure in figures)
    longest = max(len(figure.at("after_add")) for figure in figures)
    height = 2 * MARGIN + 60 + (tallest + longest) * STEP + 100
    column = max(COLUMN, 8 * max(map(len, names)) + 2 * MARGIN)
    width = column * len(figures)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'aria-label="Residual units: {escape(", ".join(names))}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
    ]
    for index, figure in enumerate(figures):
        left = index * column + (column - COLUMN) // 2
        parts += _svg_unit(figure, left, tallest, longest)
    return "\n".join([*parts, "</svg>", ""])


def _svg_unit(figure: Figure, left: int, tallest: int, longest: int) -> Iterator[str]:
    """One unit, in a column that starts at x = `left`; the addition is at one height in all."""
    shortcut, middle = left + 56, left + 134
    middle_of_both = (shortcut + middle) // 2
    top = MARGIN + 44
    addition = top + tallest * STEP + 16
    bottom = addition + 22 + longest * STEP + 14
    yield svg_text(shortcut, MARGIN + 10, "x", "small")
    yield svg_line(shortcut, MARGIN + 16, shortcut, addition - 9, "shortcut")
    yield svg_path(f"M{shortcut},{top - 16} H{middle} V{addition} H{shortcut + 9}")
    yield f'<circle class="line" cx="{shortcut}" cy="{addition}" r="9" style="fill:#fff"/>'
    yield svg_line(shortcut - 5, addition, shortcut + 5, addition)
    yield svg_line(shortcut, addition - 5, shortcut, addition + 5)
    yield svg_line(shortcut, addition + 9, shortcut, bottom, "shortcut")
    spare = (tallest - len(figure.branch)) * STEP / 2  # above and below the boxes
    for index, box in enumerate(figure.branch):
        yield from _svg_box(middle, top + spare + index * STEP, box)
    for index, box in enumerate(figure.at("after_add")):
        yield from _svg_box(shortcut, addition + 24 + index * STEP, box)
    yield svg_path(
        f"M{shortcut - 5},{bottom - 7} L{shortcut},{bottom} L{shortcut + 5},{bottom - 7}"
    )
    yield svg_text(middle_of_both, bottom + 24, figure.name, "name")
    yield svg_text(middle_of_both, bottom + 42, figure.caption, "small")


def _svg_box(middle: float, top: float, box: Box) -> Iterator[str]:
    kind = "weight" if box.op == "conv" else box.op
    yield (
        f'<rect class="{kind}" x="{middle - BOX_WIDTH / 2:g}" y="{top:g}" width="{BOX_WIDTH}" '
        f'height="{BOX_HEIGHT}" rx="3"/>'
    )
    yield svg_text(middle, top + 17, box.label)


def svg_text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def svg_line(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    return f'<line class="line {kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def svg_path(d: str) -> str:
    return f'<path class="line" d="{d}"/>'
