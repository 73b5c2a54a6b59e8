"""The charts of the page: the curves of one depth as an inline SVG that the page can style.

Matplotlib draws them as it draws the files. Here its colours and ids become classes and data
attributes: `report.css` colours the lines (light, dark, in print), `report.js` reads values off
them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from resvar.console import percent
from resvar.reports.curves import BAND, DepthCurves, depth_curves, draw_curves
from resvar.reports.findings import Group
from resvar.reports.plotting import MARKERS, Picture, house_style, inline_svg

if TYPE_CHECKING:
    import pandas

WIDTH, HEIGHT = 520, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 470, 26, 284
"""The plot inside the viewBox, whose unit is a point."""

COLOURS = 9
"""Colours in report.css; a tenth variant takes the first one again, with another marker."""


@dataclass(frozen=True)
class ChartLine:
    """One variant on a chart.

    Attributes:
        style: the number of its colour and marker; the same in all charts of a group.
        unfinished: how many of its `runs` are not finished.
        values: low, error, high and loss at each point of the grid, None where it has no value.
        last: the same at the last point with a test error.
        key: the id of its marker in the SVG; None where no marker is visible.
    """

    name: str
    style: int
    runs: int
    unfinished: int
    values: dict[str, list[float | None]]
    last: dict[str, float]
    key: str | None


@dataclass(frozen=True)
class Chart:
    """The curves at one depth.

    Attributes:
        id: of its figure on the page.
        svg: the drawing; an artist's class and `data-line` name what it shows and of which line.
        data: what the script needs, with short keys since there is one of each per point.
        cut: the test error above which the chart shows nothing, or None.
        points, evaluations: points of the grid, and evaluations of the longest run.
    """

    id: str
    depth: int
    svg: str
    lines: tuple[ChartLine, ...]
    data: dict[str, Any]
    several: bool
    cut: float | None
    points: int
    evaluations: int


def charts(group: Group, name: str, most: int) -> Iterator[Chart]:
    """A chart for every depth of a group that has curves.

    Args:
        name: the group's id on the page, with which the ids of its charts begin.
        most: points of a curve.
    """
    for depth in group.depths:
        curves = depth_curves(group, depth, most)
        if curves is not None:
            yield _chart(group, curves, f"{name}-resnet-{depth}")


def marker(style: int) -> str:
    """Another one for the next nine variants, so that colour and marker together differ."""
    return MARKERS[(style + style // COLOURS) % len(MARKERS)]


def _chart(group: Group, curves: DepthCurves, id: str) -> Chart:
    styles = {name: group.variants.index(name) for name in curves.bands}
    picture, scale = _draw(curves, styles, id)
    svg, keys = _styled(picture, list(styles.values()))
    lines: list[ChartLine] = []
    for name, band in curves.bands.items():
        values = {key: _rounded_values(band[key], None if key == "loss" else 2) for key in BAND}
        end = max(k for k, error in enumerate(values["error"]) if error is not None)
        last = {key: held[end] for key, held in values.items()}
        lines.append(
            ChartLine(
                name=name,
                style=styles[name],
                runs=len(curves.runs[name]),
                unfinished=curves.unfinished(name),
                values=values,
                last={key: value for key, value in last.items() if value is not None},
                key=keys[len(lines)],
            )
        )
    ends = [f"{line.name} ends at a test error of {percent(line.last['error'])}" for line in lines]
    svg.set("aria-label", f"Training curves of ResNet-{curves.depth}: {'; '.join(ends)}.")
    _, limit, top = curves.error_limits
    metrics = [r.metrics for held in curves.runs.values() for r in held if r.metrics is not None]
    data = {
        "x": [int(x) for x in curves.grid],
        "px": [round(LEFT + x / scale["x"] * (RIGHT - LEFT), 1) for x in curves.grid],
        "y": [[round(scale["low"], 4), BOTTOM], [round(scale["high"], 4), TOP]],
        "lines": [{"runs": line.runs, **line.values} for line in lines],
    }
    return Chart(
        id=id,
        depth=curves.depth,
        svg=ElementTree.tostring(svg, encoding="unicode"),
        lines=tuple(lines),
        data=data,
        several=curves.several,
        cut=limit if top > limit else None,
        points=len(curves.grid),
        evaluations=max(map(len, metrics)),
    )


def _draw(curves: DepthCurves, styles: dict[str, int], id: str) -> tuple[Picture, dict[str, float]]:
    """All variants in one panel, and the ends of its axes."""
    from matplotlib.figure import Figure

    evaluated = {name: int(band.error.notna().sum()) for name, band in curves.bands.items()}

    def look(name: str) -> dict[str, Any]:
        """About six markers, shifted by the line's rank so that they do not hide each other."""
        step = max(1, evaluated[name] // 6)
        shift = list(styles).index(name) * step // len(styles)
        return {"marker": marker(styles[name]), "markevery": (shift, step), "markersize": 8}

    with house_style({"font.size": 12.5}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        box = (LEFT / WIDTH, 1 - BOTTOM / HEIGHT)
        panel = figure.add_axes((*box, (RIGHT - LEFT) / WIDTH, (BOTTOM - TOP) / HEIGHT))
        error_panel = draw_curves(panel, curves, list(styles), look, named=True)
        for hidden in (figure, panel, error_panel):
            hidden.patch.set_visible(False)
        for x, y, words, side in (
            (4, 14, "training loss (dashed)", "left"), (WIDTH - 4, 14, "test error, %", "right"),
            ((LEFT + RIGHT) / 2, HEIGHT - 5, "iterations", "center"),
        ):  # fmt: skip
            figure.text(x / WIDTH, 1 - y / HEIGHT, words, ha=side)
    low, high = error_panel.get_ylim()
    return Picture(id, id, figure), {"x": panel.get_xlim()[1], "low": low, "high": high}


def _styled(picture: Picture, styles: list[int]) -> tuple[ElementTree.Element, list[str | None]]:
    """The SVG with classes in place of styles, and the id of each line's marker.

    Style attributes are not allowed by the page's policy; as presentation attributes they give way
    to the rules of report.css.
    """
    text = inline_svg(picture).replace("xlink:href", "href")
    root = ElementTree.fromstring(re.sub(r' xmlns(:xlink)?="[^"]*"', "", text))
    root.attrib = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img"}
    for unused in ("metadata", "defs/style/.."):
        if (found := root.find(unused)) is not None:
            root.remove(found)
    for element in root.iter():
        style = dict(item.split(": ", 1) for item in element.attrib.pop("style", "").split("; ")
                     if ": " in item and not item.startswith("font"))  # fmt: skip
        element.attrib.update(style)
        if element.tag == "path":
            element.set("d", _rounded(element.get("d", "")))
        for shape in element.iterfind("defs/path"):  # of a marker: only its class reaches its uses
            shape.set("class", "tick")
    keys: list[str | None] = [None] * len(styles)
    for group in root.iter("g"):
        kind, _, number = group.get("id", "").removeprefix(f"{picture.name}-").partition("-")
        if kind in ("error", "loss", "band"):
            line = int(number)
            group.attrib = {"class": f"{kind} s{styles[line] % COLOURS}", "data-line": number}
            for shape in group.iterfind("defs/path"):
                shape.set("class", "mark")
            if kind == "error" and (use := group.find(".//use")) is not None:
                keys[line] = use.get("href", "")
    return root, keys


def _rounded(path: str) -> str:
    """The `d` of a path in a tenth of a point."""
    return re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}", " ".join(path.split()))


def _rounded_values(column: pandas.Series[float], decimals: int | None) -> list[float | None]:
    """Numbers for JSON: `decimals` places, or four significant digits."""
    return [
        None if math.isnan(v) else round(float(v), decimals) if decimals else float(f"{v:.4g}")
        for v in column
    ]
