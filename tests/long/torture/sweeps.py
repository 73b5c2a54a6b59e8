"""Kill a sweep: none of its processes may survive, and in the end every run is there once."""

from __future__ import annotations

import contextlib
import random
import signal
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.long.torture.kills import KILLED, LOADING, Kill, Phases, Tally, started
from tests.support.commands import UNMEASURED, Commands, Finished, everyone, wait_for
from tests.support.outcome import differing

SHARE_AT_WORK = 3 / 4
"""Share of the kills that are aimed at a run in training; the others fall at any time."""

NOBODY = "no run at work"

TRAINS = 1.5
"""Seconds of training of a tiny run; a kill aimed at its work falls within them."""

LOOKS = 3000
"""Number of times, 0.2 s apart, that a killed sweep's processes are looked for.

Counted and not timed: if this process and those were paused together, no time would have passed."""


@dataclass(frozen=True)
class Aim:
    """Kill so many seconds after the start, or (`at_work`) after a run began to train."""

    at_work: bool
    seconds: float


def torture_sweep(
    commands: Commands, arguments: Sequence[str], runs: Sequence[Path], folder: Path,
    kills: int, seed: int,
) -> Tally:  # fmt: skip
    """Kill sweeps `kills` times and compare each finished one with an undisturbed one.

    Args:
        arguments: those of `resvar sweep`, without --out.
        runs: the run directories that it makes, relative to --out.
    """
    reference = folder / "undisturbed"
    begun = time.monotonic()
    done = commands.run(*arguments, "--out", reference, cwd=folder)
    life = time.monotonic() - begun
    if done.code != 0:
        raise RuntimeError(f"the undisturbed sweep failed: {done}")
    tally, chance, number = Tally(), random.Random(seed), 0
    while len(tally.kills) < kills:
        number += 1
        out = folder / f"sweep-{number}"
        met: list[Kill] = []
        problems: list[str] = []
        while True:
            aim = None
            if len(tally.kills) + len(met) < kills:
                at_work = chance.random() < SHARE_AT_WORK
                aim = Aim(at_work, chance.uniform(0, TRAINS if at_work else life))
            command = (*arguments, "--out", str(out))
            kill, found, done = _kill_sweep(commands, command, aim, chance)
            problems += found
            if kill is None:
                break
            met.append(kill)
        problems += [str(done)] if done.code else _compare(out, runs, reference)
        tally.add(met, [f"{out}: {problem}" for problem in problems])
    return tally


def _kill_sweep(
    commands: Commands, command: Sequence[str], aim: Aim | None, chance: random.Random
) -> tuple[Kill | None, list[str], Finished]:
    """Start the sweep once and kill it as aimed; then none of its processes may live.

    It measures the duration of its runs, which takes seconds, only if the kill may fall then.
    """
    mark = uuid.uuid4().hex
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    if aim is None or aim.at_work:
        command = [*command, *UNMEASURED]
    with started(commands, command, Path.cwd(), RESVAR_TEST_MARK=mark) as (job, phases):
        if aim is None:
            return None, [], job.end()
        if aim.at_work:
            wait_for(lambda: not {LOADING, NOBODY}.issuperset(at(mark, phases)) or job.ended)
        wait_for(lambda: job.ended, aim.seconds)
        trainings = at(mark, phases)
        with contextlib.suppress(ProcessLookupError):
            job.send(number)
        done = job.end()
    if done.code not in KILLED[number]:
        return None, [], done
    found = [] if _all_gone(mark) else [f"alive after {number.name}: {everyone(mark)}"]
    return Kill(number.name, " and ".join(trainings)), found, done


def at(mark: str, phases: Phases) -> list[str]:
    """The phases of a sweep's runs."""
    trainings = [pid for pid, words in everyone(mark).items() if "train" in words]
    return sorted({phases(pid) for pid in trainings}) or [NOBODY]


def _all_gone(mark: str) -> bool:
    for _ in range(LOOKS):
        if not everyone(mark):
            return True
        time.sleep(0.2)
    return False


def _compare(out: Path, runs: Sequence[Path], reference: Path) -> list[str]:
    """The problems of a sweep that ended with exit code 0."""
    made = {path.parent.relative_to(out) for path in out.rglob("config.yaml")}
    problems = [f"{run} is missing or unexpected" for run in made ^ set(runs)]
    for run in made & set(runs):
        problems += [f"{run}: {what}" for what in differing(out / run, reference / run)]
        if (out / run / "log.txt").read_text(encoding="utf-8").count("Finished") > 1:
            problems.append(f"{run} ran twice")
    return problems
