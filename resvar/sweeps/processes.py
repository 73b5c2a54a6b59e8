"""The training processes of a sweep: how each is started and stopped, and how its run ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from resvar.errors import Stopped
from resvar.rundir import DIVERGED, LOG, RESULT, guard, is_locked
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.sweeps.slots import Slot
from resvar.training.stop import PARENT

POLL = 0.5
"""Seconds between two looks at the processes."""

LOG_TAIL = 8_000
"""Bytes at the end of a log that hold its last lines."""


class RunStatus(Enum):
    """The status of a run in a sweep."""

    OPEN = auto()  # not begun, or interrupted
    FINISHED = auto()
    DIVERGED = auto()  # and would diverge again
    FAILED = auto()
    STOPPED = auto()  # as the sweep asked
    TAKEN = auto()  # another process trains it


def run_status(run: PlannedRun) -> RunStatus:
    """OPEN, FINISHED or DIVERGED, from the run's directory."""
    if (run.folder / RESULT).exists():
        return RunStatus.FINISHED
    return RunStatus.DIVERGED if (run.folder / DIVERGED).exists() else RunStatus.OPEN


def by_status(sweep: Sweep) -> dict[RunStatus, list[PlannedRun]]:
    """The runs of a sweep by `run_status`, in the order of the sweep.

    Raises:
        UserError: a run's directory holds a run with other settings.
    """
    found: dict[RunStatus, list[PlannedRun]] = {status: [] for status in RunStatus}
    for run in sweep.runs:
        guard(run.folder, run.settings)
        found[run_status(run)].append(run)
    return found


@dataclass(eq=False)
class RunProcess:
    """The process of a run in a slot."""

    run: PlannedRun
    slot: Slot
    handle: subprocess.Popen[bytes]
    begun: float = field(default_factory=time.monotonic)
    asked_to_stop: bool = False

    def ending(self, stopping: bool) -> RunStatus:
        """The status of the run after its process has ended.

        Args:
            stopping: whether the sweep asks its runs to stop.
        """
        code, status = self.handle.returncode, run_status(self.run)
        if code == 0:
            return RunStatus.FINISHED
        if status is not RunStatus.OPEN:
            return status
        if stopping and (code == Stopped.exit_code or code < 0):  # below 0: a signal ended it
            return RunStatus.STOPPED
        return RunStatus.TAKEN if is_locked(self.run.folder) else RunStatus.FAILED


def start(run: PlannedRun, slot: Slot, data: Path) -> RunProcess:
    """Start `resvar train` for a run; its output goes to `log.txt` in the run's directory.

    The process has a session of its own, so that Ctrl-C reaches the sweep alone, which asks each
    run to stop. A run also stops when the process of its sweep has ended, for whatever reason.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "resvar", "train", *run.arguments,
        "--out", str(run.folder), "--data", str(data), "--device", slot.device,
    ]  # fmt: skip
    threads = str(slot.threads)
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
        PARENT: str(os.getpid()), **slot.environment,
    }  # fmt: skip
    with (run.folder / LOG).open("ab") as log:
        handle = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    return RunProcess(run, slot, handle)


def collect(processes: list[RunProcess], stopping: bool) -> Iterator[tuple[RunProcess, RunStatus]]:
    """Remove the processes that have ended from the list; yield each with the status of its run."""
    for process in [process for process in processes if process.handle.poll() is not None]:
        processes.remove(process)
        yield process, process.ending(stopping)


def terminate(processes: Iterable[RunProcess]) -> None:
    """Send SIGTERM to each process, once: each run saves a checkpoint."""
    for process in processes:
        if process.handle.poll() is None and not process.asked_to_stop:
            process.asked_to_stop = True
            with suppress(ProcessLookupError):
                process.handle.send_signal(signal.SIGTERM)


def last_lines(folder: Path, count: int = 5) -> list[str]:
    """The last lines of a run's log; none where there is no log."""
    try:
        with (folder / LOG).open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - LOG_TAIL))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
