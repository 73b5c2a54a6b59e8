"""The statistics of a report: summaries of cells, and the comparison of two cells.

Test errors are in percent of the test images, differences in percentage points; lower is better.
Two cells differ where two tests both say so:

- Welch's t-test. It allows for different spreads, but assumes normal test errors.
- The studentised permutation test (Janssen 1997, doi:10.1016/S0167-7152(97)00043-6). It assumes no
  distribution, but with few runs it needs similar spreads. Its p is at least 2 / C(n + m, n).

Each alone claims too many differences with few runs and unequal spreads. Both together keep their
error rate, unless errors are strongly skewed and spread unequally (`docs/statistics.md`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

ERROR_RATE = 0.05

MOST_PARTITIONS = 20_000
"""Up to this number every partition is counted; eight seeds against eight give 12,870."""

RESAMPLES = 19_999
"""Random partitions beyond it; always the same ones, since the generator starts at `SEED`."""

LARGEST_TABLE = 4_000_000
"""Entries of the table of partitions, 32 MB; of more than 200 runs there are fewer partitions."""

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


def pooled_sd(first: Summary, second: Summary) -> float | None:
    """The root of the mean variance of two cells; None where one of them has a single run."""
    if first.sd is None or second.sd is None:
        return None
    return math.sqrt((first.sd**2 + second.sd**2) / 2)


# --- two cells ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One cell against another.

    Attributes:
        n: the runs of the baseline and of the other, those that diverged included.
        difference: mean of the other − mean of the baseline; negative: the other is better. None
            where a run diverged.
        interval: of the difference: what the two tests do not reject at `1 - level`; Welch's alone
            where so few runs can reject nothing. None where there is none.
        level: the confidence of the interval, such as 0.95.
        p: two-sided, the larger of the p of the two tests; on ranks where a run diverged. Or None.
        smallest_p: the smallest p that so many seeds can give, or None where p is None.
        resamples: None where every partition was counted, else how many random ones.
        reason: why something is None, or an empty string.
        diverged: how many runs of the baseline and of the other diverged.
    """

    n: tuple[int, int]
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    smallest_p: float | None = None
    resamples: int | None = None
    reason: str = ""
    level: float = 1 - ERROR_RATE
    diverged: tuple[int, int] = (0, 0)

    @property
    def can_decide(self) -> bool:
        """Whether so many runs can give a p of `1 - level` or less."""
        return self.smallest_p is not None and self.smallest_p <= _with_room(1 - self.level)

    @property
    def decides(self) -> bool:
        """Whether the two cells differ at `level`."""
        return self.p is not None and self.p <= _with_room(1 - self.level)


def compare(
    baseline: Sequence[float], other: Sequence[float], level: float = 1 - ERROR_RATE
) -> Comparison:
    """Compare the test errors of `other` with those of `baseline`.

    Args:
        baseline, other: in percent; infinite for a run that diverged. If there is one, the tests
            compare ranks, among which diverged runs share the last place.
        level: the confidence of the interval.

    Raises:
        ValueError: a side is empty, or an error is NaN.
    """
    import numpy as np

    sizes = len(baseline), len(other)
    if not min(sizes) or any(map(math.isnan, (*baseline, *other))):
        raise ValueError(f"test errors are needed, not {list(baseline)} and {list(other)}")
    diverged = sum(map(math.isinf, baseline)), sum(map(math.isinf, other))
    finite = not any(diverged)
    difference = summarise(other).mean - summarise(baseline).mean if finite else None
    if min(sizes) == 1:
        reason = "one seed gives no interval"
        return Comparison(sizes, difference, None, None, None, None, reason, level, diverged)
    if finite:
        units = _units((*baseline, *other))
        pooled = (units - units.min()).astype(np.float64)
        interval, reason = _interval(pooled, sizes, 1 - level)
    else:
        pooled = _ranks((*baseline, *other))
        interval, reason = None, "a diverged run has no test error, so there is no interval"
    return Comparison(
        n=sizes,
        difference=difference,
        interval=interval,
        p=float(p_values(pooled[:, None], sizes)[0]),
        smallest_p=smallest_p(*sizes),
        resamples=None if _are_all(*sizes) else _resamples(*sizes),
        reason=reason,
        level=level,
        diverged=diverged,
    )


