"""A sweep on devices that fail and are preempted: simulated, and in closed form.

Used by `simulate_sweep.py`. The closed forms are those of Young, "A first order approximation to
the optimum checkpoint interval" (1974), and Daly, "A higher order estimate of the optimum
checkpoint interval for restart dumps" (2006).
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Conditions:
    """Interruptions and overheads of a device, in seconds.

    Attributes:
        failure: mean time of work between two failures; infinite: none.
        preemption: mean time of work between two preemptions; infinite: none.
        repair: from a failure until the device is available again.
        requeue: from a preemption until the device is available again.
        start: from the start of a process until it computes, for a new or resumed run.
        checkpoint: duration of a checkpoint.
    """

    failure: float = math.inf
    preemption: float = math.inf
    repair: float = 0.0
    requeue: float = 0.0
    start: float = 0.0
    checkpoint: float = 0.0

    @property
    def mtbf(self) -> float:
        """Mean time of work between two interruptions of either kind."""
        rate = 1 / self.failure + 1 / self.preemption
        return 1 / rate if rate else math.inf


@dataclass
class Outcome:
    """Makespan, and how the time of all devices was spent; in seconds."""

    makespan: float = 0.0
    work: float = 0.0
    lost: float = 0.0  # work since the last checkpoint at an interruption
    checkpoints: float = 0.0
    starts: float = 0.0
    interruptions: int = 0

    @property
    def busy(self) -> float:
        return self.work + self.lost + self.checkpoints + self.starts

    @property
    def overhead(self) -> float:
        """Everything except the work, relative to the work."""
        return self.busy / self.work - 1


def simulate(
    lengths: Sequence[float],
    intervals: Sequence[float],
    devices: int,
    conditions: Conditions,
    seed: int,
) -> Outcome:
    """Simulate a sweep from the start of its first run to the end of its last.

    Args:
        lengths: seconds of work of each run, in the order of the queue.
        intervals: seconds of work between two checkpoints of each run, which ends with one.
    """
    chance = random.Random(seed)
    outcome = Outcome(work=sum(lengths))
    left = list(lengths)
    queue = list(range(len(lengths)))  # sorted, so already a heap
    free = devices
    # Time; the run that leaves its device at that time, or -1; seconds until the device is back.
    events: list[tuple[float, int, float]] = []
    clock = 0.0
    while queue or events:
        while free and queue:
            free -= 1
            run = heapq.heappop(queue)
            stint, saved, away = _stint(left[run], intervals[run], conditions, chance, outcome)
            left[run] -= saved
            heapq.heappush(events, (clock + stint, run, away))
        clock, run, away = heapq.heappop(events)
        if run >= 0:
            if left[run] > 0:
                heapq.heappush(queue, run)
            else:
                outcome.makespan = clock
        if away:
            heapq.heappush(events, (clock + away, -1, 0.0))
        else:
            free += 1
    return outcome


def _stint(
    left: float, interval: float, conditions: Conditions, chance: random.Random, outcome: Outcome
) -> tuple[float, float, float]:
    """One run on one device until it is finished or interrupted, added to `outcome`.

    Returns:
        The duration, the work saved (`left`: the run is finished), and the seconds until the device
        is back.
    """
    segment = interval + conditions.checkpoint
    checkpoints = max(1, math.ceil(left / interval))
    whole = conditions.start + left + checkpoints * conditions.checkpoint
    mtbf = conditions.mtbf
    ends = math.inf if math.isinf(mtbf) else chance.expovariate(1 / mtbf)
    if ends >= whole:
        outcome.starts += conditions.start
        outcome.checkpoints += checkpoints * conditions.checkpoint
        return whole, left, 0.0
    trained = max(0.0, ends - conditions.start)
    kept = int(trained // segment)
    outcome.interruptions += 1
    outcome.starts += min(ends, conditions.start)
    outcome.checkpoints += kept * conditions.checkpoint
    outcome.lost += trained - (kept * segment if kept else 0.0)
    failed = chance.random() < mtbf / conditions.failure
    away = conditions.repair if failed else conditions.requeue
    return ends, kept * interval if kept else 0.0, away


# --- closed forms ---------------------------------------------------------------------------------


def young(checkpoint: float, mtbf: float) -> float:
    """The optimal interval to first order: Young, CACM 17 (1974), 530."""
    return math.sqrt(2 * checkpoint * mtbf)


def daly(checkpoint: float, mtbf: float) -> float:
    """The optimal interval to higher order: Daly, FGCS 22 (2006), 303, equation 37."""
    if checkpoint >= 2 * mtbf:
        return mtbf
    ratio = checkpoint / (2 * mtbf)
    return math.sqrt(2 * checkpoint * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint


def expected_busy(work: float, interval: float, conditions: Conditions) -> float:
    """Mean seconds of a device for a run, in equal segments: Daly (2006), equation 20.

    M e^(R/M) (e^((τ+δ)/M) − 1) for each segment τ with its checkpoint δ, and here M (e^(R/M) − 1)
    before the first, since the first process must start too. Repair time is not included.
    """
    mtbf, segments = conditions.mtbf, work / interval
    if math.isinf(mtbf):
        return conditions.start + work + segments * conditions.checkpoint
    again = math.exp(conditions.start / mtbf)
    segment = math.expm1((interval + conditions.checkpoint) / mtbf)
    return mtbf * (again - 1) + segments * mtbf * again * segment


def expected_overhead(work: float, interval: float, conditions: Conditions) -> float:
    """Mean of `Outcome.overhead`."""
    return expected_busy(work, interval, conditions) / work - 1
