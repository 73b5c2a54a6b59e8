"""What the design of a sweep can decide, before its first run starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from resvar.console import listed, pluralize
from resvar.reports.comparable import follows_paper, label_of
from resvar.reports.power import design_power, fewest_seeds, sd_range
from resvar.reports.published import published, published_difference, usual_sd
from resvar.reports.records import read_record
from resvar.reports.statistics import ERROR_RATE, smallest_p, summarise
from resvar.reports.verdicts import V1, V2
from resvar.sweeps.grid import PlannedRun, Sweep

Cells = Mapping[tuple[str, int], Sequence[PlannedRun]]
"""Variant and depth → the planned runs."""


def forecast(sweep: Sweep) -> Iterator[str]:
    """What can be decided about V1 against V2, and about other orderings against original.

    What holds for several groups of settings is told once.
    """
    runs = sorted((run for run in sweep.runs if run.settings.dataset != "sample"), key=_run_group)
    sentences: list[str] = []
    for _, members in groupby(runs, _run_group):
        cells: dict[tuple[str, int], list[PlannedRun]] = {}
        for run in members:
            cells.setdefault((run.settings.variant, run.settings.depth), []).append(run)
        sentences += [*_v1_v2_power(cells), *_others(cells)]
    yield from dict.fromkeys(sentences)


def _run_group(run: PlannedRun) -> tuple[str, str]:
    return label_of(run.settings), run.settings.dataset


def _v1_v2_power(cells: Cells) -> Iterator[str]:
    """The power to detect the published differences."""
    depths = [depth for variant, depth in cells if variant == V1 and (V2, depth) in cells]
    if not depths:
        return
    n = min(len(cells[variant, depth]) for depth in depths for variant in (V1, V2))
    where = "" if len(depths) == 1 else f" at {len(depths)} depths together"
    needed = fewest_seeds(len(depths))
    if n < needed:
        yield (
            f"{pluralize(n, 'seed')} of each cannot decide whether V2 is better than V1{where}: "
            f"that takes at least {needed}."
        )
    settings = cells[V1, depths[0]][0].settings
    sds, source = _spread(cells, settings.dataset)
    figures = {d: [published(settings.dataset, v, d) for v in (V1, V2)] for d in depths}
    theirs = {d: found for d in depths if (found := published_difference(*figures[d]))}
    if not theirs or not sds:
        return
    powers = {d: design_power(theirs[d], sds, n, len(depths)) for d in theirs}
    chances = [
        f"{abs(theirs[d]):.2f} points (published, ResNet-{d}) with a probability of "
        f"{powers[d].chance}"
        for d in theirs
    ]
    if n >= needed:
        yield f"{pluralize(n, 'seed')} of each detect {listed(chances)}, {source}."
    sizes = listed([f"{abs(difference):.2f}" for difference in theirs.values()])
    seeds = listed([found.needed for found in powers.values()])
    yield (
        f"To detect the published {sizes} points with a probability of 80 % takes {seeds} seeds of "
        "each."
    )
    if not follows_paper(settings):
        yield "They are a yardstick only: this is not the paper's protocol."


def _others(cells: Cells) -> Iterator[str]:
    """Whether the other orderings can differ from original, after the correction."""
    sentences: dict[str, list[str]] = {}
    for depth in sorted({depth for variant, depth in cells if variant == V1}):
        others = [v for v, d in cells if d == depth and v not in (V1, V2)]
        n = min(len(cells[variant, depth]) for variant in (V1, *others))
        floor = min(1.0, len(others) * smallest_p(n, n)) if n > 1 else 1.0
        if others and floor > ERROR_RATE:
            why = f"p cannot fall below {floor:.2g}; " if floor < 1 else ""
            text = (
                f"{pluralize(n, 'seed')} of each cannot show that {_orderings(len(others))} from "
                f"original: {why}{fewest_seeds(len(others))} seeds can."
            )
            sentences.setdefault(text, []).append(f"ResNet-{depth}")
    for text, names in sentences.items():
        yield f"{listed(names)}: {text}"


def _orderings(count: int) -> str:
    return "another ordering differs" if count == 1 else f"one of {count} other orderings differs"


def _spread(cells: Cells, dataset: str) -> tuple[tuple[float, ...], str]:
    """Standard deviations and their source: the results that are there, if any cell has two; else
    the published one; none if there is none."""
    squares, freedom = 0.0, 0
    for runs in cells.values():
        errors = [error for run in runs if (error := _error(run)) is not None]
        if len(errors) > 1:
            freedom += len(errors) - 1
            squares += (len(errors) - 1) * (summarise(errors).sd or 0.0) ** 2
    if squares:
        low, high = sd_range(math.sqrt(squares / freedom), freedom)
        return (low, high), f"with the spread of the runs here (sd {low:.2f} to {high:.2f})"
    if (usual := usual_sd(dataset)) is None:
        return (), ""
    return (usual,), f"if runs spread as published (sd {usual:.2f})"


def _error(run: PlannedRun) -> float | None:
    if not run.folder.is_dir():
        return None
    result = read_record(run.folder, full=False).result
    return float(result["test_error"]) if result else None
