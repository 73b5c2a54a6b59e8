"""The statistics against hand work and against a second way to the same number."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from resvar.reports.statistics import (
    MOST_PARTITIONS,
    RESAMPLES,
    compare,
    holm,
    p_values,
    smallest_p,
    summarise,
)

V1 = [6.61, 6.75, 6.43, 6.58, 6.70]
V2 = [6.37, 6.20, 6.46, 6.31, 6.40]

# Test errors as they come: images of 10,000.
errors = st.integers(0, 10_000).map(lambda wrong: wrong / 100)
some_errors = st.lists(errors, min_size=2, max_size=5)


# --- second methods -------------------------------------------------------------------------------


def textbook_welch(first, second, level=0.95):
    """Welch 1947, with one less than the degrees of freedom of Satterthwaite, and at least those
    of one side; Hsu 1938 for unequal sizes."""
    a, b = np.var(first, ddof=1) / len(first), np.var(second, ddof=1) / len(second)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    least = min(len(first), len(second)) - 1
    freedom = max(least, freedom - 1) if len(first) == len(second) else least
    error, middle = math.sqrt(a + b), np.mean(second) - np.mean(first)
    half = stats.t.ppf((1 + level) / 2, freedom) * error
    return middle - half, middle + half, 2 * stats.t.sf(abs(middle) / error, freedom)


def counted_p(first, second):
    """Twice the smaller tail of the studentised difference over all partitions, in fractions."""
    pooled = [round(100 * value) for value in (*first, *second)]
    n, m = len(first), len(second)

    def statistic(chosen):
        sides = [[pooled[i] for i in range(n + m) if (i in chosen) == inside] for inside in (1, 0)]
        means = [Fraction(sum(side), len(side)) for side in sides]
        spread = sum(
            sum((value - mean) ** 2 for value in side) / (len(side) * (len(side) - 1))
            for side, mean in zip(sides, means, strict=True)
        )
        difference = means[1] - means[0]
        if spread == 0:
            return math.copysign(math.inf, difference) if difference else 0
        return (1 if difference > 0 else -1) * difference**2 / spread

    observed = statistic(range(n))
    all_of_them = [statistic(chosen) for chosen in itertools.combinations(range(n + m), n)]
    below = sum(value <= observed for value in all_of_them)
    above = sum(value >= observed for value in all_of_them)
    return min(1.0, 2 * min(below, above) / len(all_of_them))


# --- one cell -------------------------------------------------------------------------------------


def test_summary_by_hand():
    summary = summarise([6.0, 7.0, 6.5, 6.1])
    assert summary.n == 4
    assert summary.median == pytest.approx(6.3)
    assert summary.mean == pytest.approx(6.4)
    # deviations -0.4, 0.6, 0.1, -0.3: squares add up to 0.62
    assert summary.sd == pytest.approx(math.sqrt(0.62 / 3))
    assert summary.values == (6.0, 7.0, 6.5, 6.1)


def test_one_run_has_no_deviation():
    summary = summarise([6.37])
    assert (summary.n, summary.median, summary.mean, summary.sd) == (1, 6.37, 6.37, None)


def test_equal_runs_have_a_deviation_of_exactly_zero():
    assert summarise([6.37] * 3).sd == 0.0
    assert summarise([0.1 + 0.2, 0.3]).sd == 0.0


@pytest.mark.parametrize("wrong", [[], [math.nan], [1.0, math.inf]])
def test_no_summary_of_nothing(wrong):
    with pytest.raises(ValueError, match="finite test errors"):
        summarise(wrong)


# --- two cells ------------------------------------------------------------------------------------


def test_comparison_by_hand():
    found = compare([6, 7, 8], [3, 4, 5])
    assert found.difference == pytest.approx(-3)
    # Both variances are 1: standard error sqrt(2/3), 4 - 1 degrees of freedom, t = 3.182446.
    half = 3.1824463053 * math.sqrt(2 / 3)
    assert found.interval == pytest.approx((-3 - half, -3 + half))
    # The most extreme of the 20 partitions, on both sides.
    assert found.p == pytest.approx(2 / 20)
    assert found.smallest_p == pytest.approx(2 / 20)
    assert found.n == (3, 3)
    assert found.resamples is None
    assert found.reason == ""


@settings(max_examples=60)
@given(some_errors, some_errors)
def test_p_is_the_larger_one_of_two_counted_another_way(first, second):
    found = compare(first, second)
    with np.errstate(all="ignore"):
        _, _, p = textbook_welch(first, second)
    counted = counted_p(first, second)
    assert found.p == pytest.approx(counted if math.isnan(p) else max(p, counted))


@pytest.mark.parametrize(("first", "second"), [(V1[:3], V2[:3]), ([50.0, 50.0], [40.0, 41.0])])
def test_the_interval_of_few_runs_is_welchs(first, second):
    found = compare(first, second)
    assert found.interval == pytest.approx(textbook_welch(first, second)[:2])
    assert not found.can_decide


@pytest.mark.heavy
@settings(max_examples=60)
@given(
    st.lists(errors, min_size=4, max_size=5),
    st.lists(errors, min_size=4, max_size=5),
    st.sampled_from([0.95, 0.9]),
)
def test_the_interval_contains_what_neither_test_rejects(first, second, level):
    found = compare(first, second, level)
    assume(found.interval is not None)
    low, high = found.interval
    welch = textbook_welch(first, second, level)
    assert low <= welch[0] + 1e-6
    assert high >= welch[1] - 1e-6
    assert found.decides == (not low <= 0 <= high)
    for beyond in (low - 0.01, high + 0.01):  # whole hundredths, so that counting is exact
        shift = round(beyond, 2)
        assert counted_p(first, [value - shift for value in second]) <= 1 - level + 1e-9


def test_the_test_has_its_level_for_equal_runs_and_unequal_spreads():
    """Each alone errs more: Welch by few runs, the permutation test by unequal spreads."""
    rng = np.random.default_rng(5)
    for sizes, ratio in (((5, 5), 1), ((5, 5), 4), ((4, 6), 0.25), ((2, 8), 0.25), ((3, 5), 0.25)):
        pooled = rng.standard_normal((sum(sizes), 4000))
        pooled[sizes[0] :] *= ratio
        share = (p_values(pooled, sizes) <= 0.05).mean()
        assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000), (sizes, ratio, share)
    welch = stats.ttest_ind(pooled[:3], pooled[3:], equal_var=False).pvalue
    assert (welch <= 0.05).mean() > 0.055


@settings(max_examples=40)
@given(some_errors, some_errors)
def test_swapping_the_sides_swaps_the_signs(first, second):
    there, back = compare(first, second), compare(second, first)
    assert back.difference == pytest.approx(-there.difference)
    assert back.p == pytest.approx(there.p)
    if there.interval:
        mirrored = -there.interval[1], -there.interval[0]
        assert back.interval == pytest.approx(mirrored, abs=1e-3)


@settings(max_examples=40)
@given(some_errors, some_errors, st.integers(-5000, 5000))
def test_a_shift_of_both_sides_changes_nothing(first, second, shift):
    moved = compare([v + shift / 100 for v in first], [v + shift / 100 for v in second])
    still = compare(first, second)
    assert moved.difference == pytest.approx(still.difference, abs=1e-9)
    assert moved.p == pytest.approx(still.p)
    assert (moved.interval is None) == (still.interval is None)
    if still.interval:
        assert moved.interval == pytest.approx(still.interval, abs=1e-3)


def test_ties_are_ties_although_floats_round():
    # 0.1 + 0.2 and 0.3 differ as floats: a partition that swaps them is as extreme as this one.
    assert compare([0.1 + 0.2, 5.0], [0.3, 1.0]).p == compare([0.3, 5.0], [0.3, 1.0]).p


def test_one_seed_gives_no_interval():
    for first, second in ([6.6], V2), (V1, [6.3]), ([6.6], [6.3]):
        found = compare(first, second)
        assert (found.interval, found.p) == (None, None)
        assert found.reason == "one seed gives no interval"
        assert found.difference == pytest.approx(np.mean(second) - np.mean(first))


def test_no_spread_gives_no_interval_and_says_so():
    apart = compare([6.61] * 3, [6.37] * 3)
    assert apart.interval is None
    assert "are all equal" in apart.reason
    assert apart.p == pytest.approx(2 / 20)
    same = compare([6.61] * 3, [6.61] * 3)
    assert same.interval is None
    assert "equal those of the other variant" in same.reason
    assert (same.difference, same.p) == (0, 1)


def test_eight_against_eight_is_exact_and_more_is_repeatable():
    many = [6 + i / 100 for i in range(11)]
    assert math.comb(16, 8) <= MOST_PARTITIONS < math.comb(18, 9)
    assert compare(many[:8], many[3:]).resamples is None
    first, second = compare(many, many[::-1]), compare(many, many[::-1])
    assert first.resamples == RESAMPLES
    assert first == second
    assert first.p == pytest.approx(1, abs=0.05)


def test_a_diverged_run_ranks_last():
    lost = math.inf
    found = compare([6.6, 6.7, 6.8, 6.9, 7.0], [6.1, 6.2, lost, lost, lost])
    assert (found.difference, found.interval, found.diverged) == (None, None, (0, 3))
    assert "diverged" in found.reason
    assert not found.decides  # two of five are the best, three the worst
    ranks = [3, 4, 5, 6, 7], [1, 2, 9, 9, 9]
    assert found.p == pytest.approx(compare(*ranks).p)
    worse = compare([6.6, 6.7, 6.8, 6.9, 7.0], [lost] * 5)
    assert worse.p == pytest.approx(2 / 252)
    assert compare([lost] * 3, [lost] * 3).p == 1


def test_nan_is_no_test_error():
    with pytest.raises(ValueError, match="test errors are needed"):
        compare([6.6, math.nan], V2)
    with pytest.raises(ValueError, match="test errors are needed"):
        compare([], V2)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 5), (3, 8), (30, 30), (31, 30), (40, 40)])
def test_the_smallest_p_is_that_of_one_partition(n, m):
    assert smallest_p(n, m) == pytest.approx(2 / math.comb(n + m, n))


def test_a_thousand_seeds_take_little_memory_and_time():
    rng = np.random.default_rng(1)
    first, second = rng.normal(6.6, 0.2, 1000), rng.normal(6.5, 0.2, 1000)
    tracemalloc.start()
    found = compare(list(first), list(second))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.resamples == 2000
    assert found.decides
    assert peak < 300 * 2**20


# --- Holm -----------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_helps(p_values):
    adjusted = holm(p_values)
    m = len(p_values)
    for before, after in zip(p_values, adjusted, strict=True):
        assert before <= after <= 1
        assert after <= min(1.0, m * before) or after in adjusted
    by_p = [after for _, after in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)
