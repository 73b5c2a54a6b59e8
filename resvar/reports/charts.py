"""The geometry of the curves on the page: a chart per depth, in the units of its SVG's viewBox.

The look is that of the paper's figure 6: the training loss dashed, on the left and logarithmic; the
test error solid, on the right; between its lowest and highest seed a band. No markup here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resvar.reports.curves import Band, Curve, band, common_grid, error_range
from resvar.reports.findings import Group
from resvar.reports.records import Record, State, settings_of

if TYPE_CHECKING:
    from resvar.reports.curves import Array

WIDTH, HEIGHT = 520, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 470, 26, 284
"""The plot inside the viewBox."""

MOST_POINTS = 200
"""Of a curve; the paper's protocol evaluates 164 times."""

ALL_POINTS = 24_000
"""Of all curves of a page together, so that its size is bounded however many cells there are."""

FEWEST_POINTS = 24

MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",  # circle
    "M-3.6 -3.6h7.2v7.2h-7.2z",  # square
    "M0 -4.6L4.4 3.2H-4.4z",  # triangle
    "M0 4.6L4.4 -3.2H-4.4z",  # triangle, point down
    "M0 -5L4.4 0L0 5L-4.4 0z",  # diamond
    "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",  # plus
    "M-4.5 -3L-3 -4.5L0 -1.5L3 -4.5L4.5 -3L1.5 0L4.5 3L3 4.5L0 1.5L-3 4.5L-4.5 3L-1.5 0z",  # cross
    "M-4.6 0L-2.3 -4H2.3L4.6 0L2.3 4H-2.3z",  # hexagon
    "M0 -5L1.3 -1.6H4.8L2 0.6L3 4.2L0 2.1L-3 4.2L-2 0.6L-4.8 -1.6H-1.3z",  # star
)
"""Shapes around the origin: a curve is known by its shape where there is no colour.

The first five, as their colours in report.css, are those of `plotting.STYLES`: an ordering looks
alike on the page and in the figures."""


@dataclass(frozen=True)
class Tick:
    """A label on an axis and where it stands, in viewBox units."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One variant on a chart.

    Attributes:
        style: the number of its colour and marker; the same in all charts of a group.
        runs: how many make the band.
        unfinished: how many of them are not finished.
        band, error, loss: the `d` of paths; several pieces where there are gaps.
        marks: points of the error at which its marker stands.
        figures: low, error, high and loss at each point of the grid, None where there is none.
        last: the same at the last point that has a figure.
    """

    name: str
    style: int
    runs: int
    unfinished: int
    band: str
    error: str
    loss: str
    marks: tuple[tuple[float, float], ...]
    figures: dict[str, list[float | None]]
    last: dict[str, float]

    @property
    def marker(self) -> str:
        """Another one for the second nine variants, so that colour and shape together differ."""
        return MARKERS[(self.style + self.style // len(MARKERS)) % len(MARKERS)]


@dataclass(frozen=True)
class Chart:
    """The curves at one depth.

    Attributes:
        x: the grid, in iterations; `places` in viewBox units.
        error_places: two test errors and where they stand, from which a script finds the others.
        cut: the test error above which the chart shows nothing, or None.
    """

    depth: int
    lines: tuple[Line, ...]
    x: tuple[int, ...]
    places: tuple[float, ...]
    x_ticks: tuple[Tick, ...]
    error_ticks: tuple[Tick, ...]
    loss_ticks: tuple[Tick, ...]
    error_places: tuple[tuple[float, float], tuple[float, float]]
    cut: float | None
    evaluations: int

    @property
    def several(self) -> bool:
        """Whether any of its lines stands for more than one run."""
        return any(line.runs > 1 for line in self.lines)


def charts(group: Group, most: int) -> Iterator[Chart]:
    """A chart for every depth of a group that has curves, with `most` points a curve."""
    for depth in group.depths:
        records = drawn_by_variant(group, depth)
        if records:
            yield _chart(group, depth, records, most)


def drawn(group: Group) -> list[Record]:
    """The runs whose curves count: those with a row of metrics, copies left out."""
    return [
        r for r in group.records if r.curve and r.curve.iteration and r.folder not in group.copies
    ]


def drawn_by_variant(group: Group, depth: int) -> dict[str, list[Record]]:
    """The runs at one depth whose curves count, by variant, in the order of the group."""
    found: dict[str, list[Record]] = {variant: [] for variant in group.variants}
    for record in drawn(group):
        settings = settings_of(record)
        if settings.depth == depth:
            found[settings.variant].append(record)
    return {variant: records for variant, records in found.items() if records}


def curves_of(records: Sequence[Record]) -> list[Curve]:
    """The curves of runs that have one."""
    return [record.curve for record in records if record.curve is not None]


def points_per_curve(groups: Sequence[Group]) -> int:
    """How many points a curve may have for all to stay within `ALL_POINTS`."""
    cells = {
        (index, settings_of(record).variant, settings_of(record).depth)
        for index, group in enumerate(groups)
        for record in drawn(group)
    }
    return max(FEWEST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, len(cells))))


