"""Training curves: the runs of each variant as one band, drawn alike on the page and in files.

It looks like the paper's figure 6: test error solid on the right axis, training loss dashed
on the left, logarithmic one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from resvar.console import percent
from resvar.reports.findings import Group
from resvar.reports.plotting import (
    Picture,
    panels,
    plain_log_axis,
    style,
    text_inches,
    titled,
    variant_label,
    whole_number_axis,
)
from resvar.reports.records import Record, RunState, settings_of
from resvar.reports.verdicts import V1

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[np.float64]]

MOST_POINTS = 200
"""Points of a curve; the paper's protocol evaluates 164 times."""

ALL_POINTS = 24_000
"""Points of all curves of a page together, which bounds its size for any number of cells."""

FEWEST_POINTS = 24

LONGEST_LABEL = 30
"""Letters of a variant's name in a legend."""

FEW_POINTS = 25
"""A curve with more evaluations is drawn without a marker at each."""

BAND = {"low": "min", "error": "median", "high": "max", "loss": "median"}
"""The columns of a band, and how each is taken over the runs."""


@dataclass(frozen=True)
class DepthCurves:
    """The curves of a group at one depth.

    Attributes:
        grid: iterations, float64 [points].
        bands: variant → its band, a row per point of the grid.
        runs: variant → the runs in its band.
    """

    depth: int
    grid: Array
    bands: dict[str, pandas.DataFrame]
    runs: dict[str, list[Record]]

    @property
    def several(self) -> bool:
        """Whether a band contains more than one run."""
        return any(len(records) > 1 for records in self.runs.values())

    def unfinished(self, variant: str) -> int:
        """How many of a variant's runs are not finished."""
        return sum(record.state is not RunState.DONE for record in self.runs[variant])

    @cached_property
    def error_limits(self) -> tuple[float, float, float]:
        """Lowest and highest test error to show, and the highest of all.

        The start of training is cut off, as in the paper's figures, where it dwarfs the end.
        """
        top = max(float(band.high.max()) for band in self.bands.values())
        bottom = min(float(band.low.min()) for band in self.bands.values())
        at_the_end = max(float(band.error.dropna().iloc[-1]) for band in self.bands.values())
        limit = min(top, 3 * at_the_end) if at_the_end > 0 else top
        return (0.0 if bottom < 0.55 * limit else bottom), limit, top

    @cached_property
    def loss_limits(self) -> tuple[float, float]:
        """The ends of the loss axis, slightly outside the positive losses."""
        positive = [band.loss[band.loss > 0] for band in self.bands.values()]
        low = min((float(losses.min()) for losses in positive if len(losses)), default=0.1)
        high = max((float(losses.max()) for losses in positive if len(losses)), default=1.0)
        room = math.exp(max(0.06, 0.06 * (math.log(high) - math.log(low))))
        return low / room, high * room


def depth_curves(group: Group, depth: int, most: int = MOST_POINTS) -> DepthCurves | None:
    """The curves at one depth with at most `most` points each; None where no run has metrics."""
    runs: dict[str, list[Record]] = {variant: [] for variant in group.variants}
    for record in with_curve(group):
        if settings_of(record).depth == depth:
            runs[settings_of(record).variant].append(record)
    runs = {variant: records for variant, records in runs.items() if records}
    if not runs:
        return None
    curves = {variant: [metrics_of(r) for r in records] for variant, records in runs.items()}
    grid = common_grid([curve for held in curves.values() for curve in held], most)
    bands = {variant: band_of(held, grid) for variant, held in curves.items()}
    return DepthCurves(depth, grid, bands, runs)


def depths_with_curves(group: Group) -> set[int]:
    """The depths at which a run has metrics."""
    return {settings_of(record).depth for record in with_curve(group)}


def with_curve(group: Group) -> list[Record]:
    """The runs with at least one evaluation, copies left out."""
    return [
        record
        for record in group.records
        if record.metrics is not None and len(record.metrics) and record.folder not in group.copies
    ]


def metrics_of(record: Record) -> pandas.DataFrame:
    """The metrics of a run that has some."""
    assert record.metrics is not None
    return record.metrics


def points_per_curve(groups: Sequence[Group]) -> int:
    """How many points a curve may have for all to stay within `ALL_POINTS`."""
    cells = {
        (index, settings_of(record).variant, settings_of(record).depth)
        for index, group in enumerate(groups)
        for record in with_curve(group)
    }
    return max(FEWEST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, len(cells))))


# --- several runs as one band ---------------------------------------------------------------------


def common_grid(curves: Sequence[pandas.DataFrame], most: int) -> Array:
    """The iterations at which any of the curves was evaluated, float64 [at most `most`].

    Where there are more than `most`, they are thinned out evenly; the first and the last stay.
    """
    import numpy as np

    grid = np.unique(np.concatenate([curve["iteration"] for curve in curves]).astype(np.float64))
    if len(grid) > most:
        grid = grid[np.linspace(0, len(grid) - 1, most).round().astype(np.int64)]
    return grid


