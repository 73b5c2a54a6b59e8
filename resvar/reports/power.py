"""What a number of seeds can show: the power of the tests in `statistics`, and the seeds needed.

The power of up to seven seeds comes from simulated experiments, which run the very tests; from
eight on, that of the t-test is at most 0.03 above it for the error rates of one to three depths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

from resvar.console import percent
from resvar.reports.statistics import ERROR_RATE, SEED, p_values, smallest_p

POWER = 0.8
"""What a design should have."""

MOST_SEEDS = 1_000_000

MOST_SIMULATED = 7
EXPERIMENTS = 4_000

MANY = 200
"""Beyond so many seeds a t distribution is taken as normal."""

RANGE = 0.9
"""The confidence of `sd_range`."""


def fewest_seeds(comparisons: int) -> int:
    """The seeds of each side with which the smallest p, times `comparisons`, is at most 0.05."""
    n = 2
    while comparisons * smallest_p(n, n) > ERROR_RATE:
        n += 1
    return n


@lru_cache(maxsize=512)
def power(difference: float, sd: float, n: int, comparisons: int = 1) -> float:
    """The probability that `n` seeds of each side detect a difference.

    Args:
        difference: of the means, in percentage points.
        sd: of the runs of either side, which are normal.
        comparisons: among which the error rate of 5 % is divided.
    """
    if n < 2 or comparisons * smallest_p(n, n) > ERROR_RATE:
        return 0.0
    if sd == 0:
        return 1.0 if difference else 0.0
    rate, effect = ERROR_RATE / comparisons, abs(difference) / sd
    return _simulated(effect, n, rate) if n <= MOST_SIMULATED else _noncentral(effect, n, rate)


def seeds_needed(difference: float, sd: float, comparisons: int = 1) -> int | None:
    """The seeds of each side that detect a difference with a power of 80 %.

    Args: as those of `power`.

    Returns:
        The smallest n; None without a difference, or if more than a million are needed.
    """
    if difference == 0 or power(difference, sd, MOST_SEEDS, comparisons) < POWER:
        return None
    fewest = fewest_seeds(comparisons)
    for n in range(fewest, MOST_SIMULATED + 1):
        # The t-test's power, an upper bound, saves most simulations.
        bound = _noncentral(abs(difference) / sd, n, ERROR_RATE / comparisons) if sd else 1.0
        if bound >= POWER and power(difference, sd, n, comparisons) >= POWER:
            return n
    few, enough = max(fewest - 1, MOST_SIMULATED), MOST_SEEDS
    while enough - few > 1:  # power grows with n
        middle = (few + enough) // 2
        reached = power(difference, sd, middle, comparisons) >= POWER
        few, enough = (few, middle) if reached else (middle, enough)
    return enough


def sd_range(sd: float, freedom: int) -> tuple[float, float]:
    """The 90 % range of a standard deviation that was measured with `freedom` degrees of freedom.

    It assumes normal test errors, so that their variance has a χ² distribution.
    """
    special = import_module("scipy.special")
    tail = (1 - RANGE) / 2
    quantiles = (float(special.chdtri(freedom, p)) for p in (tail, 1 - tail))
    low, high = (sd * math.sqrt(freedom / quantile) for quantile in quantiles)
    return low, high


@dataclass(frozen=True)
class Power:
    """What a design shows of a difference.

    Attributes:
        sds: standard deviations: one that is assumed, or the ends of a measured range, ascending.
        powers: of the design, ascending.
        seeds: that a power of 80 % takes, ascending; see `seeds_needed`.
    """

    sds: tuple[float, ...]
    powers: tuple[float, ...]
    seeds: tuple[int | None, ...]

    @property
    def is_low(self) -> bool:
        """Whether the power is below 80 % at each of the standard deviations."""
        return self.powers[-1] < POWER

    @property
    def chance(self) -> str:
        """`32 %`, or `13 % to 70 %`."""
        return " to ".join(dict.fromkeys(percent(100 * power, 0) for power in self.powers))

    @property
    def needed(self) -> str:
        """`10`, or `6 to 23`."""
        texts = (f"{count:,}" if count else "more than a million" for count in self.seeds)
        return " to ".join(dict.fromkeys(texts))


def design_power(
    difference: float, sds: tuple[float, ...], seeds: int, comparisons: int = 1
) -> Power:
    """The power of `seeds` of each side, and the seeds that are needed.

    Args:
        sds: see `Power`.
    """
    powers = tuple(power(difference, sd, seeds, comparisons) for sd in reversed(sds))
    return Power(sds, powers, tuple(seeds_needed(difference, sd, comparisons) for sd in sds))


def _simulated(effect: float, n: int, rate: float) -> float:
    """The share of experiments with a p of at most `rate`; `effect` is in standard deviations."""
    import numpy as np

    pooled = np.random.default_rng(SEED).standard_normal((2 * n, EXPERIMENTS))
    pooled[n:] -= effect
    return float((p_values(pooled, (n, n)) <= rate).mean())


def _noncentral(effect: float, n: int, rate: float) -> float:
    """The power of the two-sided t-test, of which only the tail on the right side counts."""
    special = import_module("scipy.special")
    freedom, shift = 2 * n - 3, effect * math.sqrt(n / 2)
    critical = -float(special.stdtrit(freedom, rate / 2))
    if n > MANY or shift - critical > 30:  # SciPy's series is slow, or loses its digits
        return float(special.ndtr(shift - critical))
    return 1 - float(special.nctdtr(freedom, shift, critical))
