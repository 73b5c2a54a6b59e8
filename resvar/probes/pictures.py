"""Figures of signal and gradient along the depth, in the style of `resvar.reports.plotting`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from resvar.models.ordering import PAPER_ORDER
from resvar.probes import series as quantity
from resvar.probes.measurements import Moment, Probe
from resvar.probes.render import ProbeResults
from resvar.probes.runs import RunGroup
from resvar.probes.series import Series, Values, moment_name
from resvar.reports.plotting import (
    Picture,
    house_style,
    legend_below,
    panels,
    plain_log_axis,
    style,
    titled,
    variant_label,
    whole_number_axis,
)
from resvar.sequences import chunks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_ABOVE = 30.0
"""Deviations whose extremes differ by a larger factor get a logarithmic axis."""

PANEL_INCHES = (1.9, 1.55)

NETWORKS_ABREAST = 6
"""Networks in one figure."""

ONE_EACH = "Each line is one network, so it has no interval."


def probe_pictures(results: ProbeResults) -> Iterator[Picture]:
    """The figures, by depth and moment."""
    for name, draw in _planned_pictures(results):
        with house_style():
            picture = draw()
        yield replace(picture, name=name, creator="resvar probe")


def _planned_pictures(results: ProbeResults) -> Iterator[tuple[str, partial[Picture]]]:
    """The name of each figure, and the call that draws it."""
    probes = sorted(results.probes, key=_sort_key)
    for depth, of_depth in groupby(probes, key=lambda probe: probe.network.depth):
        here = list(of_depth)
        for iteration in _iterations(here):
            shown = [found for found in _all_moments(here) if found[1].iteration == iteration]
            for part, some in _numbered(shown):
                name = f"signal-{depth}-iteration-{iteration}{part}"
                yield name, partial(_signal_picture, depth, iteration, some, here)
        rows = [("gradient ratio", quantity.GRADIENT, "log")]
        title = f"Gradient norm at each unit's input, relative to the end, ResNet-{depth}"
        yield f"gradient-{depth}", partial(_depth_picture, title, here, rows)
        rows = [
            ("BN gain so far", quantity.GAIN, "log"),
            ("ReLU passes, %", quantity.PASSED, "linear"),
            ("… all in stage, %", quantity.STRAIGHT, "linear"),
        ]
        rows = [row for row in rows if any(row[1].applies_to(probe.network) for probe in here)]
        if rows:
            title = f"Effect of the layers after the addition, ResNet-{depth}"
            yield f"after-addition-{depth}", partial(_depth_picture, title, here, rows)
        deleted = [found for found in _all_moments(here) if found[1].deletion]
        for part, some in _numbered(deleted):
            yield f"deletion-{depth}{part}", partial(_deletion_picture, depth, some, here)
    keys = sorted({(runs.depth, runs.group) for runs in results.groups})
    depths = [depth for depth, _ in keys]
    for at, (depth, group) in enumerate(keys):
        runs = [r for r in results.groups if (r.depth, r.group) == (depth, group)]
        if not all(r.metrics.empty for r in runs):
            suffix = f"-{at}" if depths.count(depth) > 1 else ""
            yield f"training-{depth}{suffix}", partial(_training_picture, depth, group, runs)


def _signal_picture(
    depth: int, iteration: int, shown: Sequence[tuple[Probe, Moment]], among: Sequence[Probe]
) -> Picture:
    """A column per network: deviation, mean and negative share of the addition's terms."""
    rows = (
        ("deviation", quantity.SHORTCUT_STD, quantity.BRANCH_STD),
        ("mean", quantity.SHORTCUT_MEAN, quantity.BRANCH_MEAN),
        ("negative, %", quantity.SHORTCUT_NEGATIVE, quantity.BRANCH_NEGATIVE),
    )
    figure, axes = _panels(len(rows), len(shown))
    for column, (probe, moment) in enumerate(shown):
        axes[0][column].set_title(_heading(probe, among))
        for row, (name, shortcut, branch) in enumerate(rows):
            panel = axes[row][column]
            _draw_values(panel, shortcut.of(moment), "#000000", "-", "", "shortcut signal")
            _draw_values(panel, branch.of(moment), "#D55E00", "--", "", "branch")
            _draw_stages(panel, moment)
            if column == 0:
                panel.set_ylabel(name)
    _label_units(axes)
    deviations = [
        value
        for _, moment in shown
        for series in (quantity.SHORTCUT_STD, quantity.BRANCH_STD)
        for value in series.of(moment)
        if value
    ]
    if deviations and max(deviations) > LOG_ABOVE * min(deviations):
        axes[0][0].set_yscale("log")
        plain_log_axis(axes[0][0].yaxis)
    title = f"What enters the addition, ResNet-{depth}, {moment_name(iteration)}"
    return _one_each(title, figure)


