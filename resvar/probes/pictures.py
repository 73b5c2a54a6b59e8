"""Figures of signal and gradient along the depth, in the style of `resvar.reports.plotting`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from resvar.models.ordering import PAPER_ORDER
from resvar.probes import series as quantity
from resvar.probes.measurements import Moment, Probe
from resvar.probes.render import ProbeResults
from resvar.probes.runs import RunGroup
from resvar.probes.series import Series, Values, moment_name
from resvar.reports.plotting import Picture, panels, style
from resvar.reports.tables import row_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_ABOVE = 30.0
"""Deviations whose extremes differ by a larger factor get a logarithmic axis."""

PANEL_INCHES = (1.9, 1.55)


def probe_pictures(results: ProbeResults) -> Iterator[Picture]:
    """The figures, by depth and moment."""
    probes = sorted(results.probes, key=_sort_key)
    for depth, of_depth in groupby(probes, key=lambda probe: probe.network.depth):
        here = list(of_depth)
        for iteration in _iterations(here):
            yield _signal_picture(depth, iteration, here)
        gradient = f"Gradient norm at each unit's input, relative to the end, ResNet-{depth}"
        yield _depth_picture(
            f"gradient-{depth}", gradient, here, [("gradient ratio", quantity.GRADIENT, "log")]
        )
        if any(probe.network.after_add for probe in here):
            rows = [
                ("BN gain so far", quantity.GAIN, "log"),
                ("ReLU passes, %", quantity.PASSED, "linear"),
                ("… all in stage, %", quantity.STRAIGHT, "linear"),
            ]
            title = f"Effect of the layers after the addition, ResNet-{depth}"
            yield _depth_picture(f"after-addition-{depth}", title, here, rows)
        if any(moment.deletion for _, moment in _moments(here)):
            yield _deletion_picture(depth, here)
    keys = sorted({(runs.depth, runs.group) for runs in results.groups})
    depths = [depth for depth, _ in keys]
    for at, (depth, group) in enumerate(keys):
        runs = [r for r in results.groups if (r.depth, r.group) == (depth, group)]
        if not all(r.metrics.empty for r in runs):
            suffix = f"-{at}" if depths.count(depth) > 1 else ""
            yield _training_picture(f"training-{depth}{suffix}", depth, group, runs)


def _signal_picture(depth: int, iteration: int, probes: Sequence[Probe]) -> Picture:
    """A column per network: deviation, mean and negative share of the addition's terms."""
    shown = [(probe, moment) for probe, moment in _moments(probes) if moment.iteration == iteration]
    rows = (
        ("deviation", quantity.SHORTCUT_STD, quantity.BRANCH_STD),
        ("mean", quantity.SHORTCUT_MEAN, quantity.BRANCH_MEAN),
        ("negative, %", quantity.SHORTCUT_NEGATIVE, quantity.BRANCH_NEGATIVE),
    )
    figure, axes = _panels(len(rows), len(shown))
    for column, (probe, moment) in enumerate(shown):
        axes[0][column].set_title(_label(probe, probes))
        for row, (name, shortcut, branch) in enumerate(rows):
            panel = axes[row][column]
            _draw_values(panel, shortcut.of(moment), "#000000", "-", "", "shortcut signal")
            _draw_values(panel, branch.of(moment), "#D55E00", "--", "", "branch")
            _draw_stages(panel, moment)
            if column == 0:
                panel.set_ylabel(name)
        axes[-1][column].set_xlabel("unit")
    deviations = [
        value
        for _, moment in shown
        for series in (quantity.SHORTCUT_STD, quantity.BRANCH_STD)
        for value in series.of(moment)
        if value
    ]
    if deviations and max(deviations) > LOG_ABOVE * min(deviations):
        axes[0][0].set_yscale("log")
    title = f"What enters the addition, ResNet-{depth}, {moment_name(iteration)}"
    return _picture(f"signal-{depth}-iteration-{iteration}", title, figure, axes[0][0])


def _depth_picture(
    name: str, title: str, probes: Sequence[Probe], rows: Sequence[tuple[str, Series, str]]
) -> Picture:
    """A row per series, a column per moment, a line per network.

    Args:
        rows: label, series and scale.
    """
    iterations = _iterations(probes)
    figure, axes = _panels(len(rows), len(iterations), wide=1.7)
    for column, iteration in enumerate(iterations):
        axes[0][column].set_title(moment_name(iteration))
        axes[-1][column].set_xlabel("unit")
    for probe, moment in _moments(probes):
        column = iterations.index(moment.iteration)
        for row, (_, series, _) in enumerate(rows):
            if series.applies_to(probe.network):
                panel, look = axes[row][column], style(probe.network.variant)
                _draw_values(panel, series.of(moment), *look, _label(probe, probes))
                _draw_stages(panel, moment)
    for row, (label, _, scale) in enumerate(rows):
        axes[row][0].set_ylabel(label)
        axes[row][0].set_yscale(scale)
    return _picture(name, title, figure, axes[-1][0])