def smallest_p(first: int, second: int) -> float:
    """The smallest p that `first` runs against `second` can give, however large the difference."""
    if first + second <= 60:
        return min(1.0, 2 / math.comb(first + second, first))
    logarithm = math.lgamma(first + second + 1) - math.lgamma(first + 1) - math.lgamma(second + 1)
    return 2 * math.exp(-logarithm)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several comparisons (Holm 1979), in the order given.

    The k-th smallest of m values is multiplied by m - k + 1, and never falls below the one before.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# --- the two tests --------------------------------------------------------------------------------


def p_values(pooled: Array, sizes: tuple[int, int]) -> Array:
    """The larger p of the two tests, for each of K experiments.

    Args:
        pooled: float64 [n + m, K]; of each experiment the n runs of the baseline, then the m of
            the other.
        sizes: n and m, at least 2 each.

    Returns:
        float64 [K].
    """
    import numpy as np

    return np.maximum(_t_p(pooled, sizes), _permutation_p(pooled, sizes))


def _t_p(pooled: Array, sizes: tuple[int, int]) -> Array:
    """Two-sided p of the t-test; 0 where only the means differ."""
    import numpy as np

    difference, variances = _moments(pooled, sizes)
    special = import_module("scipy.special")
    spread = variances.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(spread > 0, np.abs(difference) / np.sqrt(spread), np.inf)
        p: Array = 2 * special.stdtr(_freedom(variances, sizes), -t)
    return np.where(spread > 0, p, np.where(difference == 0, 1.0, 0.0))


def _moments(pooled: Array, sizes: tuple[int, int]) -> tuple[Array, Array]:
    """The difference of means, [K], and the variances of both means, [2, K]."""
    import numpy as np

    sides = pooled[: sizes[0]], pooled[sizes[0] :]
    variances = np.stack([np.var(side, axis=0, ddof=1) / len(side) for side in sides])
    return sides[1].mean(axis=0) - sides[0].mean(axis=0), variances


def _freedom(variances: Array, sizes: tuple[int, int]) -> Array:
    """The degrees of freedom of a difference of means.

    Those of the smaller side are never too optimistic (Hsu 1938). For equal sizes Satterthwaite's
    less one are closer; in full they are slightly too optimistic. For unequal sizes they are far
    too optimistic if the smaller side spreads more (`docs/statistics.md`).
    """
    import numpy as np

    least: Array = np.full(variances.shape[1], min(sizes) - 1.0)
    if sizes[0] != sizes[1]:
        return least
    with np.errstate(invalid="ignore"):
        freedom = least * variances.sum(axis=0) ** 2 / (variances**2).sum(axis=0)
    found: Array = np.maximum(least, freedom - 1)
    return found


