"""A residual unit as a vector figure, drawn as figure 4 of arXiv:1603.05027 draws it.

The signal runs down. The shortcut is the straight line on the left, the branch the column of boxes
on the right; ops of an ordering are coloured, convolutions are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

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


def units_svg(
    orderings: Sequence[Ordering], captions: Sequence[str], unit: UnitKind = "basic"
) -> str:
    """Units side by side as one SVG document.

    Args:
        captions: a line under each unit's name, such as its figure letter.
    """
    columns = [(_branch(ordering, unit), _boxes(ordering.after_add)) for ordering in orderings]
    tallest = max(len(branch) for branch, _ in columns)
    longest = max(len(after) for _, after in columns)
    step = BOX[1] + GAP
    height = 2 * MARGIN + 60 + (tallest + longest) * step + 100
    width = COLUMN * len(orderings)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'aria-label="Residual units: {escape(", ".join(o.name for o in orderings))}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
    ]
    for index, (branch, after) in enumerate(columns):
        name, caption = orderings[index].name, captions[index]
        parts += _unit(index * COLUMN, branch, after, tallest, longest, name, caption)
    return "\n".join([*parts, "</svg>", ""])


def _branch(ordering: Ordering, unit: UnitKind) -> list[Row]:
    """The boxes of the branch from top to bottom."""
    rows = _boxes(ordering.lead)
    for index, kernel in enumerate(KERNELS[unit]):
        rows += _boxes(ordering.between) if index else []
        rows.append(Row("weight", f"conv {kernel}×{kernel}"))
    return rows + _boxes(ordering.trail)


def _boxes(ops: Sequence[str]) -> list[Row]:
    return [Row(op, LABELS[op]) for op in ops]


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
