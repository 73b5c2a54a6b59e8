"""The time left that a run logs, on a clock that the test turns."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from resvar.config import resolve
from resvar.training.pace import Pace
from resvar.training.progress import Progress

ROW = {
    "iteration": 0.0, "epoch": 0.0, "lr": 0.1, "train_loss": 1.0, "train_error": 1.0,
    "test_loss": 1.0, "test_error": 1.0, "images_per_second": 1.0, "seconds": 1.0,
}  # fmt: skip


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


def trainer(iterations: int = 100, eval_every: int = 10) -> Any:
    settings = resolve(
        None,
        {"variant": "original", "depth": 20, "protocol": "quick"},
        [f"iterations={iterations}", f"eval_every={eval_every}", "batch_size=8",
         "bn_batch_size=8"],
    )  # fmt: skip
    made = SimpleNamespace(
        settings=settings,
        iteration=0,
        last_evaluation=0,
        mean_loss=lambda: 1.0,
        pace=Pace(settings, test_images=240),
    )
    made.seconds_left = lambda: made.pace.seconds_left(made.iteration, made.last_evaluation)
    return made


def run(
    progress: Progress, trained: Any, clock: Clock, to: int, each: float, evaluation: float
) -> None:
    """Iterations of `each` seconds, and an evaluation wherever one is due."""
    while trained.iteration < to:
        clock.now += each
        trained.iteration += 1
        trained.pace.updated()
        progress.on_update(trained)
        if trained.iteration % trained.settings.eval_every == 0:
            for share in (0.0, 0.5):
                trained.pace.evaluating(share)
                progress.on_evaluation_batch(share)
                clock.now += evaluation / 2
            trained.pace.evaluated()
            trained.last_evaluation = trained.iteration
            progress.on_evaluation(trained, ROW | {"iteration": float(trained.iteration)})


def shown(trained: Any, out: io.StringIO) -> Progress:
    return Progress(trained, Console(file=out, width=200))


def test_the_time_left_contains_the_measured_evaluations(clock: Clock) -> None:
    trained = trainer()
    run(shown(trained, io.StringIO()), trained, clock, to=50, each=2.0, evaluation=30.0)
    # 50 iterations of 2 s and the evaluations at 60, 70, 80, 90, 100.
    assert trained.seconds_left() == pytest.approx(50 * 2 + 5 * 30)


def test_an_evaluation_before_the_first_update_does_not_change_the_speed(clock: Clock) -> None:
    """As when a run resumes at an iteration whose evaluation was interrupted."""
    trained = trainer()
    trained.pace.evaluating(0.0)
    clock.now += 50.0
    trained.pace.evaluated()
    run(shown(trained, io.StringIO()), trained, clock, to=5, each=2.0, evaluation=30.0)
    assert trained.pace.images_per_second == pytest.approx(8 / 2.0)


def test_before_the_first_evaluation_a_forward_pass_is_a_third(clock: Clock) -> None:
    trained, out = trainer(), io.StringIO()
    run(shown(trained, out), trained, clock, to=5, each=2.0, evaluation=30.0)
    # 240 test images at a speed of 4 images/s take 20 s an evaluation.
    assert trained.seconds_left() == pytest.approx(95 * 2 + 10 * 20)
    # Logged once, after three iterations beyond the first: 96 are left, and ten evaluations.
    assert "About 6:32 min left" in out.getvalue()
    assert "4.0 images/s over 3 iterations." in out.getvalue()


@pytest.mark.parametrize(
    ("iterations", "every", "last", "left"),
    [(100, 10, 0, 10), (100, 10, 50, 5), (105, 10, 100, 1), (105, 10, 105, 0), (4, 4, 0, 1),
     (100, 10, 100, 0)],
)  # fmt: skip
def test_evaluations_after(iterations: int, every: int, last: int, left: int) -> None:
    assert trainer(iterations, every).settings.evaluations_after(last) == left
