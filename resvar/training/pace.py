"""How fast a run trains, and how much time is left: the only source of both, for the bar, the log
and `progress.json`, which `resvar status` reads."""

from __future__ import annotations

import time

from resvar.settings import Settings


class Pace:
    """The stopwatch of one process of a run.

    It runs from the end of the first update, which warms up, and pauses during evaluations. So a
    speed is updates divided by the time that they took, whatever was interrupted before.

    Args:
        test_images: in one evaluation, held-out images left out.
        earlier: training images per second of the earlier processes of a resumed run, if any; they
            count until this process has measured its own.
    """

    def __init__(self, settings: Settings, test_images: int, earlier: float = 0.0) -> None:
        self.settings, self.test_images, self.earlier = settings, test_images, earlier
        self.updates = 0
        """Measured so far: those after the first."""
        self._warm = False
        self._trained = 0.0  # seconds of completed spans of training
        self._span: float | None = None  # when the present one began
        self._evaluations: list[float] = []  # seconds of each
        self._evaluation: float | None = None  # when the present one began
        self._share = 0.0  # of the present evaluation that is done

    def updated(self) -> None:
        """An update has ended."""
        if self._warm:
            self.updates += 1
        else:
            self._warm, self._span = True, time.monotonic()

    def evaluating(self, share: float) -> None:
        """An evaluation begins, or continues with `share` of it done."""
        if self._evaluation is None:
            self._evaluation = time.monotonic()
            self._trained, self._span = self.seconds, None
        self._share = share

    def evaluated(self) -> None:
        """The evaluation has ended."""
        now = time.monotonic()
        if self._evaluation is not None:
            self._evaluations.append(now - self._evaluation)
        self._evaluation, self._share = None, 0.0
        self._span = now if self._warm else None

    @property
    def seconds(self) -> float:
        """In which the `updates` were done, with checkpoints and without evaluations."""
        return self._trained + (0.0 if self._span is None else time.monotonic() - self._span)

    @property
    def images_per_second(self) -> float:
        """Training images per second of training; 0 while it is unknown."""
        if self.updates and self.seconds > 0:  # a coarse clock may not advance for some updates
            return self.updates * self.settings.batch_size / self.seconds
        return self.earlier

    def seconds_left(self, iteration: int, last_evaluation: int) -> float | None:
        """Of training and of evaluations; None while the speed is unknown.

        Args:
            last_evaluation: its iteration; 0 for none.
        """
        speed, settings = self.images_per_second, self.settings
        if not speed:
            return None
        images = (settings.iterations - iteration) * settings.batch_size
        each = settings.evaluation_work(self.test_images) / speed
        if self._evaluations:
            each = sum(self._evaluations) / len(self._evaluations)
        evaluations = settings.evaluations_after(last_evaluation) - self._share
        return images / speed + max(0.0, evaluations) * each
