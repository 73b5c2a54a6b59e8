"""Figures of what the signal does along the depth, in the look of `resvar.reports.plotting`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from resvar.models.ordering import PAPER_ORDER
from resvar.probes.findings import Moment, Probe
from resvar.probes.outcome import (
    BRANCH_MEAN,
    BRANCH_NEGATIVE,
    BRANCH_STD,
    GAIN,
    GRADIENT,
    PASSED,
    SHORTCUT_MEAN,
    SHORTCUT_NEGATIVE,
    SHORTCUT_STD,
    STRAIGHT,
    Outcome,
    Series,
    Values,
    when,
)
from resvar.probes.verdicts import Cell
from resvar.reports.plotting import Picture, panels, style
from resvar.reports.tables import row_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_ABOVE = 30.0
"""Where deviations differ by a larger factor their axis is logarithmic, or one hides the rest."""

PANEL = (1.9, 1.55)
"""Inches of one small panel."""


def pictures(outcome: Outcome) -> list[Picture]:
    """All figures that the outcome gives, by depth and moment."""
    found = []
    probes = sorted(outcome.probes, key=_place)
    for depth, of_depth in groupby(probes, key=lambda probe: probe.network.depth):
        here = list(of_depth)
        for iteration in _iterations(here):
            found.append(_signal(depth, iteration, here))
        found.append(_gradient(depth, here))
        if any(probe.network.after_add for probe in here):
            found.append(_after_addition(depth, here))
        if any(moment.deletion for probe in here for moment in probe.moments):
            found.append(_deletion(depth, here))
    groups = sorted({(cell.depth, cell.group) for cell in outcome.cells})
    for at, (depth, group) in enumerate(groups):
        cells = [cell for cell in outcome.cells if (cell.depth, cell.group) == (depth, group)]
        if any(cell.courses for cell in cells):
            suffix = f"-{at}" if [d for d, _ in groups].count(depth) > 1 else ""
            found.append(_training(f"training-{depth}{suffix}", depth, group, cells))
    return found


# --- the figures ----------------------------------------------------------------------------------


def _signal(depth: int, iteration: int, probes: Sequence[Probe]) -> Picture:
    """A column per ordering; deviation, mean and share of negatives of what enters the addition."""
    shown = [
        (probe, moment)
        for probe in probes
        for moment in probe.moments
        if moment.iteration == iteration
    ]
    rows = (
        ("deviation", SHORTCUT_STD, BRANCH_STD),
        ("mean", SHORTCUT_MEAN, BRANCH_MEAN),
        ("negative, %", SHORTCUT_NEGATIVE, BRANCH_NEGATIVE),
    )
    figure, axes = _panels(len(rows), len(shown))
    for column, (probe, moment) in enumerate(shown):
        axes[0][column].set_title(_label(probe, probes))
        for row, (name, shortcut, branch) in enumerate(rows):
            panel = axes[row][column]
            _line(panel, shortcut.of(moment), "#000000", "-", "", "shortcut signal")
            _line(panel, branch.of(moment), "#D55E00", "--", "", "branch")
            _stages(panel, moment)
            if column == 0:
                panel.set_ylabel(name)
        axes[-1][column].set_xlabel("unit")
    deviations = [
        value
        for _, moment in shown
        for series in (SHORTCUT_STD, BRANCH_STD)
        for value in series.of(moment)
        if value
    ]
    if deviations and max(deviations) > LOG_ABOVE * min(deviations):
        axes[0][0].set_yscale("log")
    _legend(figure, axes[0][0])
    title = f"What enters the addition, ResNet-{depth}, {when(iteration)}"
    figure.suptitle(title)
    return _picture(f"signal-{depth}-iteration-{iteration}", title, figure)


def _gradient(depth: int, probes: Sequence[Probe]) -> Picture:
    """A panel per moment: the gradient's norm at each unit's input by that at the end."""
    title = f"Gradient norm at each unit's input by that at the end, ResNet-{depth}"
    figure = _along_depth(probes, [("gradient ratio", GRADIENT, "log")], title)
    return _picture(f"gradient-{depth}", title, figure)


def _after_addition(depth: int, probes: Sequence[Probe]) -> Picture:
    """What BN and ReLU after the addition do to a signal that goes straight through."""
    title = f"What stands after the addition, ResNet-{depth}"
    rows = [
        ("BN gain so far", GAIN, "log"),
        ("ReLU passes, %", PASSED, "linear"),
        ("… all in stage, %", STRAIGHT, "linear"),
    ]
    return _picture(f"after-addition-{depth}", title, _along_depth(probes, rows, title))


def _along_depth(
    probes: Sequence[Probe], rows: Sequence[tuple[str, Series, str]], title: str
) -> Figure:
    """A row per series, a column per moment, a line per network."""
    moments = _iterations(probes)
    figure, axes = _panels(len(rows), len(moments), wide=1.7)
    for column, iteration in enumerate(moments):
        axes[0][column].set_title(when(iteration))
        for probe in probes:
            for moment in probe.moments:
                if moment.iteration != iteration:
                    continue
                for row, (_, series, _) in enumerate(rows):
                    if not series.shown(probe.network):
                        continue
                    _line(axes[row][column], series.of(moment), *style(probe.network.variant),
                          _label(probe, probes))  # fmt: skip
                    _stages(axes[row][column], moment)
        axes[-1][column].set_xlabel("unit")
    for row, (name, _, scale) in enumerate(rows):
        axes[row][0].set_ylabel(name)
        axes[row][0].set_yscale(scale)
    _legend(figure, axes[-1][0])
    figure.suptitle(title)
    return figure


def _deletion(depth: int, probes: Sequence[Probe]) -> Picture:
    """Test error without each unit, a panel per ordering, beside that of the whole network."""
    shown = [
        (probe, moment, moment.deletion)
        for probe in probes
        for moment in probe.moments
        if moment.deletion is not None
    ]
    figure, axes = _panels(1, len(shown), tall=1.5)
    for column, (probe, moment, found) in enumerate(shown):
        panel = axes[0][column]
        panel.axhline(found.error, color="#777777", linestyle=":", label="whole network")
        _line(panel, list(found.errors), "#0072B2", "-", ".", "without this unit", every=1)
        _stages(panel, moment)
        panel.set_title(f"{_label(probe, probes)}\n{when(moment.iteration)}")
        panel.set_xlabel("unit")
    axes[0][0].set_ylabel("test error, %")
    _legend(figure, axes[0][0])
    title = f"One unit deleted at a time, ResNet-{depth}, {shown[0][2].images:,} test images"
    figure.suptitle(title)
    return _picture(f"deletion-{depth}", title, figure)


def _training(name: str, depth: int, group: str, cells: Sequence[Cell]) -> Picture:
    """Training loss as the run goes on, and test error against it, every seed."""
    figure, axes = _panels(1, 2, wide=2.0, tall=1.7, shared=False)
    left, right = axes[0]
    for cell in cells:
        colour, line, marker = style(cell.ordering.name)
        for at, course in enumerate(cell.courses):
            drawn: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker}
            left.plot(course.iterations, course.losses, **drawn)
            right.plot(course.losses, course.test_errors,
                       label=None if at else row_name(cell.ordering.name), **drawn)  # fmt: skip
    left.set_xlabel("iteration")
    left.set_ylabel("training loss")
    right.set_xlabel("training loss")
    right.set_ylabel("test error, %")
    _legend(figure, right)
    title = f"Training loss and test error, ResNet-{depth}, {group}"
    figure.suptitle(title)
    return _picture(name, title, figure)


# --- helpers --------------------------------------------------------------------------------------


def _picture(name: str, title: str, figure: Figure) -> Picture:
    return Picture(name, title, figure, creator="resvar probe")


def _panels(
    rows: int, columns: int, wide: float = 1.0, tall: float = 1.0, shared: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Small multiples: `rows` × `columns` panels that share their axes."""
    size = (max(3.6, PANEL[0] * wide * columns + 0.6), PANEL[1] * tall * rows + 1.0)
    sharing: dict[str, Any] = {"sharex": True, "sharey": "row"} if shared else {}
    return panels(rows, columns, size, **sharing)


