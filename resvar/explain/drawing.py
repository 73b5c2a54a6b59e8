"""A residual unit drawn as figure 4 of arXiv:1603.05027 draws it: a vector figure, or text.

The signal runs down. The shortcut is the straight line on the left, the branch the column of boxes
on the right. In the vector figure the ops of an ordering are coloured by what they are; in the
terminal by where they stand, which is also written beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from rich.console import Console, ConsoleOptions
from rich.text import Text

from resvar.models.architecture import KERNELS, UnitKind
from resvar.models.ordering import Ordering

BOX = 92, 24
GAP = 12
COLUMN = 190
MARGIN = 14
LABELS = {"bn": "BN", "relu": "ReLU"}

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1a1a1a; text-anchor: middle }
  .name { font-weight: 600 } .small { font-size: 11px; fill: #555 }
  .line { stroke: #1a1a1a; stroke-width: 1.4; fill: none } .shortcut { stroke-width: 3 }
  rect { stroke: #1a1a1a; stroke-width: 1 }
  .weight { fill: #eeeeee } .bn { fill: #9ecae9 } .relu { fill: #fdb863 }
  .paper { fill: #ffffff; stroke: none }
"""


@dataclass(frozen=True)
class Row:
    """A box of the branch or below the addition; `op` is `weight`, `bn` or `relu`."""

    op: str
    label: str


@dataclass(frozen=True)
class Figure:
    """A unit to draw: its ordering, its convolutions, and a line under its name."""

    ordering: Ordering
    caption: str = ""
    unit: UnitKind = "basic"
    cardinality: int = 1

    @property
    def sections(self) -> dict[str, list[Row]]:
        """The boxes at each place from top to bottom: `lead`, `conv 1`, `between 1`, …"""
        sections = {"lead": _boxes(self.ordering.lead)}
        for number, kernel in enumerate(KERNELS[self.unit], start=1):
            grouped = kernel == 3 and self.cardinality > 1
            label = f"3×3, C={self.cardinality}" if grouped else f"conv {kernel}×{kernel}"
            if number > 1:
                sections[f"between {number - 1}"] = _boxes(self.ordering.between)
            sections[f"conv {number}"] = [Row("weight", label)]
        sections["trail"] = _boxes(self.ordering.trail)
        sections["after_add"] = _boxes(self.ordering.after_add)
        return sections

    @property
    def branch(self) -> list[Row]:
        """All boxes between the split and the addition."""
        places = (place for place in self.sections if place != "after_add")
        return [row for place in places for row in self.sections[place]]


def _boxes(ops: Sequence[str]) -> list[Row]:
    return [Row(op, LABELS[op]) for op in ops]


# --- in the terminal ------------------------------------------------------------------------------

LINE = 4
"""The column of the shortcut; the boxes of the branch begin three columns further on."""

LONGEST_NAME = 28
PLACE_STYLES = {"lead": "bold cyan", "trail": "bold magenta", "after_add": "bold yellow"}
LEGEND = "┃ shortcut   │ branch   ⊕ addition   [ ] convolution   ( ) BN or ReLU"


