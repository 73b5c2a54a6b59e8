"""A task of a sweep's job array, on the node that Slurm gave it: `python -m resvar.sweeps.task`.

It starts an ordinary `resvar train` for each of its runs, side by side, and waits for them. Slurm
sends signals:

    SIGUSR2    the time limit is near, or the task is about to be preempted (where the cluster is
               configured to tell): the runs save checkpoints, and the task has itself requeued
    SIGTERM    the same where Slurm preempts the task; otherwise a person ran scancel: the runs save
               checkpoints, and the task ends

So a task that receives a signal is requeued by itself alone. One that receives none (its node
fails, or it is preempted without grace) is requeued by Slurm alone, and resumes from the last
checkpoint.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from resvar.config import settings_in
from resvar.console import pluralize, print_line
from resvar.errors import Stopped, UserError
from resvar.files import write_json
from resvar.rundir import CHECKPOINT, FAILURE, NOTE_FORMAT, is_locked, write_failure
from resvar.streams import open_standard_streams
from resvar.strict_yaml import parse_mapping
from resvar.sweeps.grid import PlannedRun
from resvar.sweeps.processes import (
    POLL,
    FailedRun,
    RunProcess,
    RunStatus,
    collect,
    run_status,
    start,
    terminate,
)
from resvar.sweeps.slots import Slot
from resvar.sweeps.submission import (
    SlurmError,
    Submission,
    read_note,
    read_plan,
    read_submission,
    run_client,
)

LOCK_TIMEOUT = 120.0
"""Seconds to wait for a process that still works on a run, such as the one before a requeue."""

FUTILE_REQUEUES = 10
"""Requeues in a row without a new checkpoint, after which the task gives up."""

LINGER = 600.0
"""Seconds to wait for Slurm where it does not answer: a preempted task that ends by itself is not
requeued, one that Slurm ends is."""


class Task:
    """The runs of one task of a submission.

    Args:
        configs: an empty folder, for the settings of the runs.
    """

    def __init__(self, submission: Submission, index: int, configs: Path) -> None:
        plan = read_plan(submission.folder)
        self.note_path = submission.note_path(index)
        self.slot = Slot("slurm", plan.threads, plan.device)
        self.data = plan.data
        self.configs = configs
        self.runs = [
            PlannedRun(settings_in(parse_mapping(plan.settings[name], name), name), plan.root, name)
            for name in submission.tasks[index]
        ]

    def work(self, received: Sequence[int]) -> int:
        """Carry out the runs; the exit code.

        Args:
            received: the signals so far, in their order; it grows.
        """
        before = read_note(self.note_path)
        self.futile = int((before or {}).get("in_vain", 0))
        self._note("running")
        saved = self._checkpoint_times()
        todo, failed = self._open_runs(again=before is None)
        wait_for_locks(todo, received)
        stopped = list(todo) if received else []
        processes: list[RunProcess] = []
        with block_usr2():
            for run in todo if not received else []:
                try:
                    processes.append(start(run, self.slot, self.data, self.configs))
                except (OSError, UserError) as error:
                    failed.append(FailedRun.because(run, error))
        while processes:
            time.sleep(POLL)
            if received:
                terminate(processes)
            for process, status, failure in collect(processes, received):
                if received and status in (RunStatus.STOPPED, RunStatus.TAKEN):
                    stopped.append(process.run)
                elif failure is not None:
                    failed.append(failure)
        for failure in failed:
            print_stamped(f"{failure.run.name} {failure}")
        if not stopped:
            self._note("ended")
            return int(bool(failed))
        self.futile = self.futile + 1 if saved == self._checkpoint_times() else 0
        return self._leave(stopped, received)

    def _open_runs(self, again: bool) -> tuple[list[PlannedRun], list[FailedRun]]:
        """The runs to train, and those whose directory cannot be used.

        Args:
            again: whether to try runs that have failed before; after a requeue this task has.
        """
        todo, failed = [], []
        for run in self.runs:
            try:
                if run_status(run) is RunStatus.OPEN and (
                    again or not (run.folder / FAILURE).exists()
                ):
                    todo.append(run)
            except UserError as error:
                failed.append(FailedRun.because(run, error))
        return todo, failed

    def _leave(self, stopped: Sequence[PlannedRun], received: Sequence[int]) -> int:
        """After the runs have saved: have the task requeued, or let it end; the exit code."""
        if self.futile >= FUTILE_REQUEUES:
            for run in stopped:
                write_failure(
                    run.folder,
                    f"its Slurm task was told to stop {self.futile} times before it had trained; "
                    "allow more time, or set a smaller signal_delay.",
                )
            self._note("ended")
            return 1
        if wants_requeue(received):
            self._note("requeued")
            if requeue():
                return 0
            self._note("stopped")
            time.sleep(LINGER)
        self._note("stopped")
        return Stopped.exit_code

    def _note(self, state: str) -> None:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        values = {"format": NOTE_FORMAT, "state": state, "node": node(), "restarts": restarts,
                  "in_vain": self.futile}  # fmt: skip
        write_json(self.note_path, values, durable=False)
        print_stamped(f"{state}: {pluralize(len(self.runs), 'run')}")

    def _checkpoint_times(self) -> list[int]:
        """The time of each run's checkpoint, in nanoseconds; 0 without one."""
        files = [run.folder / CHECKPOINT for run in self.runs]
        return [file.stat().st_mtime_ns if file.exists() else 0 for file in files]