def _line(
    panel: Axes,
    values: Values,
    colour: str,
    line: Any,
    marker: str,
    label: str,
    every: int | None = None,
) -> None:
    """Values over units; markers thinned out, unless `every` says, so that a line stays one."""
    panel.plot(
        range(1, len(values) + 1),
        [float("nan") if value is None else value for value in values],
        color=colour,
        linestyle=line,
        marker=marker or None,
        markevery=every or max(1, len(values) // 9),
        label=label,
    )


def _stages(panel: Axes, moment: Moment) -> None:
    """A hairline where the shape changes."""
    for at, unit in enumerate(moment.units, start=1):
        if not unit.keeps_shape:
            panel.axvline(at - 0.5, color="#999999", linewidth=0.5, zorder=0)


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if not handles:
        return
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def _iterations(probes: Sequence[Probe]) -> list[int]:
    return sorted({moment.iteration for probe in probes for moment in probe.moments})


def _place(probe: Probe) -> tuple[int, int, str, int]:
    network = probe.network
    known = network.variant in PAPER_ORDER
    rank = PAPER_ORDER.index(network.variant) if known else len(PAPER_ORDER)
    return network.depth, rank, network.variant, network.seed


def _label(probe: Probe, among: Sequence[Probe]) -> str:
    """The ordering, and the seed where several stand side by side."""
    network = probe.network
    twins = [other for other in among if other.network.variant == network.variant]
    seed = f", seed {network.seed}" if len(twins) > 1 else ""
    return f"{row_name(network.variant)}{seed}"
