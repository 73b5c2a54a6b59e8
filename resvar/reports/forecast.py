"""What the design of a sweep can decide, told before its runs are paid for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from resvar.console import listed, percent, pluralize
from resvar.reports.power import fewest_seeds, power, sd_range, seeds_needed
from resvar.reports.published import published, usual_sd
from resvar.reports.records import follows_paper, label_of, read_record
from resvar.reports.statistics import ERROR_RATE, smallest_p, summarise
from resvar.reports.verdicts import V1, V2
from resvar.sweeps.grid import PlannedRun, Sweep

Cells = Mapping[tuple[str, int], Sequence[PlannedRun]]
"""Variant and depth → the planned runs."""


def forecast(sweep: Sweep) -> Iterator[str]:
    """What can be decided about V1 against V2, and about other orderings against original.

    Of several groups of settings, the first one speaks for all.
    """
    ordered = sorted(sweep.runs, key=_group)
    for _, runs in groupby(ordered, _group):
        cells: dict[tuple[str, int], list[PlannedRun]] = {}
        for run in runs:
            cells.setdefault((run.settings.variant, run.settings.depth), []).append(run)
        sentences = [*_v1_v2(cells), *_others(cells)]
        if sentences and next(iter(cells.values()))[0].settings.dataset != "sample":
            yield from sentences
            return


def _group(run: PlannedRun) -> tuple[str, str]:
    return label_of(run.settings), run.settings.dataset


def _v1_v2(cells: Cells) -> Iterator[str]:
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
    differences = {d: found for d in depths if (found := _difference(settings.dataset, d))}
    spread = _spread(cells, settings.dataset)
    if not differences or spread is None:
        return
    chances = [
        f"{abs(difference):.2f} points (published, ResNet-{depth}) with a probability of "
        f"{spread.span([power(difference, sd, n, len(depths)) for sd in spread.sds])}"
        for depth, difference in differences.items()
    ]
    seeds = [
        spread.seeds([seeds_needed(difference, sd, len(depths)) for sd in spread.sds])
        for difference in differences.values()
    ]
    if n >= needed:
        yield f"{pluralize(n, 'seed')} of each detect {listed(chances)}, {spread.source}."
    sizes = listed([f"{abs(difference):.2f}" for difference in differences.values()])
    yield (
        f"To detect the published {sizes} points with a probability of 80 % takes {listed(seeds)} "
        "seeds of each."
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


def _difference(dataset: str, depth: int) -> float | None:
    figures = [published(dataset, variant, depth) for variant in (V1, V2)]
    v1, v2 = figures
    return None if v1 is None or v2 is None else round(v2.test_error - v1.test_error, 2)


@dataclass(frozen=True)
class Spread:
    """The standard deviation of test errors: one that is assumed, or a range that is measured."""

    sds: tuple[float, ...]
    source: str

    def span(self, chances: Sequence[float]) -> str:
        """`35 %`, or `13 % to 70 %`."""
        texts = [percent(100 * chance, 0) for chance in sorted(chances)]
        return " to ".join(dict.fromkeys(texts))

    def seeds(self, counts: Sequence[int | None]) -> str:
        texts = [f"{count:,}" if count else "more than a million" for count in counts]
        return " to ".join(dict.fromkeys(texts))


def _spread(cells: Cells, dataset: str) -> Spread | None:
    """From the results that are there, if any cell has two; else the published one."""
    squares, freedom = 0.0, 0
    for runs in cells.values():
        errors = [error for run in runs if (error := _error(run)) is not None]
        if len(errors) > 1:
            freedom += len(errors) - 1
            squares += (len(errors) - 1) * (summarise(errors).sd or 0.0) ** 2
    if squares:
        low, high = sd_range(math.sqrt(squares / freedom), freedom)
        return Spread((low, high), f"with the spread of the runs here (sd {low:.2f} to {high:.2f})")
    usual = usual_sd(dataset)
    if usual is None:
        return None
    return Spread((usual,), f"if runs spread as published (sd {usual:.2f})")


def _error(run: PlannedRun) -> float | None:
    if not run.folder.is_dir():
        return None
    result = read_record(run.folder, full=False).result
    return float(result["test_error"]) if result else None
