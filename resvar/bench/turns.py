"""Contenders take turns, A B C A B C …, each in its own process.

Threads, torch's global switches and peak memory belong to a process, so no contender inherits them
from another. While one runs, the others wait.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from resvar.bench.contenders import Contender
from resvar.console import duration, pluralize
from resvar.errors import RunError, UserError
from resvar.sweeps.processes import SAFE_PYTHON, import_path

NO_KERNELS = (
    "the number of kernels is not known, because torch's profiler recorded none; it needs "
    "NVIDIA's CUPTI, and that no other profiler uses the GPU."
)


class Worker:
    """A process that trains one contender on command (None: measures the ceiling)."""

    def __init__(self, contender: Contender | None, device: str, threads: int | None) -> None:
        self.name = contender.name if contender else "the ceiling"
        self._process = subprocess.Popen(
            [*SAFE_PYTHON, "-m", "resvar.bench.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the bench, which ends its workers
            env={**os.environ, **import_path(), "KINETO_LOG_LEVEL": "99"},  # it logs to stderr
        )  # fmt: skip
        self.send(
            settings=contender.settings.model_dump() if contender else None,
            plain=bool(contender and contender.plain),
            threads=threads,
            device=device,
        )

    def send(self, **command: Any) -> None:
        """Start a command without waiting for its answer."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._raise_ended()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to a command.

        Raises:
            UserError: this machine cannot run the contender.
            RunError: the process ended; its reason is on stderr.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._raise_ended()
        found: dict[str, Any] = json.loads(line)
        if "refused" in found:
            raise UserError(f"{self.name}: {found['refused']}")
        return found

    def ask(self, **command: Any) -> dict[str, Any]:
        self.send(**command)
        return self.answer()

    def seconds_of(self, iterations: int) -> float:
        seconds: float = self.ask(do="run", iterations=iterations)["seconds"]
        return seconds

    def close(self) -> None:
        """End the process, even in the middle of a command."""
        with self._process:  # closes its pipes and waits
            self._process.kill()

    def _raise_ended(self) -> None:
        raise RunError(
            f"the process of '{self.name}' exited with {self._process.wait()}; the reason is above."
        )


@contextmanager
def started_workers(
    contenders: Sequence[Contender | None], device: str, threads: int | None = None
) -> Iterator[list[Worker]]:
    """Workers that start together and end with the block; each sends a first answer.

    Args:
        threads: of the ceiling's process (None: torch's default).
    """
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(Worker(one, device, one.threads if one else threads)))
            for one in contenders
        ]


def run_together(workers: Sequence[Worker], iterations: int) -> float:
    """Run these iterations in all workers at the same time; return the seconds until all finish."""
    for worker in workers:
        worker.send(do="run", iterations=iterations)
    seconds: list[float] = [worker.answer()["seconds"] for worker in workers]
    return max(seconds)


@dataclass
class Measurement:
    """The figures of one contender.

    Attributes:
        seconds: of an iteration, one figure per turn (each the mean over the turn's iterations).
        peak: bytes of the process in an iteration; `own` excludes those before the network.
        shares: of an iteration's time by heading.
        launches: on a GPU, `kernels` and `copies` of an update; None where that is not known.
    """

    contender: Contender
    threads: int
    precision: str
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    own: int | None = None
    shares: dict[str, float] = field(default_factory=dict)
    launches: dict[str, int | None] = field(default_factory=dict)

    @property
    def speeds(self) -> list[float]:
        """Images per second, turn by turn."""
        return [self.contender.settings.batch_size / each for each in self.seconds]

    @property
    def speed(self) -> float:
        return median(self.speeds)

    def ratio(self, other: Measurement) -> float:
        """Speed relative to another contender: the median of the ratios turn by turn, because a
        slow moment of the machine slows both turns of a round."""
        return median(a / b for a, b in zip(self.speeds, other.speeds, strict=True))


@dataclass
class Ceilings:
    """The limits of the machine, turn by turn: FLOP/s by precision, bytes/s copied."""

    turns: list[dict[str, float]] = field(default_factory=list)

    def measure(self, worker: Worker) -> None:
        self.turns.append(worker.ask(do="run")["ceiling"])

    def median(self, what: str) -> float:
        return median(turn[what] for turn in self.turns)

    @property
    def flops(self) -> tuple[str, float]:
        """The faster matrix product: bf16, or fp32 on hardware without bf16."""
        return max(((n, self.median(n)) for n in ("bf16", "fp32")), key=lambda pair: pair[1])


def take_turns(
    contenders: Sequence[Contender],
    device: str,
    threads: int | None,
    rounds: int,
    seconds: float,
    log: Callable[[str], None],
    details: bool = True,
) -> tuple[list[Measurement], Ceilings]:
    """Measure contenders and the ceiling in turns.

    Args:
        threads: of the ceiling (None: torch's default).
        rounds: turns of each.
        seconds: approximate length of a turn; at least one iteration.
        log: receives an estimate of the total time, then each round.
        details: also measure memory and the shares of the time.
    """
    ceilings = Ceilings()
    with started_workers([*contenders, None], device, threads) as (*workers, top):
        found = [
            Measurement(contender, **worker.answer())
            for contender, worker in zip(contenders, workers, strict=True)
        ]
        top.answer()
        log("Warming up …")
        counts = [_iterations_per_turn(worker, seconds) for worker in workers]
        turns = list(zip(found, workers, counts, strict=True))
        first = [worker.seconds_of(count) for _, worker, count in turns]
        Ceilings().measure(top)
        whole = rounds * (sum(first) + 1.2)
        if details:
            whole += sum(5 * each / count for each, count in zip(first, counts, strict=True))
        log(f"{pluralize(rounds, 'round')} of {len(contenders)} in turn: about {duration(whole)}.")
        for number in range(rounds):
            for one, worker, count in turns:
                one.seconds.append(worker.seconds_of(count) / count)
            ceilings.measure(top)
            log(f"round {number + 1} of {rounds}")
        if details:
            log("Memory, and where the time goes …")
            for one, worker, _ in turns:
                memory = worker.ask(do="peak")
                one.peak, one.own = memory["peak"], memory["own"]
                profile = worker.ask(do="profile")
                one.shares = profile.pop("shares")
                one.launches = profile
                if None in one.launches.values():
                    log(f"{one.contender.name}: {NO_KERNELS}")
    return found, ceilings


def _iterations_per_turn(worker: Worker, seconds: float) -> int:
    """The iterations that fill a turn, measured after warm-up (caches full, graphs captured)."""
    worker.ask(do="warm up")
    return max(1, round(seconds / worker.seconds_of(1)))