def band_of(curves: Sequence[pandas.DataFrame], grid: Array) -> pandas.DataFrame:
    """The runs of a cell over a grid of iterations.

    A curve is a straight line between two evaluations; before its first and after its last one it
    does not count. Evaluations between two points of the grid still widen the band.

    Args:
        curves: rows of metrics, of at least one run.

    Returns:
        A row per point of the grid, NaN where no run has an evaluation before and after it:
        `low` and `high`, the extremes of the test error since the point before; `error` and
        `loss`, medians over the runs of test error (percent) and training loss.
    """
    import numpy as np
    import pandas

    columns: dict[str, list[Array]] = {name: [] for name in BAND}
    for curve in curves:
        x = curve["iteration"].to_numpy(np.float64)
        y = curve["test_error"].to_numpy(np.float64)
        error = np.interp(grid, x, y, np.nan, np.nan) if len(x) else np.full(len(grid), np.nan)
        low, high = error.copy(), error.copy()
        at = np.minimum(np.searchsorted(grid, x), len(grid) - 1)
        np.fmin.at(low, at, y)
        np.fmax.at(high, at, y)
        columns["low"].append(np.where(np.isnan(error), np.nan, low))
        columns["error"].append(error)
        columns["high"].append(np.where(np.isnan(error), np.nan, high))
        loss = curve["train_loss"].to_numpy(np.float64)
        columns["loss"].append(np.interp(grid, x, loss, np.nan, np.nan) if len(x) else error)
    return pandas.DataFrame(
        {name: pandas.DataFrame(columns[name]).agg(over_runs) for name, over_runs in BAND.items()}
    )


# --- drawing --------------------------------------------------------------------------------------


def curve_picture(group: Group, depth: int) -> Picture:
    """A panel per variant, with `original`: test error solid, training loss dashed."""
    curves = depth_curves(group, depth)
    assert curves is not None
    shown = [name for name in curves.bands if name != V1] or [V1]
    columns = min(len(shown), 2 if len(shown) <= 4 else 3)
    rows = -(-len(shown) // columns)

    def label(name: str) -> str:
        return f"{variant_label(name, LONGEST_LABEL)}, n = {len(curves.runs[name])}"

    widest = max(text_inches(label(name), 7) for name in curves.bands)
    abreast = 2 if widest < 1.0 else 1
    size = (max(4.6, 0.9 + 2.9 * columns), 1.3 + 1.9 * rows)
    figure, axes = panels(rows, columns, size, sharex=True)
    places = [panel for row in axes for panel in row]

    def look(name: str) -> dict[str, Any]:
        colour, _, marker = style(name)
        step = max(1, int(curves.bands[name].error.notna().sum()) // FEW_POINTS * 4)
        return {"color": colour, "linewidth": 1.0 if name == V1 else 1.8, "marker": marker,
                "markevery": step, "label": label(name)}  # fmt: skip

    for index, (panel, name) in enumerate(zip(places, shown, strict=False)):
        pair = [V1, name] if V1 in curves.bands and name != V1 else [name]
        error_panel = draw_curves(panel, curves, pair, look)
        # Above the panel, where no curve can be.
        error_panel.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=abreast,
                           frameon=False, fontsize=7, handlelength=2.2, borderaxespad=0.2,
                           borderpad=0.2, labelspacing=0.2)  # fmt: skip
        if index % columns == 0:
            panel.set_ylabel("training loss")
        else:
            panel.tick_params(axis="y", which="both", labelleft=False)
        if index % columns == columns - 1 or index == len(shown) - 1:
            error_panel.set_ylabel("test error, %")
        else:
            error_panel.tick_params(axis="y", labelright=False)
        if index >= len(shown) - columns:
            panel.set_xlabel("iteration")
            panel.tick_params(labelbottom=True)
    for panel in places[len(shown) :]:
        panel.set_axis_off()
    caption = "Test error solid, right axis; training loss dashed, left axis."
    if curves.several:
        caption += (
            " Lines: medians of n runs; bands: range of the runs, lowest to highest test error."
        )
    _, limit, top = curves.error_limits
    if top > limit:
        caption += f" Test errors above {percent(limit, 1)} are cut off."
    if cut := [
        f"{unfinished} of {variant_label(name, LONGEST_LABEL)}"
        for name in curves.runs
        if (unfinished := curves.unfinished(name))
    ]:
        caption += f" n includes unfinished runs: {', '.join(cut)}."
    return titled(f"Training, ResNet-{depth}", group.heading, figure, caption)


def draw_curves(
    loss_panel: Axes,
    curves: DepthCurves,
    variants: Sequence[str],
    look: Callable[[str], dict[str, Any]],
    named: bool = False,
) -> Axes:
    """Draw the bands of some variants; returns the axes of the test errors.

    Args:
        look: the properties of a variant's solid line; the dashed one has no marker.
        named: the artists get the ids `error-0`, `loss-0`, `band-0`, `error-1` and so on.
    """
    error_panel = loss_panel.twinx()
    error_panel.grid(visible=False)
    error_panel.spines["right"].set_visible(True)
    for number, name in enumerate(variants):
        band, line = curves.bands[name], look(name)
        ids = {kind: f"{kind}-{number}" if named else None for kind in ("error", "loss", "band")}
        if len(curves.runs[name]) > 1:
            error_panel.fill_between(
                curves.grid, band.low, band.high,
                color=line.get("color"), alpha=0.2, linewidth=0, gid=ids["band"],
            )  # fmt: skip
        single = band.loss.notna().sum() == 1  # no line, so a marker
        loss = line | {"linestyle": "--", "marker": "_" if single else "", "markevery": None}
        loss_panel.plot(curves.grid, band.loss.where(band.loss > 0), gid=ids["loss"], **loss)
        error_panel.plot(curves.grid, band.error, gid=ids["error"], **line)
    low, high, _ = curves.error_limits
    room = 0.06 * (high - low) or 0.1
    error_panel.set_ylim(low - room, high + room)
    loss_panel.set_yscale("log")
    loss_panel.set_ylim(*curves.loss_limits)
    plain_log_axis(loss_panel.yaxis)
    loss_panel.set_xlim(0, float(curves.grid[-1]) * 1.02)
    whole_number_axis(loss_panel.xaxis, 5)
    return error_panel
