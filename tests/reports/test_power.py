"""The power and the seeds needed against simulation, tables and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resvar.reports.power import (
    POWER,
    design_power,
    fewest_seeds,
    power,
    sd_range,
    seeds_needed,
)
from resvar.reports.statistics import compare


@pytest.mark.parametrize(
    ("ratio", "n"),
    # Cohen (1988), table 2.4.1: two-sided 5 %, power 80 %: 26 for d = 0.8, 64 for 0.5, 394 for 0.2.
    [(0.8, 26), (0.5, 64), (0.2, 394)],
)
def test_the_seeds_needed_are_those_of_cohens_table(ratio, n):
    assert seeds_needed(ratio, 1.0) == pytest.approx(n, abs=1)  # 393 with a normal quantile
    assert seeds_needed(-0.47 * ratio, 0.47) == seeds_needed(ratio, 1.0)


@pytest.mark.heavy
@pytest.mark.parametrize(("n", "comparisons"), [(5, 1), (5, 2), (6, 2), (7, 2), (8, 2)])
def test_the_power_is_the_share_of_verdicts(n, comparisons):
    rng = np.random.default_rng(7)
    found = [
        compare(list(rng.normal(0, 1, n)), list(rng.normal(-1.5, 1, n)), 1 - 0.05 / comparisons)
        for _ in range(1000)
    ]
    share = np.mean([each.decides for each in found])
    assert power(1.5, 1.0, n, comparisons) == pytest.approx(share, abs=0.05)


def test_five_seeds_are_too_few_for_the_smaller_published_difference():
    assert power(0.24, 0.16, 5, 2) < 0.4 < 0.85 < power(0.47, 0.16, 5, 2)
    found = design_power(-0.24, sd_range(0.16, 8), 5, 2)
    assert found.powers[0] < power(0.24, 0.16, 5, 2) < found.powers[1]
    assert found.seeds[0] < seeds_needed(0.24, 0.16, 2) == 10 < found.seeds[1]


def test_a_design_that_cannot_decide_has_no_power():
    assert power(100.0, 0.1, 4, 2) == 0
    assert power(100.0, 0.1, 5, 2) == 1
    assert [fewest_seeds(k) for k in (1, 2, 4, 7, 8)] == [4, 5, 5, 6, 6]
    for k in (1, 2, 4, 7, 8):
        n = fewest_seeds(k)
        assert k * 2 / math.comb(2 * n, n) <= 0.05 < k * 2 / math.comb(2 * n - 2, n - 1)


def test_the_seeds_needed_at_the_ends():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-6, 1.0) is None  # more than a million
    assert seeds_needed(5.0, 0.0) == 4
    assert seeds_needed(100.0, 0.01, comparisons=2) == 5


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 20.0), st.sampled_from([1, 2]))
def test_one_seed_less_would_not_do(ratio, comparisons):
    n = seeds_needed(ratio, 1.0, comparisons)
    assert n is not None
    assert power(ratio, 1.0, n, comparisons) >= POWER
    assert power(ratio, 1.0, n - 1, comparisons) < POWER


def test_the_range_of_a_standard_deviation():
    # With one degree of freedom the range spans a factor of more than thirty.
    low, high = sd_range(1.0, 2)
    assert low == pytest.approx(math.sqrt(2 / stats.chi2.ppf(0.95, 2)))
    assert high == pytest.approx(math.sqrt(2 / stats.chi2.ppf(0.05, 2)))
    rng = np.random.default_rng(3)
    sds = rng.standard_normal((4000, 9)).std(axis=1, ddof=1)
    ranges = [sd_range(sd, 8) for sd in sds]
    assert np.mean([a <= 1 <= b for a, b in ranges]) == pytest.approx(0.9, abs=0.02)
