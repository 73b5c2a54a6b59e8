"""A task of a sweep's job array, on the node that Slurm gave it: `python -m resvar.sweeps.task`.

It starts an ordinary `resvar train` for each of its runs, side by side, and stays to watch. Slurm
speaks to it in signals:

    SIGUSR2    the time limit is near, or the task is about to be preempted (where the cluster says
               so): the runs save checkpoints, and the task asks Slurm to requeue it
    SIGTERM    the same if Slurm is preempting it; else somebody ran scancel: the runs save, and
               the task ends

So a task that is given word is requeued by itself alone. One that is not (its node fails, it is
preempted without grace) is requeued by Slurm alone, and goes on from the last checkpoint.
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

from resvar.config import resolve
from resvar.console import pluralize
from resvar.errors import Stopped, UserError
from resvar.files import write_json, write_text
from resvar.rundir import CHECKPOINT, FAILURE, NOTE_FORMAT, RESULT, is_locked
from resvar.sweeps.grid import PlannedRun
from resvar.sweeps.local import POLL, Process, Slot, end, has_diverged, last_lines, start
from resvar.sweeps.submission import (
    NoAnswerError,
    Submission,
    client,
    note,
    read_plan,
    read_submission,
)

PREDECESSOR = 120.0
"""Seconds to wait for a process that still holds a run, such as the one before a requeue."""

MOST_IN_VAIN = 10
"""Requeues in a row without a new checkpoint, after which the task gives up: it would go on so."""

LINGER = 600.0
"""Seconds to wait for Slurm where it cannot be asked: a preempted task that ends by itself is not
requeued, one that Slurm ends is."""


class Task:
    """The runs of one task, from what the submission says."""

    def __init__(self, submission: Submission, index: int, configs: Path) -> None:
        plan = read_plan(submission.folder)
        self.note_path = submission.note_path(index)
        self.slot = Slot("slurm", plan.threads, {}, plan.device)
        self.data = plan.data
        self.runs = []
        for number, name in enumerate(submission.tasks[index]):
            config = configs / f"{number}.yaml"
            write_text(config, plan.settings[name], durable=False)
            arguments = ("--config", str(config))
            self.runs.append(PlannedRun(resolve(config), plan.root / name, arguments))

    def work(self, asked: Sequence[int]) -> int:
        """Do the runs; the exit code. `asked` are the signals that have come, in their order."""
        before = note(self.note_path)
        if before is None:  # no requeue: what failed before may be tried again
            for run in self.runs:
                (run.folder / FAILURE).unlink(missing_ok=True)
        self.in_vain = int((before or {}).get("in_vain", 0))
        self._note("running")
        saved = [checkpoint_time(run) for run in self.runs]
        todo = [run for run in self.runs if not _is_settled(run)]
        await_predecessor(todo, asked)
        with deaf_children():
            working = [] if asked else [start(run, self.slot, self.data) for run in todo]
        stopped = list(todo) if asked else []
        failed = 0
        while working:
            time.sleep(POLL)
            if asked:
                end(working, signal.SIGTERM)
            for process in [p for p in working if p.handle.poll() is not None]:
                working.remove(process)
                if asked and not _is_settled(process.run):
                    stopped.append(process.run)
                else:
                    failed += _book(process)
        if not stopped:
            self._note("ended")
            return int(failed > 0)
        idle = saved == [checkpoint_time(run) for run in self.runs]
        self.in_vain = self.in_vain + 1 if idle else 0
        return self._leave(stopped, asked)

    def _leave(self, stopped: Sequence[PlannedRun], asked: Sequence[int]) -> int:
        """The runs have saved: have the task requeued, or let it end."""
        if self.in_vain >= MOST_IN_VAIN:
            for run in stopped:
                note_failure(
                    run,
                    f"its Slurm task was told to stop {self.in_vain} times before it had trained; "
                    "allow more time, or set a smaller signal_delay.",
                )
            self._note("ended")
            return 1
        if is_to_be_requeued(asked):
            self._note("requeued")
            if requeue():
                return 0
            self._note("stopped")
            time.sleep(LINGER)
        self._note("stopped")
        return Stopped.exit_code

    def _note(self, state: str) -> None:
        values = {"format": NOTE_FORMAT, "state": state, "node": node(),
                  "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
                  "in_vain": self.in_vain}  # fmt: skip
        write_json(self.note_path, values, durable=False)
        _say(f"{state}: {pluralize(len(self.runs), 'run')}")


def await_predecessor(runs: Sequence[PlannedRun], asked: Sequence[int]) -> None:
    """Wait until nobody works on the runs, or a signal comes; not for ever."""
    until = time.monotonic() + PREDECESSOR
    while any(is_locked(run.folder) for run in runs) and not asked and time.monotonic() < until:
        time.sleep(1)


def is_to_be_requeued(asked: Sequence[int]) -> bool:
    """Whether the signals mean that the work goes on later.

    What a SIGTERM was for Slurm says; where it does not, the answer is yes.
    """
    if signal.SIGTERM not in asked:
        return True
    with suppress(NoAnswerError):
        shown = client(["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]])
        state, reason = _shown("JobState", shown), _shown("Reason", shown)
        preempted = _shown("PreemptTime", shown) not in ("", "None")
        _say(f"Slurm says: {state}, {reason}{', preempted' if preempted else ''}")
        ending = state != "RUNNING" and reason != "TimeLimit"  # somebody ran scancel
        return not ending and (preempted or signal.SIGUSR2 in asked)
    return True


def requeue(attempts: int = 3) -> bool:
    """Ask Slurm to put this task back into the queue; whether it agreed."""
    for attempt in range(attempts):
        try:
            client(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
        except NoAnswerError as error:
            _say(f"not requeued: {error}")
            time.sleep(2**attempt)
        else:
            return True
    return False


@contextmanager
def signals() -> Iterator[list[int]]:
    """The signals that have come, in their order."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)

    both = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.signal(number, ask) for number in both]
    try:
        yield asked
    finally:
        for number, handler in zip(both, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started inside hear no SIGUSR2: Slurm sends it to them too.

    What comes for this process meanwhile arrives at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_settled(run: PlannedRun) -> bool:
    """Whether there is nothing to do for a run: it is done, or it failed in this task already."""
    files = (run.folder / RESULT, run.folder / FAILURE)
    return has_diverged(run) or any(file.exists() for file in files)


def _book(process: Process) -> bool:
    """Whether a run failed. One that died without a word is given one."""
    run, code = process.run, process.handle.returncode
    done = (run.folder / RESULT).exists() or has_diverged(run)
    if code == 0 or done or is_locked(run.folder):  # the last: another process is at it
        return False
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    _say(f"{run.name} failed ({how})")
    if not (run.folder / FAILURE).exists():
        last = (last_lines(run.folder, 1) or [""])[0].removeprefix("resvar: error: ")
        message = f"its process ended with {how}; the last line of its log: {last or 'none'}"
        note_failure(run, message)
    return True


def note_failure(run: PlannedRun, message: str) -> None:
    """Leave word in the run's directory, as a run does that can still speak."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / FAILURE, {"format": NOTE_FORMAT, "message": message})


def checkpoint_time(run: PlannedRun) -> int:
    """When the run last saved a checkpoint; 0 where it has none."""
    with suppress(OSError):
        return (run.folder / CHECKPOINT).stat().st_mtime_ns
    return 0


def _shown(key: str, text: str) -> str:
    match = re.search(rf"\b{key}=(\S+)", text)
    return match[1] if match else ""


def node() -> str:
    """What Slurm calls this machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {node()} {text}", flush=True)


def main() -> int:
    """The exit code: 0 when the runs are finished (or have diverged) or will be later; else 1."""
    with signals() as asked, TemporaryDirectory(prefix="resvar-") as configs:
        try:
            submission = read_submission(Path(sys.argv[1]))
            index = int(os.environ["SLURM_ARRAY_TASK_ID"])
            return Task(submission, index, Path(configs)).work(asked)
        except UserError as error:
            _say(f"error: {error}")
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
