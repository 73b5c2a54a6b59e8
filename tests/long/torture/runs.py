"""Kill runs again and again; each must end with the bits of an undisturbed one."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.long.torture.kills import KILLED, Kill, Tally, started, wait_until_loaded
from tests.support.commands import Commands, Finished, wait_for
from tests.support.outcome import differing

AT_A_TIME = 2
"""Runs that are killed side by side."""

PLACES = (
    "before-environment.json:1",
    "iteration:1",
    "iteration:5",
    "evaluation:1",
    "evaluation:2",
    "checkpoint-write:1",
    "checkpoint-write:3",
    "before-checkpoint.previous.pt:1",
    "before-checkpoint.pt:2",  # between the two renames: there is no checkpoint.pt now
    "before-metrics.csv:2",
    "after-metrics.csv:2",
    "before-predictions.npy:1",
    "before-result.json:1",
    "after-result.json:1",
)
"""PLACE:N of the driver: where it kills a run, at the N-th passage."""


@dataclass
class Pace:
    """Speed of this machine now, relative to when the run was measured.

    Adapts so that about one random kill in five comes after the end of the run.
    """

    factor: float = 1.0

    def update(self, met: bool) -> None:
        self.factor *= 1.1 if met else 0.7


@dataclass(frozen=True)
class Victim:
    """A training to be killed, and its expected outcome.

    Attributes:
        arguments: those of `resvar train`, without --out.
        reference: run directory of the undisturbed run.
        life: seconds of the undisturbed run from start to end.
        work: seconds of it after everything was loaded.
    """

    commands: Commands
    arguments: tuple[str, ...]
    reference: Path
    life: float
    work: float

    @classmethod
    def undisturbed(cls, commands: Commands, arguments: Sequence[str], folder: Path) -> Victim:
        """Make the reference, twice: the first warms the machine up, and both must be equal."""
        for name in ("warm-up", "undisturbed"):
            out = folder / name
            begun = time.monotonic()
            with started(commands, (*arguments, "--out", str(out)), folder) as (job, phases):
                wait_until_loaded(job, phases)
                loaded = time.monotonic()
                done = job.end()
            if done.code != 0:
                raise RuntimeError(f"the undisturbed run failed: {done}")
        if found := differing(folder / "undisturbed", folder / "warm-up"):
            raise RuntimeError(f"two undisturbed runs differ: {found}")
        end = time.monotonic()
        return cls(commands, tuple(arguments), out, end - begun, end - loaded)

    def torture(self, folder: Path, kills: int, seed: str, tally: Tally) -> None:
        """Kill runs until `kills` kills met one; bring each to its end and compare it."""
        chance, left, number, pace = random.Random(seed), kills, 0, Pace()
        while left > 0:
            number += 1
            out = folder / f"{seed}-{number}"
            met, done = self._until_the_end(out, left, chance, pace)
            problems = differing(out, self.reference) if done.code == 0 else [str(done)]
            tally.add(met, [f"{out}: {problem}" for problem in problems])
            left -= len(met)
            if not problems:
                shutil.rmtree(out)

    def _until_the_end(
        self, out: Path, kills: int, chance: random.Random, pace: Pace
    ) -> tuple[list[Kill], Finished]:
        """Start a run again and again, killing it at most `kills` times, until it ends by itself.

        One kill in three is at a named place, one at any time in the process's life, one after it
        has loaded.
        """
        met: list[Kill] = []
        command = (*self.arguments, "--out", str(out))
        while True:
            way = chance.choice(("place", "life", "work")) if len(met) < kills else "none"
            if way == "place":
                place = chance.choice(PLACES)
                kill, done = _kill_at_place(self.commands, command, out.parent, place)
            else:
                kill, done = self._kill_at_random(command, out.parent, way, chance, pace)
            if kill is None:
                return met, done
            met.append(kill)

    def _kill_at_random(
        self, command: Sequence[str], cwd: Path, way: str, chance: random.Random, pace: Pace
    ) -> tuple[Kill | None, Finished]:
        """One process, killed at a random moment unless it ends before."""
        number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        with started(self.commands, command, cwd) as (job, phases):
            if way == "none":
                return None, job.end()
            if way == "work":
                wait_until_loaded(job, phases)
            seconds = pace.factor * chance.uniform(0, getattr(self, way))
            wait_for(lambda: job.ended, seconds, every=0.002)
            phase = phases(job.pid)
            with contextlib.suppress(ProcessLookupError):
                job.send(number)
            done = job.end()
            if number == signal.SIGKILL:  # the last recorded phase is exact
                phase = phases(job.pid)
        met = done.code in KILLED[number]
        pace.update(met)
        return (Kill(number.name, phase) if met else None), done


def _kill_at_place(
    commands: Commands, command: Sequence[str], cwd: Path, place: str
) -> tuple[Kill | None, Finished]:
    """One process, killed by the driver at a place if it gets there."""
    with started(commands, command, cwd, RESVAR_TEST_KILL=place) as (job, phases):
        done = job.end()
        phase = phases(job.pid)
    return (Kill("place", phase) if done.code == -signal.SIGKILL else None), done


def torture_runs(
    victim: Victim, folder: Path, kills: int, seed: int, at_a_time: int = AT_A_TIME
) -> Tally:
    """Kill `kills` times, several runs side by side."""
    tally = Tally()
    shares = [kills // at_a_time + (at < kills % at_a_time) for at in range(at_a_time)]
    with ThreadPoolExecutor(at_a_time) as pool:
        waiting = [
            pool.submit(victim.torture, folder, share, f"{seed}-{at}", tally)
            for at, share in enumerate(shares)
        ]
    for each in waiting:
        each.result()  # raises an error of the harness itself
    return tally
