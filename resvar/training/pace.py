"""How fast a run is in this process, and when it will end."""

from __future__ import annotations

import time

from resvar.config import Settings


class Pace:
    """The clock of one process of a run; it starts after the first update, which warms up.

    Args:
        test_images: in one evaluation, held-out images left out.
    """

    def __init__(self, settings: Settings, test_images: int) -> None:
        self.settings, self.test_images = settings, test_images
        self._start: tuple[int, float] | None = None
        self._evaluations: list[float] = []  # seconds of each
        self._paused = 0.0

    def updated(self, iteration: int) -> None:
        if self._start is None:
            self._start = iteration, time.monotonic()

    def evaluated(self, seconds: float) -> None:
        self._evaluations.append(seconds)
        self._paused += seconds if self._start is not None else 0.0

    def since_start(self, iteration: int) -> tuple[int, float]:
        """Updates and seconds since the first update of this process."""
        if self._start is None:
            return 0, 0.0
        first, begun = self._start
        return iteration - first, time.monotonic() - begun

    def images_per_second(self, iteration: int) -> float:
        """Training images per second of this process, checkpoints included, evaluations not."""
        updates, seconds = self.since_start(iteration)
        return updates * self.settings.batch_size / max(seconds - self._paused, 1e-9)

    def seconds_left(self, iteration: int, last_evaluation: int) -> float | None:
        """Of training and of evaluations; None before the second update of this process.

        Args:
            last_evaluation: its iteration; 0 for none.
        """
        if not self.since_start(iteration)[0]:
            return None
        speed = self.images_per_second(iteration)
        images = (self.settings.iterations - iteration) * self.settings.batch_size
        # A forward pass is about a third of the work of training.
        first = (self.test_images + self.settings.holdout) / (3 * speed)
        times = self._evaluations or [first]
        each = sum(times) / len(times)
        return images / speed + evaluations_to_come(self.settings, last_evaluation) * each


def evaluations_to_come(settings: Settings, last: int) -> int:
    """Evaluations after the one at iteration `last`, 0 for none, to the end of the run."""
    due = settings.iterations // settings.eval_every - last // settings.eval_every
    at_the_end = settings.iterations % settings.eval_every != 0 and last < settings.iterations
    return due + at_the_end
