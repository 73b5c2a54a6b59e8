"""Speed and time left after any history of updates, evaluations and interruptions."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resvar.config import resolve
from resvar.training.pace import Pace

BATCH, TEST_IMAGES = 8, 60
FASTEST = 0.01
"""Seconds of the shortest update."""

seconds = st.floats(FASTEST, 1e6)
EVENTS = st.one_of(
    st.tuples(st.just("update"), seconds),
    st.tuples(st.just("evaluation"), seconds),
    st.tuples(st.just("stopped evaluation"), seconds),
    st.tuples(st.just("checkpoint"), seconds),
    st.tuples(st.just("resumption"), seconds),
    st.tuples(st.just("set the clock"), st.floats(-1e9, 1e9)),
)


def settings(iterations: int = 1000, every: int = 10) -> Any:
    options = {"variant": "original", "depth": 20, "protocol": "quick"}
    sets = [f"iterations={iterations}", f"eval_every={every}", f"batch_size={BATCH}"]
    return resolve(None, options, [*sets, f"bn_batch_size={BATCH}"])


SETTINGS = settings()


class Machine:
    """A run whose clocks the test turns, with what it has really done."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.wall = 1000.0, 1.7e9
        patch.setattr(time, "monotonic", lambda: self.now)
        patch.setattr(time, "time", lambda: self.wall)
        self.pace = Pace(SETTINGS, TEST_IMAGES)
        self.iteration = self.last = 0
        self.trained = 0.0

    def do(self, event: str, amount: float) -> None:
        if event == "set the clock":
            self.wall += amount
            return
        if "evaluation" in event:
            for share in (0.0, 0.3, 0.9):
                self.pace.evaluating(share)
                self.pass_time(amount / 3)
                self.check()
            if event == "evaluation":
                self.pace.evaluated()
                self.last = self.iteration
        else:
            self.pass_time(amount)
        if event == "update":
            self.pace.updated()
            self.trained += amount
            self.iteration += 1
        if event in ("resumption", "stopped evaluation"):
            earlier = self.iteration * BATCH / self.trained if self.trained else 0.0
            self.pace = Pace(SETTINGS, TEST_IMAGES, earlier)

    def pass_time(self, amount: float) -> None:
        self.now += amount
        self.wall += amount

    def check(self) -> None:
        speed = self.pace.images_per_second
        assert math.isfinite(speed)
        assert 0 <= speed <= BATCH / FASTEST * (1 + 1e-6)
        left = self.pace.seconds_left(self.iteration, self.last)
        if not speed:
            assert left is None
            return
        assert left is not None
        assert math.isfinite(left)
        images = (SETTINGS.iterations - self.iteration) * BATCH
        assert left >= images / speed * (1 - 1e-9)
        assert left > 0 or (images == 0 and self.last == SETTINGS.iterations)


@given(events=st.lists(EVENTS, max_size=60))
def test_the_speed_is_never_above_the_true_one_and_the_time_left_fits_it(events):
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch)
        for event, amount in events:
            machine.do(event, amount)
            machine.check()


@given(
    update=st.floats(FASTEST, 100),
    evaluation=st.floats(0.01, 100),
    stops=st.sets(st.integers(1, 60), max_size=4),
    every=st.integers(3, 25),
)
def test_the_time_left_is_exact_where_every_update_takes_as_long(update, evaluation, stops, every):
    """Also after interruptions in evaluations, which are then repeated."""
    chosen = settings(60, every)
    with pytest.MonkeyPatch.context() as patch:
        now = 0.0
        patch.setattr(time, "monotonic", lambda: now)
        pace, last, measured = Pace(chosen, TEST_IMAGES), 0, 0
        for iteration in range(1, 61):
            now += update
            pace.updated()
            if iteration % every and iteration != 60:
                continue
            pace.evaluating(0.0)
            if iteration in stops:
                now += evaluation / 2
                pace, measured = Pace(chosen, TEST_IMAGES, BATCH / update), 0
                pace.evaluating(0.0)
            now += evaluation
            pace.evaluated()
            last, measured = iteration, measured + 1
            evaluations = len({*range(every, 61, every), 60} - set(range(last + 1)))
            truth = (60 - iteration) * update + evaluations * evaluation
            assert pace.images_per_second == pytest.approx(BATCH / update)
            assert pace.seconds_left(iteration, last) == pytest.approx(truth)
            assert measured


def test_a_clock_that_stands_still_gives_no_speed(monkeypatch):
    """The clock of some systems moves every 16 ms."""
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    pace = Pace(SETTINGS, TEST_IMAGES)
    for _ in range(3):
        pace.updated()
    assert pace.images_per_second == 0
    assert pace.seconds_left(3, 0) is None


def test_a_resumed_run_starts_with_the_speed_of_its_earlier_processes(monkeypatch):
    ticks = itertools.count(0.0, 2.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    pace = Pace(SETTINGS, TEST_IMAGES, earlier=16.0)
    assert pace.images_per_second == 16
    assert pace.seconds_left(999, 990) == pytest.approx(BATCH / 16 + TEST_IMAGES / 3 / 16)
