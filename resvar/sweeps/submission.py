"""The records of job arrays that a sweep has submitted to Slurm, and queries to Slurm. No torch.

Each array has a folder `.slurm/<job name>/` next to the sweep's manifest:

    submission.json    the runs of each task, and the array's id; read by `resvar status`
    plan.json          what a task needs: settings, data, device, threads
    task-<index>.json  written by a task: its node, and whether it was told to stop
    *_log.out          the output of a task; the output of a run is in its log.txt

The first two are complete before sbatch is called, and Slurm knows the job by its name. So a
submitter may be killed at any moment: its submission is found again, with or without the id.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
from pydantic.dataclasses import dataclass

from resvar.errors import UserError
from resvar.files import write_json
from resvar.rundir import NOTE_FORMAT, read_json
from resvar.sweeps.grid import PlannedRun

SUBMISSIONS = ".slurm"
SUBMISSION_FILE = "submission.json"
PLAN_FILE = "plan.json"

CLIENT_TIMEOUT = 20.0
"""Seconds for a client of Slurm, which blocks for long where the controller is down."""

PENDING = frozenset({
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
})  # fmt: skip
ACTIVE = frozenset({
    "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT",
})  # fmt: skip
"""Slurm's states of a task that has not ended; in every other state it has."""

QUEUE_COLUMNS = {"Name": 80, "ArrayJobID": 20, "ArrayTaskID": 20, "State": 20, "RestartCnt": 10,
                 "NodeList": 60, "Reason": 60}  # fmt: skip
"""The columns requested from squeue, with their widths."""


class SlurmError(Exception):
    """A client of Slurm is missing, fails, or does not answer; the text ends a sentence.

    Attributes:
        complaint: what the client printed, where it ran and failed; otherwise empty.
    """

    def __init__(self, message: str, complaint: str = "") -> None:
        super().__init__(message)
        self.complaint = complaint


@dataclass(frozen=True)
class Plan:
    """What the tasks of a submission need.

    Attributes:
        root: the folder of all runs, absolute, like `data`.
        device: as for `resvar train`.
        threads: of each run.
        settings: run → its settings as YAML, as they were at the submission: a file that they came
            from may have changed by the time the run begins.
    """

    root: Path
    data: Path
    device: str
    threads: int
    settings: dict[str, str]


@dataclass(frozen=True)
class Submission:
    """A job array: its folder, whose name is the job's name, and the runs of each of its tasks.

    Attributes:
        job: the array's id; None where the submitter ended before it could record it.
    """

    folder: Path
    tasks: tuple[tuple[str, ...], ...]
    job: str | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def note_path(self, index: int) -> Path:
        return self.folder / f"task-{index}.json"

    def log(self, index: int) -> Path | None:
        """The output of a task; None where it never began."""
        return next(iter(sorted(self.folder.glob(f"*_{index}_0_log.out"))), None)


def create_submission(
    root: Path, sweep: str, tasks: Sequence[Sequence[PlannedRun]], plan: Plan
) -> Submission:
    """Record what will be submitted, before it is."""
    clean = re.sub(r"[^A-Za-z0-9.-]+", "-", sweep)[:40]
    # To the microsecond, because the newest submission of a run is the valid one.
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    folder = root.absolute() / SUBMISSIONS / f"resvar-{stamp}-{clean}-{uuid.uuid4().hex[:6]}"
    folder.mkdir(parents=True)
    values = pydantic.TypeAdapter(Plan).dump_python(plan, mode="json")
    write_json(folder / PLAN_FILE, {"format": NOTE_FORMAT, **values})
    return write_record(Submission(folder, tuple(tuple(r.name for r in task) for task in tasks)))


def write_record(submission: Submission, job: str | None = None) -> Submission:
    """Write `submission.json`, with the array's id as soon as it is known."""
    submission = replace(submission, job=job)
    values = {"format": NOTE_FORMAT, "job": job, "tasks": submission.tasks}
    write_json(submission.folder / SUBMISSION_FILE, values)
    return submission


def discard_submission(submission: Submission) -> None:
    """Remove the record of an array that sbatch has refused."""
    shutil.rmtree(submission.folder)


def read_submission(folder: Path) -> Submission:
    """The array that was submitted from a folder.

    Raises:
        UserError: the record is damaged, or written by a later version of resvar.
    """
    values = read_json(folder / SUBMISSION_FILE)
    try:
        return Submission(folder, values["tasks"], values.get("job"))
    except (KeyError, pydantic.ValidationError):
        raise UserError(
            f"{folder / SUBMISSION_FILE}: this is damaged; remove the folder once its job has "
            "ended."
        ) from None


