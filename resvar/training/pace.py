"""How fast a run is in this process, and when it will end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resvar.training.trainer import Trainer


@dataclass
class Pace:
    """Clock of one process of a run; it starts after the first update, which warms everything up.

    Attributes:
        evaluations: seconds that each evaluation of this process took.
    """

    evaluations: list[float] = field(default_factory=list)
    _start: tuple[int, float] | None = None
    _paused: float = 0.0

    def updated(self, iteration: int) -> None:
        if self._start is None:
            self._start = iteration, time.monotonic()

    def evaluated(self, seconds: float) -> None:
        self.evaluations.append(seconds)
        self._paused += seconds if self._start is not None else 0.0

    def since_start(self, iteration: int) -> tuple[int, float]:
        """Updates and seconds since the first update of this process."""
        if self._start is None:
            return 0, 0.0
        first, begun = self._start
        return iteration - first, time.monotonic() - begun

    def images_per_second(self, trainer: Trainer) -> float:
        """Training images per second of this process, checkpoints included, evaluations not."""
        updates, seconds = self.since_start(trainer.iteration)
        seconds = max(seconds - self._paused, 1e-9)
        return updates * trainer.settings.batch_size / seconds

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Of training and of evaluations; None before the second update of this process."""
        if not self.since_start(trainer.iteration)[0]:
            return None
        speed = self.images_per_second(trainer)
        images = (trainer.settings.iterations - trainer.iteration) * trainer.settings.batch_size
        each = (
            sum(self.evaluations) / len(self.evaluations)
            if self.evaluations
            else _evaluation_seconds(trainer, speed)
        )
        return images / speed + evaluations_to_come(trainer) * each


def evaluations_to_come(trainer: Trainer) -> int:
    """How many evaluations the run still makes, the one that is due now included."""
    settings = trainer.settings
    last = int(trainer.rows[-1]["iteration"]) if trainer.rows else 0
    due = settings.iterations // settings.eval_every - last // settings.eval_every
    at_the_end = settings.iterations % settings.eval_every != 0 and last < settings.iterations
    return due + at_the_end


def _evaluation_seconds(trainer: Trainer, speed: float) -> float:
    """Of one evaluation, if a forward pass is a third of the work of training."""
    images = len(trainer.splits.test.labels) + trainer.settings.holdout
    return images / (3 * speed)