@dataclass(frozen=True)
class Drawing:
    """Units side by side for a Rich console, as many in a line as its width has room for.

    Equal places stand at equal heights, and the margin names them: without colour it says the same.
    """

    figures: Sequence[Figure]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        labels = [row.label for figure in self.figures for row in figure.branch]
        box = max(8, *map(len, labels)) + 2
        words = [word for figure in self.figures for word in (figure.ordering.name, figure.caption)]
        width = max(LINE + 3 + box, min(max(map(len, words)), LONGEST_NAME)) + 2
        fitting = max(1, (options.max_width - len("after_add ")) // width)
        lines = -(-len(self.figures) // fitting)
        per_line = -(-len(self.figures) // lines)
        for first in range(0, len(self.figures), per_line):
            yield from _side_by_side(self.figures[first : first + per_line], box, width)
            yield Text()
        yield Text(LEGEND, style="dim")


def _side_by_side(figures: Sequence[Figure], box: int, width: int) -> Iterator[Text]:
    """The lines of some units, each line beginning with the name of its place."""
    deepest = max((figure.sections for figure in figures), key=len)
    heights = {
        place: max(len(figure.sections.get(place, ())) for figure in figures) for place in deepest
    }
    columns = [list(_unit_lines(figure, heights, box, width)) for figure in figures]
    for label, *cells in zip(_margin(heights), *columns, strict=True):
        line = Text(no_wrap=True).append(f"{label:<10}", style=PLACE_STYLES.get(label, "dim"))
        for cell in cells:
            cell.align("left", width)
            line.append_text(cell)
        line.rstrip()
        yield line


def _margin(heights: dict[str, int]) -> Iterator[str]:
    """What stands at the left of each line; it goes line by line with `_unit_lines`."""
    yield from ("", "", "", "")
    for place, height in heights.items():
        if place == "after_add":
            yield "addition"
        word = "" if place.startswith("conv") else place.split(" ")[0]
        yield from [word, *[""] * (height - 1)][:height]
    yield ""


def _unit_lines(figure: Figure, heights: dict[str, int], box: int, width: int) -> Iterator[Text]:
    """One unit from its name to the arrow at its foot."""
    name = Text(figure.ordering.name, style="bold")
    name.truncate(width - 2, overflow="ellipsis")
    yield name
    caption = Text(figure.caption, style="dim")
    caption.truncate(width - 2, overflow="ellipsis")
    yield caption
    # Both ends of the branch lie over the middle of its boxes.
    reach = 2 + box // 2
    yield Text(" " * LINE + "x")
    yield Text(" " * LINE + "┣" + "─" * reach + "┐")
    for place, height in heights.items():
        rows = figure.sections.get(place, [])
        style = PLACE_STYLES.get(place, "")
        if place == "after_add":
            yield Text(" " * LINE + "⊕" + "─" * reach + "┘")
            for row in rows:
                yield Text(f"{_bracketed(row, 8)}", style=style)
            yield from [Text(" " * LINE + "┃")] * (height - len(rows))
            continue
        for row in rows:
            yield Text(" " * LINE + "┃  ").append(_bracketed(row, box), style=style)
        for _ in range(height - len(rows)):
            yield Text(" " * LINE + "┃" + " " * reach + "│")
    yield Text(" " * LINE + "▼")


def _bracketed(row: Row, width: int) -> str:
    left, right = "[]" if row.op == "weight" else "()"
    return f"{left}{row.label:^{width - 2}}{right}"


# --- as a vector figure ---------------------------------------------------------------------------


def units_svg(
    orderings: Sequence[Ordering], captions: Sequence[str], unit: UnitKind = "basic"
) -> str:
    """Units side by side as one SVG document.

    Args:
        captions: a line under each unit's name, such as its figure letter.
    """
    pairs = zip(orderings, captions, strict=True)
    return figures_svg([Figure(ordering, caption, unit) for ordering, caption in pairs])


def figures_svg(figures: Sequence[Figure]) -> str:
    """Units side by side as one SVG document, each with convolutions of its own."""
    columns = [(figure.branch, figure.sections["after_add"]) for figure in figures]
    names = [figure.ordering.name for figure in figures]
    tallest = max(len(branch) for branch, _ in columns)
    longest = max(len(after) for _, after in columns)
    step = BOX[1] + GAP
    height = 2 * MARGIN + 60 + (tallest + longest) * step + 100
    column = max(COLUMN, 8 * max(map(len, names)) + 2 * MARGIN)
    width = column * len(figures)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'aria-label="Residual units: {escape(", ".join(names))}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
    ]
    for index, (branch, after) in enumerate(columns):
        left = index * column + (column - COLUMN) // 2
        parts += _unit(left, branch, after, tallest, longest, names[index], figures[index].caption)
    return "\n".join([*parts, "</svg>", ""])


def _unit(
    left: int,
    branch: Sequence[Row],
    after: Sequence[Row],
    tallest: int,
    longest: int,
    name: str,
    caption: str,
) -> list[str]:
    """One unit, its column beginning at x = `left`; all units share the height of the addition."""
    step = BOX[1] + GAP
    shortcut, middle = left + 56, left + 134
    middle_of_both = (shortcut + middle) // 2
    top = MARGIN + 44
    addition = top + tallest * step + 16
    bottom = addition + 22 + longest * step + 14
    parts = [
        _text(shortcut, MARGIN + 10, "x", "small"),
        _line(shortcut, MARGIN + 16, shortcut, addition - 9, "shortcut"),
        _path(f"M{shortcut},{top - 16} H{middle} V{addition} H{shortcut + 9}"),
        f'<circle class="line" cx="{shortcut}" cy="{addition}" r="9" style="fill:#fff"/>',
        _line(shortcut - 5, addition, shortcut + 5, addition),
        _line(shortcut, addition - 5, shortcut, addition + 5),
        _line(shortcut, addition + 9, shortcut, bottom, "shortcut"),
    ]
    # Boxes hang evenly between the split and the addition.
    spare = (tallest - len(branch)) * step / 2
    for index, row in enumerate(branch):
        parts += _box(middle, top + spare + index * step, row)
    for index, row in enumerate(after):
        parts += _box(shortcut, addition + 24 + index * step, row)
    parts += [
        _path(f"M{shortcut - 5},{bottom - 7} L{shortcut},{bottom} L{shortcut + 5},{bottom - 7}"),
        _text(middle_of_both, bottom + 24, name, "name"),
        _text(middle_of_both, bottom + 42, caption, "small"),
    ]
    return parts


def _box(middle: float, top: float, row: Row) -> list[str]:
    width, height = BOX
    return [
        f'<rect class="{row.op}" x="{middle - width / 2:g}" y="{top:g}" width="{width}" '
        f'height="{height}" rx="3"/>',
        _text(middle, top + 17, row.label),
    ]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    return f'<line class="line {kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def _path(d: str) -> str:
    return f'<path class="line" d="{d}"/>'