def wait_for_locks(runs: Sequence[PlannedRun], received: Sequence[int]) -> None:
    """Wait until no process works on the runs, a signal arrives, or `LOCK_TIMEOUT` has passed."""
    until = time.monotonic() + LOCK_TIMEOUT
    while any(is_locked(run.folder) for run in runs) and not received and time.monotonic() < until:
        time.sleep(1)


# --- signals and Slurm ----------------------------------------------------------------------------


@contextmanager
def received_signals() -> Iterator[list[int]]:
    """A list of the signals SIGUSR2 and SIGTERM, in the order of their arrival."""
    received: list[int] = []

    def append(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)

    both = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.signal(number, append) for number in both]
    try:
        yield received
    finally:
        for number, handler in zip(both, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def block_usr2() -> Iterator[None]:
    """Processes that are started inside ignore SIGUSR2, which Slurm sends to them too.

    A signal for this process arrives at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wants_requeue(received: Sequence[int]) -> bool:
    """Whether the signals mean that the work continues later.

    Slurm knows the reason of a SIGTERM; where it does not answer, the work continues.
    """
    if signal.SIGTERM not in received:
        return True
    with suppress(SlurmError):
        shown = run_client(["scontrol", "show", "job", job_id()])
        job = dict(re.findall(r"\b(JobState|Reason|PreemptTime)=(\S+)", shown))
        preempted = job.get("PreemptTime", "None") != "None"
        state, reason = job.get("JobState", ""), job.get("Reason", "")
        print_stamped(f"Slurm: {state}, {reason}{', preempted' if preempted else ''}")
        cancelled = state != "RUNNING" and reason != "TimeLimit"
        return not cancelled and (preempted or signal.SIGUSR2 in received)
    return True


def requeue(attempts: int = 3) -> bool:
    """Have Slurm put this task back into its queue; whether Slurm agreed."""
    for attempt in range(attempts):
        try:
            run_client(["scontrol", "requeue", job_id()])
        except SlurmError as error:
            print_stamped(f"not requeued: {error}")
            time.sleep(2**attempt)
        else:
            return True
    return False


def job_id() -> str:
    """The id of this task, such as `12_3`.

    `SLURM_JOB_ID` does not do: for one of the tasks it is the array's id, and names all of them.
    """
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def node() -> str:
    """The name of this machine in Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def print_stamped(text: str) -> None:
    print_line(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {node()} {text}")


def run_task(folder: Path, index: int) -> int:
    """Carry out a task of a submission.

    Returns:
        The exit code: 0 where the runs are finished (or have diverged) or will be later.
    """
    with received_signals() as received, TemporaryDirectory(prefix="resvar-") as configs:
        try:
            return Task(read_submission(folder), index, Path(configs)).work(received)
        except UserError as error:
            print_stamped(f"error: {error}")
            return error.exit_code


if __name__ == "__main__":
    open_standard_streams()
    sys.exit(run_task(Path(sys.argv[1]), int(os.environ["SLURM_ARRAY_TASK_ID"])))
