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
from tempfile import NamedTemporaryFile

from resvar.condition import read_result, read_undisturbed, require_usable
from resvar.errors import OtherRunError, Stopped, UserError
from resvar.files import PACKAGE, open_regular, open_to_append
from resvar.ownership import refuse_foreign
from resvar.rundir import (
    FAILURE,
    LOG,
    guard,
    is_locked,
    read_divergence,
    write_failure,
)
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.sweeps.slots import Slot
from resvar.training.stop import PARENT

POLL = 0.5
"""Seconds between two looks at the processes."""

TOGETHER = 5.0
"""Seconds in which a signal for a sweep and all of its runs arrives at each of them."""

SAFE_PYTHON = (sys.executable, "-P")
"""The command of a Python that imports nothing from the current folder; see `import_path`."""

LOG_TAIL = 8_000
"""Bytes at the end of a log that contain its last lines."""


class RunStatus(Enum):
    """The status of a run in a sweep."""

    OPEN = auto()  # not begun, or interrupted
    FINISHED = auto()
    DIVERGED = auto()  # and would diverge again
    FAILED = auto()
    STOPPED = auto()  # as the sweep asked
    TAKEN = auto()  # another process trains it


@dataclass(frozen=True)
class FailedRun:
    """A run that cannot be trained, or whose process has failed.

    Attributes:
        reason: how the process ended; or why there was none.
        log: the last lines that the process printed; None where there was none.
    """

    run: PlannedRun
    reason: str
    log: tuple[str, ...] | None = None

    @classmethod
    def because(cls, run: PlannedRun, error: OSError | UserError) -> FailedRun:
        """The failure of a run whose directory or process cannot be had."""
        if isinstance(error, OSError):
            where = f" ({error.filename})" if error.filename else ""
            return cls(run, f"{error.strerror or error}{where}.")
        folder = run.folder
        return cls(run, str(error).removeprefix(f"{folder}: ").replace(f"{folder}{os.sep}", "", 1))

    def __str__(self) -> str:
        return f"failed: {self.reason}" if self.log is None else f"failed ({self.reason})"


def run_status(run: PlannedRun) -> RunStatus:
    """OPEN, FINISHED or DIVERGED, from the run's directory.

    Raises:
        UserError: the directory cannot be used, is damaged, or contains another run.
    """

    def read() -> RunStatus:
        require_usable(run.folder)
        refuse_foreign(run.folder)
        guard(run.folder, run.settings)
        if read_result(run.folder) is not None:
            return RunStatus.FINISHED
        if read_divergence(run.folder) is not None:
            return RunStatus.DIVERGED
        require_usable(run.folder, writing=True)
        return RunStatus.OPEN

    return read_undisturbed(run.folder, read)


@dataclass(frozen=True)
class Standing:
    """The runs of a sweep by their status, each list in the order of the sweep."""

    open: list[PlannedRun] = field(default_factory=list)
    finished: list[PlannedRun] = field(default_factory=list)
    diverged: list[PlannedRun] = field(default_factory=list)
    failed: list[FailedRun] = field(default_factory=list)


def standing_of(sweep: Sweep, tolerant: bool = False) -> Standing:
    """Every run of a sweep by its status; one whose directory cannot be used has failed.

    Args:
        tolerant: a run whose directory contains a run with other settings has failed too.

    Raises:
        OtherRunError: there are such runs; the sentence names all of them.
    """
    found = Standing()
    taken: list[str] = []
    lists = {
        RunStatus.OPEN: found.open,
        RunStatus.FINISHED: found.finished,
        RunStatus.DIVERGED: found.diverged,
    }
    for run in sweep.runs:
        try:
            lists[run_status(run)].append(run)
        except UserError as error:
            if isinstance(error, OtherRunError) and not tolerant:
                taken.append(str(error))
            found.failed.append(FailedRun.because(run, error))
    if taken:
        raise OtherRunError(" ".join(taken))
    return found


# --- one process ----------------------------------------------------------------------------------


