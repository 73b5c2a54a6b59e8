"""V1 against V2 over several depths, against hand work and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from resvar.reports.pooled import improvement, mean_difference, pool
from tests.reports.test_verdicts import V1, around, judge

V2 = (6.37, 6.20, 6.46, 6.31, 6.40)


def test_one_depth_is_the_plain_welch_interval():
    difference, interval = mean_difference([(V1, V2)])
    textbook = stats.ttest_ind(V2, V1, equal_var=False).confidence_interval(0.95)
    assert difference == pytest.approx(np.mean(V2) - np.mean(V1))
    assert interval == pytest.approx((textbook.low, textbook.high))


def test_depths_have_the_same_weight():
    many = (around(6.0, 0.1) * 4, around(5.0, 0.1) * 4)
    difference, interval = mean_difference([(V1, V1), many])
    assert difference == pytest.approx(-0.5)
    assert interval[0] < -0.5 < interval[1]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(1500):
        sides = [(list(rng.normal(6.6, 0.1, 5)), list(rng.normal(6.4, 0.4, 5))) for _ in range(2)]
        low, high = mean_difference(sides)[1]
        held += low <= -0.2 <= high
    assert held / 1500 == pytest.approx(0.95, abs=0.02)


def test_the_probability_of_improvement_counts_pairs():
    found, (low, high) = improvement([(V1, V2)])
    pairs = [(ours < theirs) + (ours == theirs) / 2 for theirs, ours in itertools.product(V1, V2)]
    assert found == pytest.approx(np.mean(pairs))
    assert 0 <= low <= found <= high <= 1
    assert improvement([(V1, V1)])[0] == 0.5


def test_a_diverged_run_loses_against_every_other():
    lost = math.inf
    assert improvement([(V1, (lost,) * 5)]) == (0, None)
    assert improvement([((lost, lost), (lost, lost))])[0] == 0.5
    assert mean_difference([(V1, (*V2, lost))]) == (None, None)


def test_depths_without_two_runs_of_each_are_left_out():
    full, single = judge(V1, V2, 110), judge(V1[:1], V2)
    assert pool([full, single]).depths == (110,)
    assert pool([single]) is None
