"""Draw the pictures of docs/residual-networks.md that `resvar` does not draw.

    python scripts/draw_residual_networks.py          # both, into docs/residual-networks/
    python scripts/draw_residual_networks.py forms --out pictures

`timeline` has a row per network of docs/residual-networks/timeline.yaml: year, name, layers, top-5
error, and what was new. Bars of layers are on a logarithmic scale, bars of errors on a linear one.
`forms` has the three forms of ResNeXt's unit (arXiv:1611.05431, figure 3).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from resvar.strict_yaml import read_yaml

FOLDER = Path(__file__).parent.parent / "docs" / "residual-networks"

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1a1a1a }
  .head { font-size: 12px; fill: #555 } .name { font-weight: 600 } .middle { text-anchor: middle }
  .end { text-anchor: end } .in { font-size: 13px; text-anchor: middle }
  .layers { fill: #9ecae9 } .error { fill: #fdb863 } .weight { fill: #eeeeee; stroke: #1a1a1a }
  .rule { stroke: #cccccc } .line { stroke: #1a1a1a; stroke-width: 1.4; fill: none }
  .shortcut { stroke-width: 3 } .paper { fill: #ffffff }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="timeline, forms; default: both")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = {"timeline": timeline_svg, "forms": forms_svg}
    if unknown := set(options.names) - set(pictures):
        parser.error(f"no picture is named {', '.join(sorted(unknown))}")
    for name in options.names or pictures:
        path = options.out / f"{name}.svg"
        path.write_text(pictures[name](), encoding="utf-8")
        print(path)


# --- the time line --------------------------------------------------------------------------------

ROW, TOP, MARGIN = 34, 58, 16
YEAR, NAME, LAYERS, ERROR, NEW, RIGHT = 16, 62, 196, 328, 470, 868
"""Left edges of the columns, and the right edge of the picture."""

BAR = 88
"""The longest bar, in pixels."""


def timeline_svg() -> str:
    """The rows of the data file, each with its bars."""
    networks = read_yaml(FOLDER / "timeline.yaml")["networks"]
    most_layers = max(network.get("layers", 1) for network in networks)
    most_error = max(network.get("error", 0.0) for network in networks)
    parts = [
        _text(LAYERS, 24, "layers", "head"),
        _text(LAYERS, 39, "(logarithmic)", "head"),
        _text(ERROR, 24, "ImageNet, top-5", "head"),
        _text(ERROR, 39, "test error, %", "head"),
        _text(NEW, 39, "what was new", "head"),
    ]
    for index, network in enumerate(networks):
        parts += _row(network, TOP + index * ROW, most_layers, most_error)
    names = ", ".join(network["network"] for network in networks)
    return _document(RIGHT, TOP + len(networks) * ROW + MARGIN, f"Time line: {names}", parts)


def _row(network: dict[str, Any], top: int, most_layers: int, most_error: float) -> Iterator[str]:
    middle = top + ROW // 2
    yield f'<line class="rule" x1="{MARGIN}" x2="{RIGHT - MARGIN}" y1="{top}" y2="{top}"/>'
    yield _text(YEAR, middle + 5, str(network["year"]))
    yield _text(NAME, middle + 5, network["network"], "name")
    yield _text(NEW, middle + 5, network["new"])
    if layers := network.get("layers"):
        yield from _bar(LAYERS, middle, math.log(layers) / math.log(most_layers), layers, "layers")
    if error := network.get("error"):
        yield from _bar(ERROR, middle, error / most_error, error, "error")


def _bar(left: int, middle: int, share: float, value: float, kind: str) -> Iterator[str]:
    width = round(BAR * share)
    yield _rect(left, middle - 9, width, 18, kind)
    yield _text(left + width + 5, middle + 5, f"{value:g}")


# --- the three forms of ResNeXt's unit ------------------------------------------------------------

PATHS, THIN, WIDE = 32, 4, 256
PANEL, BOX, WIDE_BOX, HEIGHT = 346, 88, 196, 24
SHORTCUT, COLUMNS, DOTS, MIDDLE = 18, (80, 176, 294), 235, 187
"""Across a panel: the shortcut, the middles of paths 1, 2 and 32, the dots, the middle of all."""

SPLIT, BOXES, ADD, END = 44, (66, 116, 166), 226, 254
"""Down a panel: where the signal splits, the tops of the boxes, the addition, the arrow."""


def forms_svg() -> str:
    """The forms side by side. A box is a convolution: channels in, kernel, channels out."""
    thin = [f"{WIDE}, 1×1, {THIN}", f"{THIN}, 3×3, {THIN}", f"{THIN}, 1×1, {WIDE}"]
    inner = PATHS * THIN
    wide = [f"{WIDE}, 1×1, {inner}", f"{inner}, 3×3, {inner}, {PATHS} groups"]
    last = f"{inner}, 1×1, {WIDE}"
    parts = [
        *_panel(0, "(a) aggregated", thin, []),
        *_panel(1, "(b) concatenated", thin[:2], [last]),
        *_panel(2, "(c) grouped", [], [*wide, last]),
    ]
    label = "Three forms of ResNeXt's unit: aggregated, concatenated, grouped"
    return _document(3 * PANEL, END + 44, label, parts)


def _panel(number: int, name: str, thin: list[str], wide: list[str]) -> Iterator[str]:
    """One form: convolutions that every path has for itself, then convolutions of all paths."""
    left = number * PANEL
    shortcut, middle = left + SHORTCUT, left + MIDDLE
    columns = [left + column for column in COLUMNS] if thin else [middle]
    yield _text(shortcut, SPLIT - 24, "x", "middle")
    yield _line(f"M{shortcut},{SPLIT - 18} V{ADD - 9}", "shortcut")
    yield _line(f"M{shortcut},{SPLIT} H{columns[-1]}")
    if thin:
        for column, path in zip(columns, (1, 2, PATHS), strict=True):
            yield _text(column, SPLIT - 8, f"path {path}", "head middle")
    above = SPLIT
    for top, label in zip(BOXES, [*thin, *wide], strict=True):
        if label in wide and len(columns) > 1:
            meet = (above + top) // 2
            yield from (_line(f"M{column},{above} V{meet}") for column in columns)
            yield _line(f"M{columns[0]},{meet} H{columns[-1]}")
            yield _text(columns[0] - 8, meet + 4, "join", "head end")
            columns, above = [middle], meet
        width = BOX if len(columns) > 1 else WIDE_BOX
        for column in columns:
            yield _line(f"M{column},{above} V{top}")
            yield _rect(column - width // 2, top, width, HEIGHT, "weight")
            yield _text(column, top + 17, label, "in")
        if len(columns) > 1:
            yield _text(left + DOTS, top + 16, "…", "middle")
        above = top + HEIGHT
    yield from (_line(f"M{column},{above} V{ADD}") for column in columns)
    yield _line(f"M{columns[-1]},{ADD} H{shortcut + 9}")
    yield f'<circle class="line" cx="{shortcut}" cy="{ADD}" r="9"/>'
    yield _line(f"M{shortcut - 5},{ADD} H{shortcut + 5} M{shortcut},{ADD - 5} V{ADD + 5}")
    yield _line(f"M{shortcut},{ADD + 9} V{END} m-5,-7 l5,7 l5,-7", "shortcut")
    yield _text(middle, END + 22, name, "name middle")


# --- SVG ------------------------------------------------------------------------------------------


def _document(width: int, height: int, label: str, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(label)}">'
    )
    paper = f'<rect class="paper" width="{width}" height="{height}"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", paper, *parts, "</svg>", ""])


def _rect(x: int, y: int, width: int, height: int, kind: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="2"/>'


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x}" y="{y}">{escape(text)}</text>'


def _line(path: str, kind: str = "") -> str:
    return f'<path class="{f"line {kind}".strip()}" d="{path}"/>'


if __name__ == "__main__":
    main()