def _deletion_picture(depth: int, probes: Sequence[Probe]) -> Picture:
    """Test error without each unit and of the whole network, a panel per network."""
    shown = [
        (probe, moment, moment.deletion)
        for probe, moment in _moments(probes)
        if moment.deletion is not None
    ]
    figure, axes = _panels(1, len(shown), tall=1.5)
    for panel, (probe, moment, found) in zip(axes[0], shown, strict=True):
        panel.axhline(found.error, color="#777777", linestyle=":", label="whole network")
        _draw_values(panel, [*found.errors], "#0072B2", "-", ".", "without this unit", every=1)
        _draw_stages(panel, moment)
        panel.set_title(f"{_label(probe, probes)}\n{moment_name(moment.iteration)}")
        panel.set_xlabel("unit")
    axes[0][0].set_ylabel("test error, %")
    title = f"One unit deleted at a time, ResNet-{depth}, {shown[0][2].images:,} test images"
    return _picture(f"deletion-{depth}", title, figure, axes[0][0])


def _training_picture(name: str, depth: int, group: str, runs: Sequence[RunGroup]) -> Picture:
    """Training loss over iterations, and test error over training loss, every seed."""
    figure, axes = _panels(1, 2, wide=2.0, tall=1.7, shared=False)
    left, right = axes[0]
    for of_ordering in runs:
        colour, line, marker = style(of_ordering.ordering.name)
        drawn: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker}
        label: str | None = row_name(of_ordering.ordering.name)
        for _, rows in of_ordering.metrics.groupby("seed"):
            left.plot(rows["iteration"], rows["train_loss"], **drawn)
            right.plot(rows["train_loss"], rows["test_error"], label=label, **drawn)
            label = None
    left.set_xlabel("iteration")
    left.set_ylabel("training loss")
    right.set_xlabel("training loss")
    right.set_ylabel("test error, %")
    title = f"Training loss and test error, ResNet-{depth}, {group}"
    return _picture(name, title, figure, right)


# --- helpers --------------------------------------------------------------------------------------


def _panels(
    rows: int, columns: int, wide: float = 1.0, tall: float = 1.0, shared: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Panels of `PANEL_INCHES`, times `wide` and `tall`, with shared axes."""
    width, height = PANEL_INCHES
    size = (max(3.6, width * wide * columns + 0.6), height * tall * rows + 1.0)
    sharing: dict[str, Any] = {"sharex": True, "sharey": "row"} if shared else {}
    return panels(rows, columns, size, **sharing)


def _draw_values(
    panel: Axes,
    values: Values,
    colour: str,
    line: Any,
    marker: str,
    label: str,
    every: int | None = None,
) -> None:
    """Values over units; about nine markers, unless `every` is given."""
    panel.plot(
        range(1, len(values) + 1),
        [float("nan") if value is None else value for value in values],
        color=colour,
        linestyle=line,
        marker=marker or None,
        markevery=every or max(1, len(values) // 9),
        label=label,
    )


def _draw_stages(panel: Axes, moment: Moment) -> None:
    """A hairline where the shape changes."""
    for at, unit in enumerate(moment.units, start=1):
        if not unit.keeps_shape:
            panel.axvline(at - 0.5, color="#999999", linewidth=0.5, zorder=0)


def _picture(name: str, title: str, figure: Figure, labelled: Axes) -> Picture:
    """The figure with its title, and one panel's legend for all."""
    handles, labels = labelled.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    return Picture(name, title, figure, creator="resvar probe")


def _moments(probes: Sequence[Probe]) -> list[tuple[Probe, Moment]]:
    return [(probe, moment) for probe in probes for moment in probe.moments]


def _iterations(probes: Sequence[Probe]) -> list[int]:
    return sorted({moment.iteration for _, moment in _moments(probes)})


def _sort_key(probe: Probe) -> tuple[int, int, str, int]:
    network = probe.network
    known = network.variant in PAPER_ORDER
    rank = PAPER_ORDER.index(network.variant) if known else len(PAPER_ORDER)
    return network.depth, rank, network.variant, network.seed


def _label(probe: Probe, among: Sequence[Probe]) -> str:
    """The ordering, and the seed if several are shown."""
    network = probe.network
    twins = [other for other in among if other.network.variant == network.variant]
    seed = f", seed {network.seed}" if len(twins) > 1 else ""
    return f"{row_name(network.variant)}{seed}"
