"""The time that a sweep may take (`--for`): it stops its runs early enough for them to save."""

from __future__ import annotations

import math
import time
from collections.abc import Collection

from resvar.console import duration
from resvar.errors import UserError
from resvar.rundir import read_progress
from resvar.sweeps.grid import PlannedRun

START_UP = 10.0
"""Seconds from the start of a process until it trains: torch, the data, the first updates."""

COMPILING = 50.0
"""Seconds more with torch.compile, which a request to stop does not interrupt."""

ENDING = 5.0
"""Seconds in which a run and its sweep end, apart from the last update and the checkpoint."""

SAVING = 2.0
"""Seconds of a checkpoint, for a run that has not saved one yet."""

EVALUATION_BATCH = 170
"""Images: in the time of an evaluation's batch, which is 500, so many are trained."""


class TimeLimit:
    """The time that a sweep may take, from now on.

    Args:
        seconds: by default there is no limit.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds until all must have ended."""
        return self._ends - time.monotonic()

    def require_useful(self, runs: Collection[PlannedRun]) -> None:
        """Refuse a limit in which none of these runs trains.

        Raises:
            UserError: it is too short.
        """
        least = seconds_to_start(runs) + ENDING + SAVING
        if self.seconds < least:
            raise UserError(
                f"--for: {duration(self.seconds)} is too short for a run to start and to save, "
                f"which takes about {duration(least)}; allow more time."
            )

    def is_up(self, running: Collection[PlannedRun], waiting: Collection[PlannedRun]) -> bool:
        """Whether the running runs must stop; without any, whether none is worth starting."""
        return self._left(running) < 0 if running else not self.allows_start((), waiting)

    def allows_start(
        self, running: Collection[PlannedRun], waiting: Collection[PlannedRun]
    ) -> bool:
        """Whether one of those that wait, started now, would train before all must stop."""
        return self._left(running) >= seconds_to_start(waiting) + SAVING

    def _left(self, running: Collection[PlannedRun]) -> float:
        """Seconds until these runs must be asked to stop, to be saved in time."""
        if self.seconds == math.inf:
            return math.inf
        return self.remaining - seconds_to_stop(running)


def seconds_to_start(runs: Collection[PlannedRun]) -> float:
    """Until any of these trains, from the start of its process."""
    return START_UP + COMPILING * any(run.settings.compile != "none" for run in runs)


def seconds_to_stop(runs: Collection[PlannedRun]) -> float:
    """Until all of these have stopped, as far as their records tell.

    A run ends the update or the batch of an evaluation that it computes; then it saves, as if one
    disk served all runs in turn.
    """
    steps, savings = [0.0], [0.0]
    for run in runs:
        progress = read_progress(run.folder)
        if progress is not None and progress.images_per_second:
            images = max(run.settings.batch_size, EVALUATION_BATCH)
            steps.append(images / progress.images_per_second)
        known = progress.checkpoint_seconds if progress is not None else None
        savings.append(SAVING if known is None else known)
    return ENDING + max(steps) + sum(savings)