def _permutation_p(pooled: Array, sizes: tuple[int, int]) -> Array:
    """Twice the smaller tail: the share of partitions with a t at least as far out."""
    import numpy as np

    members = _partitions(*sizes)
    chunk = max(1, 4_000_000 // len(members))
    found = []
    for start in range(0, pooled.shape[1], chunk):
        t = _studentised(members, pooled[:, start : start + chunk], sizes)
        room = 1e-9 * np.where(np.isfinite(t[0]), np.abs(t[0]), 0)
        tails = (t >= t[0] - room).mean(axis=0), (t <= t[0] + room).mean(axis=0)
        found.append(np.minimum(1.0, 2 * np.minimum(*tails)))
    return np.concatenate(found)


def _studentised(members: Array, pooled: Array, sizes: tuple[int, int]) -> Array:
    """Welch's t of every partition, [partitions, K]; ±∞ where only the means differ.

    Args:
        members: float64 [partitions, n + m], 1 where a run is on the side of the baseline.
    """
    import numpy as np

    n, m = sizes
    centred = pooled - pooled.mean(axis=0)
    squares = centred**2
    total, sum_1, square_1 = squares.sum(axis=0), members @ centred, members @ squares
    mean_1, mean_2 = sum_1 / n, -sum_1 / m
    variance = (square_1 / n - mean_1**2) / (n - 1)
    variance += ((total - square_1) / m - mean_2**2) / (m - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(variance > 1e-12 * total, variance, 0.0)  # else it is rounding
        difference = np.where(np.abs(mean_1) > 1e-9 * np.sqrt(total), mean_2 - mean_1, 0.0)
        return np.where(difference == 0, 0.0, difference / np.sqrt(spread))


@lru_cache(maxsize=4)
def _partitions(n: int, m: int) -> Array:
    """Which runs are on the side of the baseline, [partitions, n + m]; first as they were."""
    import numpy as np

    if _are_all(n, m):
        chosen = np.array(list(_combinations(n + m, n)))
    else:
        shuffled = np.random.default_rng(SEED).random((_resamples(n, m), n + m)).argsort(axis=1)
        chosen = np.concatenate([np.arange(n)[None], shuffled[:, :n]])
    members = np.zeros((len(chosen), n + m))
    np.put_along_axis(members, chosen, 1.0, axis=1)
    return members


def _combinations(total: int, size: int) -> Iterator[tuple[int, ...]]:
    from itertools import combinations

    return combinations(range(total), size)


def _resamples(n: int, m: int) -> int:
    return min(RESAMPLES, LARGEST_TABLE // (n + m))


def _are_all(n: int, m: int) -> bool:
    return smallest_p(n, m) * MOST_PARTITIONS >= 2


# --- the interval ---------------------------------------------------------------------------------


def _interval(
    pooled: Array, sizes: tuple[int, int], rate: float
) -> tuple[tuple[float, float] | None, str]:
    """The differences that one of the two tests does not reject, or why there is no interval.

    Args:
        pooled: float64 [n + m], in units of `GRAIN`.
        rate: the error rate, 0.05 for an interval of 95 %.
    """
    first, second = pooled[: sizes[0]], pooled[sizes[0] :]
    if first.max() == first.min() and second.max() == second.min():
        same = " and equal those of the other variant" if first[0] == second[0] else ""
        return None, f"the runs of a variant are all equal{same}, so there is no interval"
    (difference,), variances = _moments(pooled[:, None], sizes)
    (freedom,) = _freedom(variances, sizes)
    special = import_module("scipy.special")
    half = -float(special.stdtrit(freedom, rate / 2)) * math.sqrt(variances.sum())
    ends = difference - half, difference + half
    if smallest_p(*sizes) <= _with_room(rate):
        low, high = (
            _moved_out(*end, pooled, sizes, rate) for end in zip(ends, (-half, half), strict=True)
        )
        ends = low, high
    return (float(ends[0]) * GRAIN, float(ends[1]) * GRAIN), ""


def _moved_out(
    end: float, step: float, pooled: Array, sizes: tuple[int, int], rate: float
) -> float:
    """The end of the t-test's interval, or that of the permutation test if it is further out.

    Args:
        step: half the width of the interval, negative at its lower end.
    """

    def rejected(difference: float) -> bool:
        shifted = pooled.copy()
        shifted[sizes[0] :] -= difference
        return float(_permutation_p(shifted[:, None], sizes)[0]) <= _with_room(rate)

    if rejected(end):
        return end
    inside, outside = end, end + step
    while not rejected(outside):
        step *= 2
        inside, outside = outside, outside + step
    for _ in range(20):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
    return outside


# --- helpers --------------------------------------------------------------------------------------


def _with_room(rate: float) -> float:
    """A p of exactly `rate` counts as reached although floats round."""
    return rate * (1 + 1e-9)


def _units(errors: Sequence[float]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Errors as integer multiples of `GRAIN`: equal errors stay equal."""
    import numpy as np

    return np.rint(np.asarray(errors, dtype=np.float64) / GRAIN).astype(np.int64)


def _ranks(errors: Sequence[float]) -> Array:
    """Ranks from 1; equal errors, and diverged runs, share the mean of theirs."""
    import numpy as np

    known = [error if math.isinf(error) else round(error / GRAIN) for error in errors]
    _, index, counts = np.unique(known, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: Array = (last - (counts - 1) / 2)[index]
    return ranks
