"""Contenders in processes of their own that take turns: A B C A B C … One works, the others wait.

Processes and not one process, because threads, torch's switches and the peak of memory belong to a
process: so no contender inherits another's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from resvar.bench.contenders import Contender
from resvar.errors import RunError, UserError


class Worker:
    """A process that trains one contender when it is told to (None: measures the ceiling)."""

    def __init__(self, contender: Contender | None, device: str, threads: int | None) -> None:
        self.name = contender.name if contender else "the ceiling"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "resvar.bench.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "KINETO_LOG_LEVEL": "99"},  # the profiler talks on stderr
        )  # fmt: skip
        self.send(
            settings=contender.settings.model_dump() if contender else None,
            plain=bool(contender and contender.plain),
            threads=threads,
            device=device,
        )

    def send(self, **command: Any) -> None:
        """Tell it what to do next."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._gone()

    def answer(self) -> dict[str, Any]:
        """Wait for what it found.

        Raises:
            UserError: it cannot be had on this machine.
            RunError: it ended; what it said of the reason stands above.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._gone()
        found: dict[str, Any] = json.loads(line)
        if "refused" in found:
            raise UserError(f"{self.name}: {found['refused']}")
        return found

    def ask(self, **command: Any) -> dict[str, Any]:
        self.send(**command)
        return self.answer()

    def close(self) -> None:
        """End it; at once where it is at work."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _gone(self) -> None:
        raise RunError(
            f"the process of '{self.name}' ended with {self._process.wait()}; its reason is above."
        )


@dataclass
class Measured:
    """What was found of one contender.

    Attributes:
        seconds: of an iteration, one figure per turn (each the mean over the turn's iterations).
        peak: bytes of the process in an iteration; `own` without what it held before.
        shares: of an iteration's time by heading.
    """

    contender: Contender
    threads: int
    precision: str
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    own: int | None = None
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def speeds(self) -> list[float]:
        """Images per second, turn by turn."""
        return [self.contender.settings.batch_size / each for each in self.seconds]

    @property
    def speed(self) -> float:
        return median(self.speeds)

    def ratio(self, other: Measured) -> float:
        """How many times as fast as another: the median of the ratios turn by turn, since what
        slows the machine for a while slows both turns of a round."""
        return median(a / b for a, b in zip(self.speeds, other.speeds, strict=True))


@dataclass
class Ceilings:
    """What the machine did at most, turn by turn: FLOP/s by precision, bytes/s copied."""

    turns: list[dict[str, float]] = field(default_factory=list)

    def median(self, what: str) -> float:
        return median(turn[what] for turn in self.turns)

    @property
    def flops(self) -> tuple[str, float]:
        """The faster matrix product: bf16, or fp32 where bf16 is not computed in hardware."""
        return max(((n, self.median(n)) for n in ("bf16", "fp32")), key=lambda pair: pair[1])


@contextmanager
def at_work(contenders: list[Contender | None], device: str, threads: int | None) -> Iterator[Any]:
    """Their workers, started together; ended with the block."""
    with ExitStack() as stack:
        workers = []
        for one in contenders:
            worker = Worker(one, device, one.threads if one else threads)
            stack.callback(worker.close)
            workers.append(worker)
        yield workers


def measure(
    contenders: list[Contender],
    device: str,
    threads: int | None,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
    details: bool = True,
) -> tuple[list[Measured], Ceilings]:
    """Let contenders and the ceiling take turns.

    Args:
        threads: of the ceiling (None: torch's own choice).
        rounds: turns of each.
        seconds: about how long a turn takes; an iteration at least.
        say: told how long it will take, and each round.
        details: memory and where the time goes, too.
    """
    ceilings, found = Ceilings(), []
    with at_work([*contenders, None], device, threads) as (*workers, top):
        for contender, worker in zip(contenders, workers, strict=True):
            found.append(Measured(contender, **worker.answer()))
        top.answer()
        say("Warming up …")
        turns = [max(1, round(seconds / _warm_up(worker))) for worker in workers]
        first = [
            worker.ask(do="run", iterations=n) for worker, n in zip(workers, turns, strict=True)
        ]
        each = sum(one["seconds"] for one in first)
        ceilings.turns.append(top.ask(do="run")["ceiling"])
        more = sum(4 * one["seconds"] / n for one, n in zip(first, turns, strict=True))
        whole = rounds * (each + 1.2) + (more if details else 0)
        say(f"{rounds} rounds of {len(contenders)} in turn: about {whole:.0f} s.")
        ceilings.turns.clear()
        for number in range(rounds):
            for one, worker, n in zip(found, workers, turns, strict=True):
                one.seconds.append(worker.ask(do="run", iterations=n)["seconds"] / n)
            ceilings.turns.append(top.ask(do="run")["ceiling"])
            say(f"round {number + 1} of {rounds}")
        if details:
            say("Memory, and where the time goes …")
            for one, worker in zip(found, workers, strict=True):
                memory = worker.ask(do="peak")
                one.peak, one.own = memory["peak"], memory["own"]
                one.shares = worker.ask(do="profile")["shares"]
    return found, ceilings


def _warm_up(worker: Worker) -> float:
    """Seconds of an iteration once caches and pools are filled and graphs are captured."""
    worker.ask(do="warm up")
    found: float = worker.ask(do="run", iterations=1)["seconds"]
    return found


def together(workers: list[Worker], iterations: int) -> float:
    """Seconds until all have done so many iterations at the same time."""
    for worker in workers:
        worker.send(do="run", iterations=iterations)
    seconds: list[float] = [worker.answer()["seconds"] for worker in workers]
    return max(seconds)
