"""The statistics of a report: summaries of cells, comparisons, the verdict on V1 against V2.

Test errors are in percent of the test images, differences in percentage points; lower is better.
SciPy takes a second to import, so it is imported only where two seeds are compared.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

MOST_PARTITIONS = 20_000
"""Up to this number every partition is counted; eight seeds against eight give 12,870."""

RESAMPLES = 19_999
"""Random partitions beyond it; always the same ones, since the generator starts at `SEED`."""

SEED = 0

GRAIN = 1e-6
"""Percentage points; errors closer than this are equal. One image of 10,000 is 0.01."""


# --- one cell -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """The test errors of one cell; `sd` has the denominator n - 1, and is None for a single run."""

    n: int
    median: float
    mean: float
    sd: float | None
    values: tuple[float, ...]


def summarise(errors: Sequence[float]) -> Summary:
    """Median (the paper's figure), mean and standard deviation of at least one test error.

    Raises:
        ValueError: there are none, or one of them is NaN or infinite.
    """
    import numpy as np

    if not errors or not all(math.isfinite(error) for error in errors):
        raise ValueError(f"finite test errors are needed, not {list(errors)}")
    units, n = _units(errors), len(errors)
    sd = None if n == 1 else float(np.std(units * GRAIN, ddof=1)) if np.ptp(units) else 0.0
    return Summary(
        n=n,
        median=float(np.median(errors)),
        mean=math.fsum(errors) / n,
        sd=sd,
        values=tuple(float(error) for error in errors),
    )


# --- two cells ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One cell against another.

    Attributes:
        difference: mean of the other − mean of the baseline; negative: the other is better.
        interval: the 95 % Welch interval of the difference, or None.
        p: two-sided permutation p, or None.
        smallest_p: the smallest p that so many seeds can give, or None where p is None.
        resamples: None where every partition was counted, else how many random ones.
        reason: why something is None, or an empty string.
    """

    n: tuple[int, int]
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    smallest_p: float | None = None
    resamples: int | None = None
    reason: str = ""


def compare(baseline: Sequence[float], other: Sequence[float]) -> Comparison:
    """Compare the test errors of `other` with those of `baseline`.

    The p-value is twice the smaller tail, as SciPy counts it: a difference at least as large, in
    either direction, among all ways to divide the runs into two groups of these sizes.

    Raises:
        ValueError: a side is empty, or an error is NaN or infinite.
    """
    means = summarise(baseline).mean, summarise(other).mean
    sizes = len(baseline), len(other)
    if min(sizes) == 1:
        reason = "one seed gives no interval"
        return Comparison(sizes, means[1] - means[0], None, None, reason=reason)
    first, second = _units(baseline), _units(other)
    interval, reason = _welch_interval(first, second)
    p, resamples = _permutation_p(first, second)
    return Comparison(
        n=sizes,
        difference=means[1] - means[0],
        interval=interval,
        p=p,
        smallest_p=min(1.0, 2 / math.comb(sum(sizes), sizes[0])),
        resamples=resamples,
        reason=reason,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several comparisons (Holm 1979), in the order given.

    The k-th smallest of m values is multiplied by m - k + 1, and never falls below the one before.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# --- the verdict ----------------------------------------------------------------------------------

VerdictWord = Literal["reproduced", "not distinguishable", "contradicted", "inconclusive"]


@dataclass(frozen=True)
class V1V2Verdict:
    """Whether V2 was better than V1, as in the paper: a word, and a sentence starting with it."""

    word: VerdictWord
    sentence: str


def verdict(v1: Summary | None, v2: Summary | None, comparison: Comparison | None) -> V1V2Verdict:
    """The verdict on `comparison`, V2 (full-preact) against the baseline V1 (original).

    Reproduced: the mean of V2 is lower and the 95 % Welch interval excludes 0. Contradicted: it is
    higher and the interval excludes 0. None marks a variant without a finished run.
    """
    if v1 is None or v2 is None or comparison is None:
        missing = [name for name, side in (("V1", v1), ("V2", v2)) if side is None]
        return _cannot(f"no finished run of {' and '.join(missing) or 'either'}")
    if comparison.interval is None:
        return _cannot(comparison.reason)
    low, high = comparison.interval
    n = f"n = {v1.n}" if v1.n == v2.n else f"n = {v1.n} and {v2.n}"
    span = f"95 % interval {low:+.2f} to {high:+.2f}"
    if low <= 0 <= high:
        return V1V2Verdict(
            "not distinguishable",
            f"not distinguishable at {n}: V2 − V1 is {comparison.difference:+.2f} points, and the "
            f"{span} contains 0.",
        )
    word: VerdictWord = "reproduced" if high < 0 else "contradicted"
    side = "below" if high < 0 else "above"
    size = abs(comparison.difference)
    return V1V2Verdict(
        word, f"{word}: V2's mean is {size:.2f} points {side} that of V1 ({span}, {n})."
    )


MOST_SEEDS = 1_000_000
POWER = 0.8


def seeds_needed(difference: float, sd: float) -> int | None:
    """Seeds of each of two variants that detect a difference with a power of 80 %.

    Detected: a two-sided t-test of two samples of n runs with this standard deviation gives
    p < 0.05. Its power is that of the noncentral t distribution with 2n - 2 degrees of freedom and
    noncentrality `difference` / `sd` · √(n / 2).

    Args:
        difference: of the means, in percentage points.
        sd: of the runs of one variant, in percentage points.

    Returns:
        The smallest n; None without a difference, or if more than a million are needed. At least
        2, since one seed has no spread.
    """
    if difference == 0 or power(difference, sd, MOST_SEEDS) < POWER:
        return None
    few, enough = 1, MOST_SEEDS
    while enough - few > 1:  # power grows with n
        middle = (few + enough) // 2
        few, enough = (few, middle) if power(difference, sd, middle) >= POWER else (middle, enough)
    return enough


def power(difference: float, sd: float, n: int) -> float:
    """The power of `n` seeds of each variant at the 5 % level; see `seeds_needed`."""
    if sd == 0:
        return 1.0
    stats, freedom = _scipy_stats(), 2 * n - 2
    shift = abs(difference) / sd * math.sqrt(n / 2)
    critical = float(stats.t.isf(0.025, freedom))
    if shift - critical > 30:  # SciPy's series loses its digits here, where the power is 1
        return 1.0
    tails = stats.nct.sf(critical, freedom, shift), stats.nct.cdf(-critical, freedom, shift)
    return float(sum(tail for tail in tails if math.isfinite(tail)))


def pooled_sd(v1: Summary, v2: Summary) -> float | None:
    """The root of the mean variance of two cells; None where one of them has a single run."""
    if v1.sd is None or v2.sd is None:
        return None
    return math.sqrt((v1.sd**2 + v2.sd**2) / 2)


def _cannot(reason: str) -> V1V2Verdict:
    return V1V2Verdict("inconclusive", f"inconclusive: {reason}.")


# --- helpers --------------------------------------------------------------------------------------


def _units(errors: Sequence[float]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Errors as integer multiples of `GRAIN`: their sums are exact, so ties stay ties."""
    import numpy as np

    return np.rint(np.asarray(errors, dtype=np.float64) / GRAIN).astype(np.int64)


def _welch_interval(first: Any, second: Any) -> tuple[tuple[float, float] | None, str]:
    """The 95 % interval of mean(second) - mean(first), or why it does not exist.

    Args:
        first, second: int64 [n], n at least 2, in units of `GRAIN`.
    """
    stats = _scipy_stats()
    if first.max() == first.min() and second.max() == second.min():
        same = " and equal those of the other variant" if first[0] == second[0] else ""
        return None, f"the runs of a variant are all equal{same}, so there is no interval"
    # Subtracting an integer keeps SciPy from losing digits where the spread is tiny.
    origin = first.min()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side may have no spread
        test = stats.ttest_ind(second - origin, first - origin, equal_var=False)
        interval = test.confidence_interval(0.95)
    return (float(interval.low) * GRAIN, float(interval.high) * GRAIN), ""


def _permutation_p(first: Any, second: Any) -> tuple[float, int | None]:
    """Two-sided p of the difference of means, and how many random partitions (None: all)."""
    import numpy as np

    stats = _scipy_stats()
    exact = math.comb(len(first) + len(second), len(first)) <= MOST_PARTITIONS
    test = stats.permutation_test(
        (first, second),
        _difference_of_means,
        vectorized=True,
        n_resamples=np.inf if exact else RESAMPLES,
        batch=10_000,
        alternative="two-sided",
        random_state=np.random.default_rng(SEED),  # `rng` only since SciPy 1.15
    )
    return float(test.pvalue), None if exact else RESAMPLES


def _difference_of_means(first: Any, second: Any, axis: int) -> Any:
    """The difference of means times both sizes: an integer, free of rounding."""
    return first.shape[axis] * second.sum(axis=axis) - second.shape[axis] * first.sum(axis=axis)


def _scipy_stats() -> Any:
    """`scipy.stats`, untyped: its functions are overloaded beyond what their stubs can follow."""
    return import_module("scipy.stats")