def _depth_picture(
    title: str, probes: Sequence[Probe], rows: Sequence[tuple[str, Series, str]]
) -> Picture:
    """A row per series, a column per moment, a line per network.

    Args:
        rows: label, series and scale.
    """
    iterations = _iterations(probes)
    figure, axes = _panels(len(rows), len(iterations), wide=1.7)
    for column, iteration in enumerate(iterations):
        axes[0][column].set_title(moment_name(iteration))
    counts = Counter(probe.network.variant for probe in probes)
    labels = {name: f"{variant_label(name)}, n = {n}" for name, n in counts.items()}
    for probe, moment in _all_moments(probes):
        column = iterations.index(moment.iteration)
        for row, (_, series, _) in enumerate(rows):
            if series.applies_to(probe.network):
                panel, look = axes[row][column], style(probe.network.variant)
                _draw_values(panel, series.of(moment), *look, labels[probe.network.variant])
                _draw_stages(panel, moment)
    _label_units(axes)
    for row, (label, _, scale) in enumerate(rows):
        axes[row][0].set_ylabel(label)
        if scale == "log":
            axes[row][0].set_yscale("log")
            plain_log_axis(axes[row][0].yaxis)
    return _one_each(title, figure)


def _deletion_picture(
    depth: int, shown: Sequence[tuple[Probe, Moment]], among: Sequence[Probe]
) -> Picture:
    """Test error without each unit and of the whole network, a panel per network."""
    figure, axes = _panels(1, len(shown), tall=1.5)
    images = 0
    for panel, (probe, moment) in zip(axes[0], shown, strict=True):
        assert moment.deletion is not None
        images = moment.deletion.images
        errors: Values = [*moment.deletion.errors]
        panel.axhline(moment.deletion.error, color="#777777", linestyle=":", label="whole network")
        _draw_values(panel, errors, "#0072B2", "-", ".", "without this unit", every=1)
        _draw_stages(panel, moment)
        panel.set_title(f"{_heading(probe, among)}\n{moment_name(moment.iteration)}")
    _label_units(axes)
    axes[0][0].set_ylabel("test error, %")
    title = f"One unit deleted at a time, ResNet-{depth}, {images:,} test images"
    return _one_each(title, figure)


def _training_picture(depth: int, group: str, runs: Sequence[RunGroup]) -> Picture:
    """Training loss over iterations, and test error over training loss, every seed."""
    figure, axes = _panels(1, 2, wide=2.0, tall=1.7, shared=False)
    left, right = axes[0]
    for of_ordering in runs:
        colour, line, marker = style(of_ordering.ordering.name)
        drawn: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker}
        by_seed = of_ordering.metrics.groupby("seed")
        label = f"{variant_label(of_ordering.ordering.name)}, n = {len(by_seed)}"
        for _, rows in by_seed:
            left.plot(rows["iteration"], rows["train_loss"], **drawn)
            right.plot(rows["train_loss"], rows["test_error"], label=label, **drawn)
    left.set_xlim(left=0)
    whole_number_axis(left.xaxis)
    left.set_xlabel("iteration")
    left.set_ylabel("training loss")
    right.set_xlabel("training loss")
    right.set_ylabel("test error, %")
    legend_below(figure)
    title = f"Training loss and test error, ResNet-{depth}, every one of n runs"
    return titled(title, group, figure)


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


def _one_each(title: str, figure: Figure) -> Picture:
    """A figure whose lines are single networks; the page shows that as a caption."""
    legend_below(figure)
    return replace(titled(title, ONE_EACH, figure), title=title, caption=ONE_EACH)


def _label_units(axes: Sequence[Sequence[Axes]]) -> None:
    """Whole numbers below the lowest panels, which share the axis with those above."""
    for panel in axes[-1]:
        panel.set_xlabel("unit")
        whole_number_axis(panel.xaxis)


def _numbered(
    shown: Sequence[tuple[Probe, Moment]],
) -> Iterator[tuple[str, Sequence[tuple[Probe, Moment]]]]:
    """Networks for figures of at most `NETWORKS_ABREAST`, with an ending of each figure's name."""
    for number, some in enumerate(chunks(shown, NETWORKS_ABREAST), start=1):
        yield "" if len(shown) <= NETWORKS_ABREAST else f"-part-{number}", some


def _all_moments(probes: Sequence[Probe]) -> list[tuple[Probe, Moment]]:
    return [(probe, moment) for probe in probes for moment in probe.moments]


def _iterations(probes: Sequence[Probe]) -> list[int]:
    return sorted({moment.iteration for _, moment in _all_moments(probes)})


def _sort_key(probe: Probe) -> tuple[int, int, str, int]:
    network = probe.network
    known = network.variant in PAPER_ORDER
    rank = PAPER_ORDER.index(network.variant) if known else len(PAPER_ORDER)
    return network.depth, rank, network.variant, network.seed


def _heading(probe: Probe, among: Sequence[Probe]) -> str:
    """The label in lines as wide as a panel."""
    return "\n".join(textwrap.wrap(_ordering_label(probe, among), 24))


def _ordering_label(probe: Probe, among: Sequence[Probe]) -> str:
    """The ordering, and the seed if several are shown."""
    network = probe.network
    twins = [other for other in among if other.network.variant == network.variant]
    seed = f", seed {network.seed}" if len(twins) > 1 else ""
    return f"{variant_label(network.variant)}{seed}"
