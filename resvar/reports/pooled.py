"""V1 against V2 over all depths together, as Agarwal et al. 2021 (arXiv:2108.13264) advise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from resvar.reports.statistics import ERROR_RATE, SEED, summarise
from resvar.reports.verdicts import V1V2Comparison

if TYPE_CHECKING:
    import numpy as np

    from resvar.reports.statistics import Array

RESAMPLED = 2_000
"""Bootstrap samples."""


@dataclass(frozen=True)
class Pooled:
    """V2 − V1 over several depths, each with the same weight.

    Attributes:
        difference: mean over the depths of the differences of means, in percentage points; None
            where a run diverged.
        interval: its 95 % interval (Welch and Satterthwaite), or None.
        improvement: the probability that a run of V2 has a lower test error than a run of V1,
            mean over the depths; equal errors count half, and diverged runs are the worst.
        improvement_interval: its 95 % interval, by a bootstrap stratified by depth and variant;
            None where every pair or none is an improvement, since resampling then changes nothing.
    """

    depths: tuple[int, ...]
    difference: float | None
    interval: tuple[float, float] | None
    improvement: float
    improvement_interval: tuple[float, float] | None


def pool(pairs: Sequence[V1V2Comparison]) -> Pooled | None:
    """Pool the depths at which both variants have two runs; None if there are none."""
    kept = [p for p in pairs if p.comparison is not None and min(p.comparison.n) > 1]
    if not kept:
        return None
    sides = [(pair.sides[0].errors, pair.sides[1].errors) for pair in kept]
    difference, interval = mean_difference(sides)
    return Pooled(tuple(pair.depth for pair in kept), difference, interval, *improvement(sides))


Sides = Sequence[tuple[Sequence[float], Sequence[float]]]
"""Test errors of V1 and of V2, by depth."""


def mean_difference(sides: Sides) -> tuple[float | None, tuple[float, float] | None]:
    """The mean over the depths of V2 − V1 and its 95 % interval, None where there is none."""
    if any(math.isinf(error) for both in sides for side in both for error in side):
        return None, None
    cells = [(summarise(v1), summarise(v2)) for v1, v2 in sides]
    difference = math.fsum(v2.mean - v1.mean for v1, v2 in cells) / len(cells)
    variances = [((cell.sd or 0) ** 2 / cell.n, cell.n) for both in cells for cell in both]
    if not (total := math.fsum(variance for variance, _ in variances)):
        return difference, None
    freedom = total**2 / math.fsum(variance**2 / (n - 1) for variance, n in variances)
    quantile = -float(import_module("scipy.special").stdtrit(freedom, ERROR_RATE / 2))
    half = quantile * math.sqrt(total) / len(cells)
    return difference, (difference - half, difference + half)


def improvement(sides: Sides) -> tuple[float, tuple[float, float] | None]:
    """The probability that a run of V2 has the lower error, and its 95 % bootstrap interval."""
    import numpy as np

    generator = np.random.default_rng(SEED)
    observed = np.mean([_wins(*(np.asarray(side)[None] for side in both))[0] for both in sides])

    def resampled(side: Sequence[float]) -> Array:
        drawn: Array = generator.choice(np.asarray(side), (RESAMPLED, len(side)))
        return drawn

    means = np.mean([_wins(resampled(v1), resampled(v2)) for v1, v2 in sides], axis=0)
    low, high = np.quantile(means, [ERROR_RATE / 2, 1 - ERROR_RATE / 2])
    return float(observed), (float(low), float(high)) if low < high else None


def _wins(v1: Array, v2: Array) -> Array:
    """The share of pairs in which V2 has the lower error, [samples]; equal errors count half.

    Args:
        v1, v2: float64 [samples, runs].
    """
    theirs, ours = v1[:, :, None], v2[:, None, :]
    lower: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = ours < theirs
    wins: Array = (lower + (ours == theirs) / 2).mean(axis=(1, 2))
    return wins