def _chart(
    group: Group,
    depth: int,
    records: Mapping[str, Sequence[Record]],
    most: int,
) -> Chart:
    curves = {name: curves_of(held) for name, held in records.items()}
    every = [curve for held in curves.values() for curve in held]
    grid = common_grid(every, most)
    bands = {name: band(held, grid) for name, held in curves.items()}
    across = _Axis(0.0, float(grid[-1]), LEFT, RIGHT)
    up, cut = _error_axis(list(bands.values()))
    loss_up = _loss_axis(list(bands.values()))
    unfinished = {
        name: sum(record.state is not State.DONE for record in held)
        for name, held in records.items()
    }
    lines = tuple(
        _line(name, group.variants.index(name), found, grid, (across, up, loss_up),
              (rank, len(bands)), (len(curves[name]), unfinished[name]))
        for rank, (name, found) in enumerate(bands.items())
    )  # fmt: skip
    return Chart(
        depth=depth,
        lines=lines,
        x=tuple(int(x) for x in grid),
        places=tuple(round(across(x), 1) for x in grid),
        x_ticks=tuple(Tick(round(across(t), 1), f"{t:,.0f}") for t in nice_ticks(0, grid[-1], 4)
                      if t == int(t)),
        error_ticks=tuple(
            Tick(round(up(t), 1), f"{t:g}") for t in nice_ticks(up.low, up.high, 5)
        ),
        loss_ticks=tuple(
            Tick(round(loss_up(math.log10(t)), 1), f"{t:g}")
            for t in log_ticks(10**loss_up.low, 10**loss_up.high)
        ),
        error_places=((up.low, up(up.low)), (up.high, up(up.high))),
        cut=cut,
        evaluations=max(len(curve.iteration) for curve in every),
    )  # fmt: skip


# --- axes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """A linear map from values to viewBox units."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)


def _error_axis(bands: Sequence[Band]) -> tuple[_Axis, float | None]:
    """Test errors between round numbers, and the higher one if some errors are above it."""
    low, limit, top = error_range(bands)
    ticks = nice_ticks(low, max(limit, low + 0.1), 5)
    step = ticks[1] - ticks[0]
    low = math.floor(low / step + 1e-9) * step
    high = min(math.ceil(limit / step - 1e-9) * step, 100.0)
    high = high if high > low else low + step
    return _Axis(low, high, BOTTOM, TOP), high if top > high else None