def read_plan(folder: Path) -> Plan:
    """What the tasks need.

    Raises:
        UserError: the plan is damaged, or written by a later version of resvar.
    """
    values = read_json(folder / PLAN_FILE)
    try:
        return pydantic.TypeAdapter(Plan).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{folder / PLAN_FILE}: this is damaged ('{where}': {first['msg']})."
        ) from None


def read_note(path: Path) -> Mapping[str, Any] | None:
    """The record that a task or run has left; None if there is none yet."""
    try:
        return read_json(path)
    except UserError:
        return None


def latest_tasks(root: Path) -> dict[str, tuple[Submission, int]]:
    """Run → the newest submission that contains it, and the index of its task.

    Raises:
        UserError: a record is damaged.
    """
    found: dict[str, tuple[Submission, int]] = {}
    for path in sorted(root.glob(f"{SUBMISSIONS}/*/{SUBMISSION_FILE}")):  # names begin with a time
        submission = read_submission(path.parent)
        for index, task in enumerate(submission.tasks):
            found |= dict.fromkeys(task, (submission, index))
    return found


def runs_in_slurm(root: Path, runs: Iterable[str]) -> set[str]:
    """The runs that wait in Slurm's queue or run there.

    Raises:
        UserError: a record is damaged.
        SlurmError: a run was submitted, and Slurm does not answer.
    """
    latest = latest_tasks(root)
    submitted = {run: latest[run] for run in runs if run in latest}
    queue = query_queue({submission.name for submission, _ in submitted.values()})
    return {
        run
        for run, (submission, index) in submitted.items()
        if (task := queue.get((submission.name, index))) is not None and not task.ended
    }


# --- queries to Slurm -----------------------------------------------------------------------------


class QueuedTask(NamedTuple):
    """A task that Slurm knows.

    Attributes:
        job: such as `12_3`.
        state: in Slurm's words.
        restarts: how often it was requeued.
        node: where it works; empty while it waits.
        reason: why it waits, in Slurm's words; `None` without a reason.
    """

    job: str
    state: str
    restarts: int
    node: str
    reason: str

    @property
    def pending(self) -> bool:
        return self.state in PENDING

    @property
    def ended(self) -> bool:
        return self.state not in PENDING | ACTIVE


TaskKey = tuple[str, int]
"""A task's key in Slurm: the job's name, and the task's index in the array."""


def query_queue(names: Iterable[str]) -> dict[TaskKey, QueuedTask]:
    """The tasks of the jobs with these names, from one call of squeue.

    Slurm forgets a task some minutes after its end (`MinJobAge`).

    Raises:
        SlurmError: squeue is missing, fails or does not answer.
    """
    wanted = sorted(names)
    if not wanted:
        return {}
    columns = ",".join(f"{name}:{width}" for name, width in QUEUE_COLUMNS.items())
    command = ["squeue", "--noheader", "--array", "--all", "--states=all",
               f"--name={','.join(wanted)}", f"--Format={columns}"]  # fmt: skip
    found = {}
    for line in run_client(command).splitlines():
        values, start = [], 0
        for width in QUEUE_COLUMNS.values():
            values.append(line[start : start + width].strip())
            start += width
        name, array, index, state, restarts, node, reason = values
        if index.isdecimal():  # otherwise it is not a task of an array
            count = int(restarts) if restarts.isdecimal() else 0
            found[name, int(index)] = QueuedTask(f"{array}_{index}", state, count, node, reason)
    return found


def run_client(command: Sequence[str], timeout: float = CLIENT_TIMEOUT) -> str:
    """The output of a client of Slurm.

    Args:
        timeout: seconds to wait for its end.

    Raises:
        SlurmError: it is missing, fails, or does not end in time.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    program = command[0]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=timeout, check=False, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(f"there is no {program} on this machine") from None
    except OSError as error:
        raise SlurmError(f"{program} cannot be started ({error.strerror})") from error
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{program} has not answered for {timeout:.0f} s") from None
    if done.returncode != 0:
        complaint = _complaint(done.stderr)
        raise SlurmError(f"{program} fails: {complaint}", complaint)
    return done.stdout


def _complaint(stderr: str) -> str:
    """What a client printed, as the end of a sentence."""
    lines = [
        re.sub(r"^\w+: (error|fatal): |^sbatch: ", "", line.strip()) for line in stderr.splitlines()
    ]
    words = [line.rstrip(".") for line in lines if line and not line.startswith("Try ")]
    return "; ".join(words) or "it gives no reason"
