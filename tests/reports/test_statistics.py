"""The statistics against hand work and against a second way to the same number."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from resvar.reports.statistics import (
    MOST_PARTITIONS,
    RESAMPLES,
    V1V2Verdict,
    compare,
    holm,
    power,
    seeds_needed,
    summarise,
    verdict,
)

V1 = [6.61, 6.75, 6.43, 6.58, 6.70]
V2 = [6.37, 6.20, 6.46, 6.31, 6.40]

# Test errors as they come: images of 10,000.
errors = st.integers(0, 10_000).map(lambda wrong: wrong / 100)
some_errors = st.lists(errors, min_size=2, max_size=5)


# --- second methods -------------------------------------------------------------------------------


def textbook_welch(first, second):
    """Welch 1947, with the degrees of freedom of Satterthwaite."""
    a, b = np.var(first, ddof=1) / len(first), np.var(second, ddof=1) / len(second)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(a + b)
    middle = np.mean(second) - np.mean(first)
    return middle - half, middle + half


def counted_p(first, second):
    """Twice the smaller tail over all partitions, in whole hundredths so that ties are ties."""
    pooled = [round(100 * value) for value in (*first, *second)]
    n, m = len(first), len(second)

    def statistic(chosen):
        inside = sum(pooled[i] for i in chosen)
        return m * inside - n * (sum(pooled) - inside)

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
    # Both variances are 1: standard error sqrt(2/3), 4 degrees of freedom, t = 2.776445.
    half = 2.7764451052 * math.sqrt(2 / 3)
    assert found.interval == pytest.approx((-3 - half, -3 + half))
    # The most extreme of the 20 partitions, on both sides.
    assert found.p == pytest.approx(2 / 20)
    assert found.smallest_p == pytest.approx(2 / 20)
    assert found.n == (3, 3)
    assert found.resamples is None
    assert found.reason == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [(V1, V2), (V1, V2[:3]), ([8.17, 8.2], V1), ([50.0, 50.0], [40.0, 41.0]), (V1, V1)],
)
def test_comparison_by_second_methods(first, second):
    found = compare(first, second)
    assert found.interval == pytest.approx(textbook_welch(first, second))
    assert found.p == pytest.approx(counted_p(first, second))


@settings(max_examples=40)
@given(some_errors, some_errors)
def test_p_is_what_counting_gives(first, second):
    assert compare(first, second).p == pytest.approx(counted_p(first, second))


@settings(max_examples=40)
@given(some_errors, some_errors)
def test_swapping_the_sides_swaps_the_signs(first, second):
    there, back = compare(first, second), compare(second, first)
    assert back.difference == pytest.approx(-there.difference)
    assert back.p == pytest.approx(there.p)
    if there.interval:
        assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))


@settings(max_examples=40)
@given(some_errors, some_errors, st.integers(-5000, 5000))
def test_a_shift_of_both_sides_changes_nothing(first, second, shift):
    moved = compare([v + shift / 100 for v in first], [v + shift / 100 for v in second])
    still = compare(first, second)
    assert moved.difference == pytest.approx(still.difference, abs=1e-9)
    assert moved.p == pytest.approx(still.p)
    assert (moved.interval is None) == (still.interval is None)
    if still.interval:
        assert moved.interval == pytest.approx(still.interval, abs=1e-6)


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


# --- the verdict ----------------------------------------------------------------------------------


def judge(v1, v2) -> V1V2Verdict:
    return verdict(summarise(v1), summarise(v2), compare(v1, v2))


def test_reproduced():
    found = judge(V1, V2)
    assert found.word == "reproduced"
    assert found.sentence.startswith("reproduced: V2's mean is 0.27 points below that of V1 (95 %")
    assert "n = 5" in found.sentence


def test_contradicted():
    found = judge(V2, V1)
    assert found.word == "contradicted"
    assert "0.27 points above" in found.sentence


def test_not_distinguishable():
    found = judge(V1, [6.4, 6.9, 6.3])
    assert found.word == "not distinguishable"
    assert found.sentence.startswith("not distinguishable at n = 5 and 3:")


def test_cannot_be_said():
    assert judge([6.6], V2).sentence == "inconclusive: one seed gives no interval."
    assert judge([6.6] * 2, [6.5] * 2).word == "inconclusive"
    nobody = verdict(None, summarise(V2), None)
    assert nobody == V1V2Verdict("inconclusive", "inconclusive: no finished run of V1.")
    assert "V1 and V2" in verdict(None, None, None).sentence


@settings(max_examples=40)
@given(some_errors, some_errors)
def test_the_verdict_follows_the_textbook_interval(first, second):
    assume(len(set(first)) > 1 or len(set(second)) > 1)
    with np.errstate(all="ignore"):
        low, high = textbook_welch(first, second)
    assume(min(abs(low), abs(high)) > 1e-6)
    words = {True: "reproduced", False: "contradicted"}
    expected = "not distinguishable" if low < 0 < high else words[high < 0]
    assert judge(first, second).word == expected


# --- how many seeds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "n"),
    # Cohen (1988), table 2.4.1: two-sided 5 %, power 80 %: 26 for d = 0.8, 64 for 0.5, 394 for 0.2.
    [(0.8, 26), (0.5, 64), (0.2, 394)],
)
def test_the_seeds_needed_are_those_of_cohens_table(ratio, n):
    assert seeds_needed(ratio, 1.0) == n
    assert seeds_needed(-0.47 * ratio, 0.47) == n


def test_the_power_is_that_of_a_simulation():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (20_000, 6)), rng.normal(1.5, 1, (20_000, 6))
    p = stats.ttest_ind(first, second, axis=1).pvalue
    assert power(1.5, 1.0, 6) == pytest.approx((p < 0.05).mean(), abs=0.01)


def test_the_seeds_needed_at_the_ends():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-6, 1.0) is None  # more than a million
    assert seeds_needed(5.0, 0.0) == 2
    assert seeds_needed(100.0, 0.01) == 2


@given(st.floats(0.05, 20.0))
def test_one_seed_less_would_not_do(ratio):
    n = seeds_needed(ratio, 1.0)
    assert n is not None
    assert n >= 2
    assert power(ratio, 1.0, n) >= 0.8
    assert n == 2 or power(ratio, 1.0, n - 1) < 0.8
