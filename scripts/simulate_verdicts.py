"""How often the verdicts of a report are wrong, measured on simulated sweeps.

A sweep has ResNet-110 and ResNet-164, V1 and V2; its test errors are random numbers, and the
verdicts on them come from the code of the report. A scenario says what is true. The paper's own
figures are random too: medians of five runs, around the same or another truth.

    python scripts/simulate_verdicts.py                  # 10,000 sweeps a scenario; an hour
    python scripts/simulate_verdicts.py --sweeps 500     # a few minutes
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from resvar.reports.cells import Cell
from resvar.reports.design import EQUIVALENCE_MARGIN, SeedPlan
from resvar.reports.pooled import improvement, mean_difference
from resvar.reports.published import Published
from resvar.reports.statistics import p_values, summarise
from resvar.reports.verdicts import V1, V2, V1V2Comparison

SD = 0.16
"""Of the test errors, in points: the published one of ResNet-110."""

ERRORS = {110: 6.61, 164: 5.93}
"""The true test errors of V1, in percent."""

PUBLISHED = {110: -0.24, 164: -0.47}
"""The true differences V2 − V1 of the paper's runs."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], "np.ndarray[Any, np.dtype[np.float64]]"]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Mean 0 and standard deviation 1."""
    return rng.standard_normal(shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Exponential, with mean 0 and standard deviation 1: some runs are much worse."""
    return rng.exponential(size=shape) - 1


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Student's t with three degrees of freedom, with standard deviation 1: outliers."""
    return rng.standard_t(3, shape) / math.sqrt(3)


@dataclass(frozen=True)
class Scenario:
    """What is true, and how the sweep is made.

    Attributes:
        differences: true V2 − V1 by depth, in points.
        seeds: declared and run.
        ratio: standard deviation of V2 over that of V1.
        lost: the probability that a run diverges.
        alike: the correlation of two runs with the same seed.
        earlier: how many seeds an earlier form of the design had; its verdict counts as well.
        paper_sd: standard deviation of the paper's runs, in points.
    """

    name: str
    differences: tuple[float, float] = (0.0, 0.0)
    seeds: int = 5
    ratio: float = 1.0
    draw: Draw = normal
    lost: float = 0.0
    alike: float = 0.0
    earlier: int | None = None
    paper_sd: float = SD


AS_PUBLISHED = (PUBLISHED[110], PUBLISHED[164])

SCENARIOS = (
    Scenario("no difference"),
    Scenario("no difference, V2 spreads twice as much", ratio=2.0),
    Scenario("no difference, V2 spreads four times as much", ratio=4.0),
    Scenario("no difference, skewed", draw=skewed),
    Scenario("no difference, V2 skewed and twice the spread", draw=skewed, ratio=2.0),
    Scenario("no difference, outliers", draw=heavy),
    Scenario("no difference, one run in ten diverges", lost=0.1),
    Scenario("no difference, runs of a seed alike (0.5)", alike=0.5),
    Scenario("no difference, 10 seeds", seeds=10),
    Scenario("no difference, 10 seeds, V2 spreads four times as much", seeds=10, ratio=4.0),
    Scenario("no difference, 5 seeds, then 10", seeds=10, earlier=5),
    Scenario("as published", AS_PUBLISHED),
    Scenario("as published, 10 seeds", AS_PUBLISHED, seeds=10),
    Scenario("half of it", (PUBLISHED[110] / 2, PUBLISHED[164] / 2)),
    Scenario("twice as large", (2 * PUBLISHED[110], 2 * PUBLISHED[164])),
    Scenario("as published, with the sign reversed", (-PUBLISHED[110], -PUBLISHED[164])),
    Scenario("exactly the margin", (-EQUIVALENCE_MARGIN, EQUIVALENCE_MARGIN)),
    Scenario("exactly the margin, 10 seeds", (-EQUIVALENCE_MARGIN, EQUIVALENCE_MARGIN), seeds=10),
    Scenario("no difference, V2 skewed and four times the spread", draw=skewed, ratio=4.0),
    Scenario("as published, the paper's runs spread by 0.25", AS_PUBLISHED, paper_sd=0.25),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    error = 200 * math.sqrt(0.25 / arguments.sweeps)
    print(f"{arguments.sweeps:,} sweeps a scenario; sd {SD} points; percent of the sweeps (two")
    print(f"standard errors: at most {error:.1f})\n")
    print("| " + " | ".join(("truth", *COLUMNS)) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for index, scenario in enumerate(SCENARIOS):
        rates = simulate(scenario, arguments.sweeps, arguments.seed + index)
        cells = (f"{100 * rates[name]:.1f}" for name in COLUMNS)
        print(f"| {scenario.name} | {' | '.join(cells)} |", flush=True)
    _print_unequal(arguments.sweeps, np.random.default_rng(arguments.seed))
    for scenario in (SCENARIOS[0], *(s for s in SCENARIOS if s.name.startswith("as published"))):
        misses, truth = improvement_misses(scenario, arguments.sweeps // 10, arguments.seed)
        print(f"\nProbability of improvement, {scenario.name}: {truth:.3f}; the bootstrap interval")
        print(f"misses it in {100 * misses:.1f} % of {arguments.sweeps // 10:,} sweeps.")


UNEQUAL = ((2, 5), (2, 8), (3, 5), (3, 10), (4, 6), (5, 10))
"""Numbers of runs of the two sides of a comparison."""

RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Standard deviation of the second side over that of the first."""


def _print_unequal(count: int, rng: np.random.Generator) -> None:
    """How often a comparison with unequal numbers of runs rejects at 5 % what is true."""
    print(f"\n{count:,} comparisons of equal means; percent with p at most 0.05: our tests (Welch")
    print("alone, with Satterthwaite's degrees of freedom), by the ratio of the spreads\n")
    print(f"| n | {' | '.join(f'{ratio:g}' for ratio in RATIOS)} |")
    print("|---" * (1 + len(RATIOS)) + "|")
    for sizes in UNEQUAL:
        cells = []
        for ratio in RATIOS:
            pooled = rng.standard_normal((sum(sizes), count))
            pooled[sizes[0] :] *= ratio
            ours = (p_values(pooled, sizes) <= 0.05).mean()
            first, second = pooled[: sizes[0]], pooled[sizes[0] :]
            welch = stats.ttest_ind(first, second, equal_var=False).pvalue <= 0.05
            cells.append(f"{100 * ours:.1f} ({100 * welch.mean():.1f})")
        print(f"| {sizes[0]}, {sizes[1]} | {' | '.join(cells)} |", flush=True)


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep: the comparison at each depth, and the truth."""

    pairs: tuple[V1V2Comparison, ...]
    differences: tuple[float, float]
    truth: Scenario

    @property
    def welch_is_false(self) -> bool:
        """Whether uncorrected Welch tests claim a direction that is not there, at any depth."""
        for pair, difference in zip(self.pairs, self.differences, strict=True):
            v1, v2 = (side.errors for side in pair.sides)
            if math.inf in (*v1, *v2):
                continue
            found = stats.ttest_ind(v2, v1, equal_var=False)
            if found.pvalue <= 0.05 and found.statistic * difference <= 0:
                return True
        return False

    @property
    def pooled_misses(self) -> bool:
        sides = [(pair.sides[0].errors, pair.sides[1].errors) for pair in self.pairs]
        _, interval = mean_difference(sides)
        return interval is not None and not (
            interval[0] <= sum(self.differences) / 2 <= interval[1]
        )


COLUMNS: dict[str, Callable[[Sweep], bool]] = {
    "a false direction": lambda sweep: any(map(_is_false, sweep.pairs, sweep.differences)),
    "Welch alone": lambda sweep: sweep.welch_is_false,
    "right direction at 110": lambda sweep: _is_right(sweep.pairs[0], sweep.differences[0]),
    "right direction at 164": lambda sweep: _is_right(sweep.pairs[1], sweep.differences[1]),
    "smaller or larger": lambda sweep: any(
        pair.agreement in ("smaller", "larger") for pair in sweep.pairs
    ),
    "reproduced at 110": lambda sweep: sweep.pairs[0].reproduced,
    "reproduced at 164": lambda sweep: sweep.pairs[1].reproduced,
    "equivalent at one": lambda sweep: any(bool(pair.equivalent) for pair in sweep.pairs),
    "pooled interval misses": lambda sweep: sweep.pooled_misses,
}
"""What is counted, per sweep."""


def simulate(scenario: Scenario, sweeps: int, seed: int) -> dict[str, float]:
    """The share of sweeps in which each of `COLUMNS` is true."""
    counts = dict.fromkeys(COLUMNS, 0)
    for sweep in _sweeps(scenario, sweeps, np.random.default_rng(seed)):
        for name, holds in COLUMNS.items():
            counts[name] += bool(holds(sweep))
    return {name: count / sweeps for name, count in counts.items()}


def improvement_misses(scenario: Scenario, sweeps: int, seed: int) -> tuple[float, float]:
    """How often the bootstrap interval misses the probability of improvement, and that one."""
    effects = [difference / SD / math.sqrt(2) for difference in scenario.differences]
    truth = float(np.mean(stats.norm.sf(effects)))
    missed = 0
    for sweep in _sweeps(scenario, sweeps, np.random.default_rng(seed)):
        sides = [(pair.sides[0].errors, pair.sides[1].errors) for pair in sweep.pairs]
        _, interval = improvement(sides)
        missed += interval is not None and not interval[0] <= truth <= interval[1]
    return missed / sweeps, truth


def _sweeps(scenario: Scenario, count: int, rng: np.random.Generator) -> Iterator[Sweep]:
    depths, n = tuple(ERRORS), scenario.seeds
    shape = (count, len(depths), 2, n)
    noise = scenario.draw(rng, shape)
    common = scenario.draw(rng, (count, len(depths), 1, n))
    noise = math.sqrt(1 - scenario.alike) * noise + math.sqrt(scenario.alike) * common
    noise[:, :, 1] *= scenario.ratio
    diverges = rng.random(shape) < scenario.lost
    paper = rng.standard_normal((count, len(depths), 2, 5)) * scenario.paper_sd
    for index in range(count):
        pairs = []
        for k, depth in enumerate(depths):
            truths = ERRORS[depth], ERRORS[depth] + scenario.differences[k]
            errors = [
                {
                    seed: math.inf if lost else round(truth + SD * float(value), 2)
                    for seed, (value, lost) in enumerate(zip(*values, strict=True))
                }
                for truth, values in zip(
                    truths, zip(noise[index, k], diverges[index, k], strict=True), strict=True
                )
            ]
            figures = _published(depth, paper[index, k])
            pairs.append(_pair(depth, errors, figures, scenario))
        yield Sweep(tuple(pairs), scenario.differences, scenario)


def _published(depth: int, noise: Any) -> list[Published]:
    """The paper's medians of five runs, with the standard deviation of V1 at ResNet-110."""
    truths = ERRORS[depth], ERRORS[depth] + PUBLISHED[depth]
    sds = [float(np.std(noise[0], ddof=1)) if depth == 110 else None, None]
    return [
        Published(round(truth + float(np.median(values)), 2), "", 5, sd=sd)
        for truth, values, sd in zip(truths, noise, sds, strict=True)
    ]


def _pair(
    depth: int, errors: list[dict[int, float]], figures: list[Published], scenario: Scenario
) -> V1V2Comparison:
    cells = []
    for variant, known, figure in zip((V1, V2), errors, figures, strict=True):
        done = {seed: error for seed, error in known.items() if math.isfinite(error)}
        summary = summarise(list(done.values())) if done else None
        cells.append(SimulatedCell(variant, depth, summary, figure, (), done, known.keys()))
    seeds = frozenset(range(scenario.seeds))
    v1, v2 = cells
    found = V1V2Comparison(depth, v1, v2, SeedPlan(seeds), len(ERRORS), True, usual_sd=SD)
    if scenario.earlier is None:
        return found
    early = replace(found, plan=SeedPlan(frozenset(range(scenario.earlier))))
    return early if early.direction != "undecided" else found


@dataclass(frozen=True)
class SimulatedCell(Cell):
    """A cell whose runs without a test error have diverged."""

    seeds: Any = ()

    @property
    def diverged(self) -> frozenset[int]:
        return frozenset(self.seeds) - self.errors.keys()


def _is_false(pair: V1V2Comparison, difference: float) -> bool:
    """Whether the direction is claimed and wrong."""
    return pair.direction != "undecided" and not _is_right(pair, difference)


def _is_right(pair: V1V2Comparison, difference: float) -> bool:
    return pair.direction == ("V2 better" if difference < 0 else "V1 better") and difference != 0


if __name__ == "__main__":
    main()