def _loss_axis(bands: Sequence[Band]) -> _Axis:
    """The decimal logarithm of training losses."""
    import numpy as np

    losses = np.concatenate([found.loss for found in bands])
    losses = losses[losses > 0]
    if not len(losses):
        return _Axis(-1.0, 0.0, BOTTOM, TOP)
    low, high = float(np.log10(losses.min())), float(np.log10(losses.max()))
    room = max(0.05, 0.06 * (high - low))
    return _Axis(low - room, high + room, BOTTOM, TOP)


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], about so many; at least 2."""
    span = max(float(high) - float(low), 1e-9)
    size = 10.0 ** math.floor(math.log10(span / about))
    step = next(size * f for f in (1, 2, 5, 10) if size * f * about >= span * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    found = [round(k * step, 10) for k in range(first, last + 1)]
    return found if len(found) > 1 else [round(low, 10), round(low + step, 10)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high] for a logarithmic axis, at most seven."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) <= 6:
            break
    every = -(-len(found) // 7)
    return found[::every] if found else [float(f"{low:.1e}")]


# --- lines ----------------------------------------------------------------------------------------


def _line(
    name: str,
    style: int,
    found: Band,
    grid: Array,
    axes: tuple[_Axis, _Axis, _Axis],
    place: tuple[int, int],
    runs: tuple[int, int],
) -> Line:
    """`place`: the rank of the line among so many, so that markers do not hide each other."""
    across, up, loss_up = axes
    error = _points(grid, found.error, across, up)
    low, high = _points(grid, found.low, across, up), _points(grid, found.high, across, up)
    logs = [math.log10(loss) if loss > 0 else math.nan for loss in found.loss]
    there = [index for index, point in enumerate(error) if point is not None]
    figures = {
        "low": _figures(found.low, 2), "error": _figures(found.error, 2),
        "high": _figures(found.high, 2), "loss": _figures(found.loss, None),
    }  # fmt: skip
    last = {key: values[there[-1]] for key, values in figures.items()}
    return Line(
        name=name,
        style=style,
        runs=runs[0],
        unfinished=runs[1],
        band=_area(low, high) if runs[0] > 1 else "",
        error=_path(error),
        loss=_path(_points(grid, logs, across, loss_up)),
        marks=tuple(p for p in (error[i] for i in _marked(there, place)) if p is not None),
        figures=figures,
        last={key: value for key, value in last.items() if value is not None},
    )


Point = tuple[float, float]


def _points(grid: Array, values: Any, across: _Axis, up: _Axis) -> list[Point | None]:
    """Where values stand, a little beyond the plot at most; None for NaN."""
    return [
        None if math.isnan(y) else (round(across(x), 1), round(min(max(up(y), -999), 999), 1))
        for x, y in zip(grid, values, strict=True)
    ]


def _path(points: Sequence[Point | None]) -> str:
    """A line through the points, broken where one is None."""
    words, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            words.append(f"{pen}{point[0]:g} {point[1]:g}")
            pen = "L"
    return "".join(words)


def _area(low: Sequence[Point | None], high: Sequence[Point | None]) -> str:
    """Between two lines, a closed piece for every stretch without a gap."""
    pieces: list[tuple[list[Point], list[Point]]] = [([], [])]
    for below, above in zip(low, high, strict=True):
        if below is None or above is None:
            pieces.append(([], []))
        else:
            pieces[-1][0].append(below)
            pieces[-1][1].append(above)
    return "".join(f"{_path(up + down[::-1])}Z" for down, up in pieces if len(down) > 1)


def _marked(there: Sequence[int], place: tuple[int, int], count: int = 6) -> list[int]:
    """About `count` of the indices, shifted by the line's rank among the others."""
    if len(there) <= count:
        return list(there)
    rank, among = place
    step = len(there) / count
    return [there[int(step * (k + (rank + 0.5) / among))] for k in range(count)]


def _figures(values: Array, decimals: int | None) -> list[float | None]:
    """Numbers for JSON: `decimals` places, or four significant digits."""
    return [
        None if math.isnan(v) else round(float(v), decimals) if decimals else float(f"{v:.4g}")
        for v in values
    ]
