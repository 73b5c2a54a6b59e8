"""Let one sweep do very many very small runs, and watch the resources of its process.

    python -m tests.long.soak --runs 500

Prints the memory, open files, threads and children of the sweep's process, at the beginning, at
every tenth of the way and at the end. Exits with 1 if any of them grew, a process was left over, or
a run was not done exactly once. Each run is a process that loads torch, so that 500 take about
twenty minutes on two cores. Needs a checkout and Linux (it reads /proc).

`tests/sweeps/test_soak.py` does it in short.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import TINY, UNMEASURED, Commands, everyone, sets, wait_for
from tests.support.tiny import make_marked_cifar

MOST_GROWTH = 2 * 2**20
"""Bytes by which the memory of the sweep's process may grow."""


def main() -> int:
    """Soak as asked; 0 if nothing grew."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.long.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=500, help="number of runs; default: 500")
    runs = parser.parse_args().runs
    if runs < 10:
        parser.error("--runs must be at least 10")
    print("runs done  memory (MB)  open files  threads  children")
    printed = -1

    def show(sample: Sample) -> None:
        nonlocal printed
        if sample.done * 10 // runs > printed:
            printed = sample.done * 10 // runs
            print(
                f"{sample.done:9}  {sample.memory / 2**20:11.2f}  {sample.files:10}  "
                f"{sample.threads:7}  {sample.children:8}",
                flush=True,
            )

    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        make_marked_cifar(Path(name) / "data")
        found = soak(Commands(Path(name) / "data"), Path(name) / "runs", runs, show=show)
    before, after = (value / 2**20 for value in found.medians("memory"))
    print(
        f"{runs} runs in {found.seconds / 60:.1f} minutes; memory {before:.2f} MB in the first "
        f"fifth, {after:.2f} MB in the last (medians of {len(found.samples)} looks)"
    )
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    return 1 if found.problems else 0


@dataclass(frozen=True)
class Sample:
    """Resources of the sweep's process at one moment; memory is resident bytes.

    `done` is the number of runs finished by then.
    """

    done: int
    memory: int
    files: int
    children: int
    threads: int


@dataclass(frozen=True)
class Soaked:
    """Outcome of a sweep of many runs."""

    samples: tuple[Sample, ...]
    problems: tuple[str, ...]
    seconds: float

    def medians(self, what: str) -> tuple[float, float]:
        """Of the first fifth and of the last fifth of the samples."""
        values = [getattr(sample, what) for sample in self.samples]
        fifth = max(1, len(values) // 5)
        return statistics.median(values[:fifth]), statistics.median(values[-fifth:])


def soak(
    commands: Commands, folder: Path, count: int, every: float = 0.5,
    show: Callable[[Sample], None] = lambda _sample: None,
) -> Soaked:  # fmt: skip
    """Let one sweep do `count` runs of one iteration each, two at a time, and judge it."""
    sweep = [
        "sweep", "--variants", "original", "--depths", "8", "--seeds", str(count), "--jobs", "2",
        "--device", "cpu", *sets(*TINY, "precision=fp32", "iterations=1"), "--out", str(folder),
        *UNMEASURED,
    ]  # fmt: skip
    mark, samples, begun = uuid.uuid4().hex, list[Sample](), time.monotonic()
    with commands.started(*sweep, cwd=folder.parent, RESVAR_TEST_MARK=mark) as job:
        while not job.ended:
            done = job.out.count("finished: test error")
            with contextlib.suppress(OSError, ValueError):  # it ends in this very moment
                if done:  # by then everything is imported
                    samples.append(look(job.pid, done))
                    show(samples[-1])
            time.sleep(every)
        end = job.end()
    problems = [] if end.code == 0 else [str(end)]
    if not wait_for(lambda: not everyone(mark), 60):
        problems.append(f"left over: {everyone(mark)}")
    runs = sorted(path.parent for path in folder.rglob("config.yaml"))
    if len(runs) != count:
        problems.append(f"there are {len(runs)} runs")
    for run in runs:
        if not (run / "result.json").exists():
            problems.append(f"{run} is not finished")
        elif (run / "log.txt").read_text(encoding="utf-8").count("Finished") != 1:
            problems.append(f"{run} was not done exactly once")
    soaked = Soaked(tuple(samples), tuple(problems), time.monotonic() - begun)
    return Soaked(soaked.samples, (*problems, *grown(soaked)), soaked.seconds)


def look(pid: int, done: int) -> Sample:
    """Raises OSError if the process is gone, or has ended and holds no memory any more."""
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        if ":\t" in line
    )
    if "VmRSS" not in status:
        raise ProcessLookupError(f"process {pid} has ended")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return Sample(
        done=done,
        memory=1024 * int(status["VmRSS"].split()[0]),
        files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        children=len(children),
        threads=int(status["Threads"]),
    )


def grown(soaked: Soaked) -> list[str]:
    """The resources that grew; each of the two runs at work is a child."""
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


if __name__ == "__main__":
    sys.exit(main())