@dataclass(eq=False)
class RunProcess:
    """The process of a run in a slot.

    Attributes:
        printed_before: bytes of the log that earlier processes printed.
    """

    run: PlannedRun
    slot: Slot
    handle: subprocess.Popen[bytes]
    printed_before: int
    begun: float = field(default_factory=time.monotonic)
    asked_to_stop: bool = False

    def ending(self, stopping: object) -> tuple[RunStatus, FailedRun | None]:
        """The status of the run after its process has ended; why it failed, if it has.

        The exit code alone is never believed: a run is finished when its result is there.

        Args:
            stopping: true once the sweep asks its runs to stop.
        """
        code = self.handle.returncode
        try:
            if (status := run_status(self.run)) is not RunStatus.OPEN:
                return status, None
        except UserError as error:
            return RunStatus.FAILED, FailedRun.because(self.run, error)
        if code == Stopped.exit_code:
            wait_until(stopping)
        if stopping and (code == Stopped.exit_code or code < 0):  # below 0: a signal ended it
            return RunStatus.STOPPED, None
        if is_locked(self.run.folder):
            return RunStatus.TAKEN, None
        log = last_lines(self.run.folder, self.printed_before)
        return RunStatus.FAILED, FailedRun(self.run, ending_of(code), log)


def wait_until(stopping: object) -> None:
    """Wait a little for the signal that a run has obeyed already, if all were to receive it.

    A system that shuts down, and Slurm, signal the sweep and its runs, in any order.
    """
    until = time.monotonic() + TOGETHER
    while not stopping and time.monotonic() < until:
        time.sleep(0.05)


def ending_of(code: int) -> str:
    """How a process ended that left no result."""
    if code == 0:
        return "exit 0, but it left no result"
    if code > 0:
        return f"exit {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (", often for lack of memory" if name == "SIGKILL" else "")


def start(run: PlannedRun, slot: Slot, data: Path, configs: Path) -> RunProcess:
    """Start `resvar train` for a run; its output goes to `log.txt` in the run's directory.

    The process has its own session, so that Ctrl-C reaches the sweep alone, which asks each
    run to stop. A run also stops when the process of its sweep has ended, for whatever reason.

    Args:
        configs: the folder for the settings of the run, which are those of the sweep's command: the
            files that they came from may have changed.

    Raises:
        UserError: the log is not a regular file.
        OSError: the directory cannot be written, or no process started.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / FAILURE).unlink(missing_ok=True)
    with NamedTemporaryFile("w", encoding="utf-8", dir=configs, suffix=".yaml", delete=False) as to:
        to.write(run.settings.to_yaml())
    command = [
        *SAFE_PYTHON, "-m", "resvar", "train", "--config", to.name,
        "--out", str(run.folder), "--data", str(data), "--device", slot.device,
    ]  # fmt: skip
    threads = str(slot.threads)
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
        PARENT: str(os.getpid()), **import_path(), **slot.environment,
    }  # fmt: skip
    with open_to_append(run.folder / LOG) as log:
        before = log.seek(0, os.SEEK_END)
        handle = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    return RunProcess(run, slot, handle, before)


def import_path() -> dict[str, str]:
    """The environment that lets a `SAFE_PYTHON` import this package from where this process did.

    Empty where it is installed. Where this process was started with `python -m resvar` in a
    checkout, the checkout is named.
    """
    checkout = PACKAGE.parent
    if sys.flags.safe_path or Path(sys.path[0]).absolute() != checkout:
        return {}
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(checkout), *([others] if others else [])])}


def collect(
    processes: list[RunProcess], stopping: object
) -> Iterator[tuple[RunProcess, RunStatus, FailedRun | None]]:
    """Remove the processes that have ended from the list; yield each with the end of its run.

    Where the process could not record itself why its run failed, this does.

    Args:
        stopping: true once the sweep asks its runs to stop.
    """
    for process in [process for process in processes if process.handle.poll() is not None]:
        processes.remove(process)
        status, failure = process.ending(stopping)
        if failure is not None:
            record_failure(failure)
        yield process, status, failure


def record_failure(failure: FailedRun) -> None:
    """Write `failure.json` for `resvar status`, unless the run has done so."""
    folder = failure.run.folder
    if failure.log is not None and not os.path.lexists(folder / FAILURE):
        last = failure.log[-1].removeprefix("resvar: error: ") if failure.log else "none"
        message = f"its process ended ({failure.reason}); the last line of its log: {last}"
        with suppress(OSError):
            write_failure(folder, message)


def terminate(processes: Iterable[RunProcess]) -> None:
    """Send SIGTERM to each process, once: each run saves a checkpoint."""
    for process in processes:
        if process.handle.poll() is None and not process.asked_to_stop:
            process.asked_to_stop = True
            with suppress(ProcessLookupError):
                process.handle.send_signal(signal.SIGTERM)


def last_lines(folder: Path, since: int, count: int = 5) -> tuple[str, ...]:
    """The last lines of a run's log after its first `since` bytes; none without a log."""
    try:
        with open_regular(folder / LOG) as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(since, size - LOG_TAIL))
            return tuple(log.read().decode(errors="replace").splitlines()[-count:])
    except (OSError, UserError):
        return ()
