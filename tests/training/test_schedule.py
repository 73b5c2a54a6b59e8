from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from resvar.config import resolve
from resvar.training.schedule import learning_rate


def make_settings(*overrides, protocol="paper"):
    return resolve(
        options={"variant": "original", "depth": 20, "protocol": protocol}, overrides=overrides
    )


BASE = make_settings()


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 0.01),
        (399, 0.01),
        (400, 0.1),
        (31_999, 0.1),
        (32_000, 0.01),
        (47_999, 0.01),
        (48_000, 0.001),
        (63_999, 0.001),
    ],
)
def test_the_papers_rates(iteration, rate):
    """arXiv:1603.05027, appendix; arXiv:1512.03385, section 4.2."""
    assert learning_rate(iteration, make_settings()) == pytest.approx(rate, rel=1e-12)


@hypothesis_settings(max_examples=100)
@given(
    iteration=st.integers(0, 1000),
    warmup=st.integers(0, 300),
    milestones=st.sets(st.integers(1, 1000), max_size=4).map(sorted),
    lr=st.floats(1e-6, 1e3),
    factor=st.floats(0.01, 1),
)
def test_steps_fall_at_the_milestones_and_nowhere_else(iteration, warmup, milestones, lr, factor):
    settings = BASE.model_copy(
        update={
            "warmup_iterations": warmup, "milestones": milestones, "lr": lr, "lr_factor": factor,
            "warmup_lr": 0.0123,
        }
    )  # fmt: skip
    expected = lr
    for milestone in milestones:
        if milestone <= iteration:
            expected = expected * factor
    if iteration < warmup:
        expected = 0.0123
    assert learning_rate(iteration, settings) == pytest.approx(expected, rel=1e-12)


def test_one_cycle_starts_peaks_and_ends_where_it_says():
    settings = make_settings(
        "schedule=one-cycle", "iterations=100", "peak_at=0.3", "lr=0.4", "warmup_lr=0.1"
    )
    rates = [learning_rate(i, settings) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[15] == pytest.approx(0.25)  # half of the way up
    assert rates[30] == pytest.approx(0.4)
    assert rates[65] == pytest.approx(0.2)  # half of the way down
    assert rates[99] == pytest.approx(0.4 / 70)  # the next would be zero
    assert max(rates) == rates[30]


@pytest.mark.parametrize(("protocol", "peak", "at"), [("short", 0.3, 0.15), ("quick", 0.1, 0.3)])
def test_the_shorter_protocols_rise_from_warmup_lr_and_fall_to_zero(protocol, peak, at):
    settings = make_settings(protocol=protocol)
    rates = [learning_rate(i, settings) for i in range(settings.iterations)]
    assert rates[0] == 0.01
    assert max(rates) == pytest.approx(peak, rel=1e-2)
    top = rates.index(max(rates))
    assert top == pytest.approx(at * settings.iterations, abs=1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < peak / 100


@hypothesis_settings(max_examples=150)
@given(
    iterations=st.integers(1, 100_000),
    share=st.floats(0, 1, exclude_max=True),
    peak_at=st.floats(0.001, 0.999),
    lr=st.floats(1e-6, 1e3),
    begin=st.floats(1e-6, 1e3),
)
def test_one_cycle_is_continuous_positive_and_within_its_bounds(
    iterations, share, peak_at, lr, begin
):
    settings = BASE.model_copy(
        update={
            "schedule": "one-cycle", "iterations": iterations, "peak_at": peak_at, "lr": lr,
            "warmup_lr": begin,
        }
    )  # fmt: skip
    i = int(share * iterations)
    assume(i < iterations)
    rate, following = learning_rate(i, settings), learning_rate(i + 1, settings)
    assert 0 < rate <= max(lr, begin) * (1 + 1e-12)
    assert following >= 0
    # The larger of the two slopes bounds every step, the one over the peak included.
    slope = max(abs(lr - begin) / (peak_at * iterations), lr / ((1 - peak_at) * iterations))
    assert abs(following - rate) <= slope * (1 + 1e-6)
    assert learning_rate(iterations, settings) == 0
    assert learning_rate(0, settings) == pytest.approx(begin)


def test_the_rate_depends_on_nothing_but_its_arguments():
    settings = make_settings(protocol="quick")
    first = [learning_rate(i, settings) for i in range(400)]
    assert [learning_rate(i, settings) for i in reversed(range(400))] == first[::-1]
