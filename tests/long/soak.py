"""One sweep of very many very small runs, watched from outside: what it holds may not grow.

Shared by `tests/sweeps/test_soak.py`, in short, and `scripts/soak.py`, at length. Linux only: it
looks into /proc.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import TINY, Commands, everyone, sets, wait_for

MOST_GROWTH = 2 * 2**20
"""Bytes that the memory of the sweep's process may differ by, at its end, from its beginning."""


@dataclass(frozen=True)
class Sample:
    """What the sweep's process held at one moment: resident bytes, open files, children, threads.

    `done` are the runs that it had finished.
    """

    done: int
    memory: int
    files: int
    children: int
    threads: int


@dataclass(frozen=True)
class Soaked:
    """What a sweep of many runs came to."""

    samples: tuple[Sample, ...]
    problems: tuple[str, ...]
    seconds: float

    def medians(self, what: str) -> tuple[float, float]:
        """Of the first fifth and the last fifth of the samples."""
        values = [getattr(sample, what) for sample in self.samples]
        fifth = max(1, len(values) // 5)
        return statistics.median(values[:fifth]), statistics.median(values[-fifth:])


def soak(
    commands: Commands, folder: Path, count: int, every: float = 0.5,
    tell: Callable[[Sample], None] = lambda _sample: None,
) -> Soaked:  # fmt: skip
    """Let one sweep do `count` runs of one iteration each, two at a time, and judge it."""
    sweep = [
        "sweep", "--variants", "original", "--depths", "8", "--seeds", str(count), "--jobs", "2",
        "--device", "cpu", *sets(*TINY, "precision=fp32", "iterations=1"), "--out", str(folder),
    ]  # fmt: skip
    mark, samples, begun = uuid.uuid4().hex, list[Sample](), time.monotonic()
    with commands.started(
        *sweep, cwd=folder.parent, RESVAR_TEST_MARK=mark, RESVAR_TEST_UNMEASURED="1"
    ) as job:
        while job.code() is None:
            done = job.out.count("finished: test error")
            with contextlib.suppress(OSError, ValueError):  # it ends in this very moment
                if done:  # by then it has imported all that it will
                    samples.append(look(job.pid, done))
                    tell(samples[-1])
            time.sleep(every)
        end = job.end()
    problems = [] if end.code == 0 else [str(end)]
    if not wait_for(lambda: not everyone(mark), 60):
        problems.append(f"left over: {everyone(mark)}")
    for seed in range(count):
        run = folder / "paper" / "original-8" / f"seed-{seed}"
        if not (run / "result.json").exists():
            problems.append(f"{run} is not finished")
        elif (run / "log.txt").read_text().count("Finished") != 1:
            problems.append(f"{run} was not done exactly once")
    soaked = Soaked(tuple(samples), tuple(problems), time.monotonic() - begun)
    return Soaked(soaked.samples, (*problems, *grown(soaked)), soaked.seconds)


def look(pid: int, done: int) -> Sample:
    """Raises OSError where the process is gone, or has ended and holds no memory any more."""
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    if "VmRSS" not in status:
        raise ProcessLookupError(f"process {pid} has ended")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return Sample(
        done=done,
        memory=1024 * int(status["VmRSS"].split()[0]),
        files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        children=len(children),
        threads=int(status["Threads"]),
    )


def grown(soaked: Soaked) -> list[str]:
    """What the process held more of in the end; a run at work is a child, and there are two."""
    found = []
    before, after = soaked.medians("memory")
    if after - before > MOST_GROWTH:
        found.append(f"memory grew from {before:,.0f} to {after:,.0f} bytes")
    for what in ("files", "threads"):
        before, after = soaked.medians(what)
        if after > before:
            found.append(f"{what} grew from {before:.0f} to {after:.0f}")
    if (most := max(sample.children for sample in soaked.samples)) > 2:
        found.append(f"there were up to {most} children")
    return found
