"""Read a run without a pause while it works, stops, resumes, ends and starts over.

The run is healthy at every moment, so every read that finds damage is a false alarm.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import resvar
from resvar.errors import UserError
from resvar.reports.records import RunState
from resvar.reports.search import glance, read_records
from resvar.rundir import CONFIG
from resvar.training.checkpoint import load_newest
from tests.support.commands import PATIENCE, WarmCommands, train, wait_for

ABSENT = "absent"
"""There is no run, or no checkpoint, at this moment."""


@dataclass
class Reads:
    """What the reads found, counted by reader and state.

    Attributes:
        problems: false alarms: damage reported in a healthy run.
    """

    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return f"{self.count:,} reads of a run at work, {len(self.problems)} false alarms"

    @property
    def count(self) -> int:
        """Reads that found a run; those before its first files do not count."""
        return sum(n for (_, state), n in self.found.items() if state != ABSENT)

    def table(self) -> str:
        """A line per reader: how often it found which state."""
        lines = []
        for reader in READERS:
            states = Counter(
                {state: n for (name, state), n in self.found.items() if name == reader}
            )
            words = ", ".join(f"{n:,} {state}" for state, n in sorted(states.items()))
            lines.append(f"{reader:10} {states.total():7,}  {words}")
        return "\n".join(lines)


def read_while_training(folder: Path, count: int, seed: int) -> Reads:
    """Let every reader read in turn, `count` reads in all, while a run changes its state.

    A thread trains the run again and again: to its end, stopped by SIGTERM or killed by SIGKILL,
    resumed, or started over with `--fresh`. The readers are those of `resvar status`, `resvar
    report`, `resvar evaluate` and `resvar.load_run`.

    Args:
        folder: contains the tiny dataset in `data`; the run is made in `runs`.
    """
    run, reads = folder / "runs" / "one", Reads()
    with training(WarmCommands(folder / "data"), run, random.Random(seed)):
        while reads.count < count:
            if not (run / CONFIG).exists():
                time.sleep(0.01)  # leave the processor to the run
            for name, reader in READERS.items():
                try:
                    reads.found[name, reader(run)] += 1
                except Exception as error:  # any error is a false alarm
                    reads.found[name, "damaged"] += 1
                    reads.problems.append(f"{name}: {type(error).__name__}: {error}")
    return reads


@contextmanager
def training(commands: WarmCommands, run: Path, chance: random.Random) -> Iterator[None]:
    """A thread that trains `run` again and again, undisturbed or stopped at a random moment."""
    stop = Event()

    def work() -> None:
        while not stop.is_set():
            fresh = ["--fresh"] if chance.random() < 0.5 else []
            with commands.started(*train("--out", str(run), *fresh), cwd=run.parents[1]) as job:
                limit = chance.choice((PATIENCE, chance.uniform(0.5, 6.0)))
                if not wait_for(lambda: job.ended or stop.is_set(), limit):
                    job.send(chance.choice((signal.SIGTERM, signal.SIGKILL)))
                    job.end()

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# --- readers --------------------------------------------------------------------------------------


def _status(run: Path) -> str:
    return _state(run, glance)


def _report(run: Path) -> str:
    return _state(run, read_records)


def _state(run: Path, read: Callable[[list[Path]], list[resvar.reports.records.Record]]) -> str:
    try:
        (record,) = read([run.parent])
    except UserError as error:  # before the first run, or between --fresh and the new settings
        if "no run here" in str(error) or "no such folder" in str(error):
            return ABSENT
        raise
    if record.state is RunState.DAMAGED:
        raise UserError(record.message)
    return record.word


def _checkpoint(run: Path) -> str:
    warnings: list[str] = []
    found = load_newest(run, warnings.append)
    if warnings:
        raise UserError("; ".join(warnings))
    return ABSENT if found is None else "loaded"


def _load_run(run: Path) -> str:
    if not (run / CONFIG).exists():
        return ABSENT
    loaded = resvar.load_run(run)
    return "finished" if loaded.result else "unfinished"


READERS: dict[str, Callable[[Path], str]] = {
    "status": _status, "report": _report, "checkpoint": _checkpoint, "load_run": _load_run,
}  # fmt: skip
