"""What a sweep has handed to Slurm, and what Slurm says about it. No torch, no submitit.

A submission is one job array. It leaves a folder `.slurm/<job name>/` beside the manifest:

    submission.json    which runs each task has, and the job's id; what `resvar status` reads
    plan.json          what a task needs to do its work: settings, data, device, threads
    task-<index>.json  written by a task: where it works, and whether it was told to stop
    *_log.out          what a task printed; a run's own words are in its log.txt

The first two are whole before sbatch is called, and Slurm knows the job by its name. So whoever
submits may be killed at any moment: what was submitted is found again, with its id or without.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resvar.errors import UserError
from resvar.files import write_json
from resvar.rundir import NOTE_FORMAT, read_json
from resvar.sweeps.grid import PlannedRun

FOLDER = ".slurm"
RECORD = "submission.json"
PLAN = "plan.json"

PATIENCE = 20.0
"""Seconds that a client of Slurm is given: it blocks for long where the controller is dead."""

PENDING = frozenset({
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
})  # fmt: skip
AT_WORK = frozenset({
    "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT",
})  # fmt: skip
"""Slurm's words for a task that has not ended; every other word is for one that has."""

COLUMNS = {"Name": 80, "ArrayJobID": 20, "ArrayTaskID": 20, "State": 20, "RestartCnt": 10,
           "NodeList": 60, "Reason": 60}  # fmt: skip
"""What squeue is asked for, and how wide it prints that."""


class NoAnswerError(Exception):
    """Slurm cannot be asked here, or does not answer; the reason, as the end of a sentence."""


@dataclass(frozen=True)
class Plan:
    """What the tasks of a submission need.

    Attributes:
        root: the folder of all runs, absolute, like `data`.
        device: as `resvar train` takes it.
        threads: of each run.
        settings: run → its settings as YAML, as they were when it was submitted: a file that they
            came from may be another by the time the run begins.
    """

    root: Path
    data: Path
    device: str
    threads: int
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Submission:
    """A job array: what Slurm calls it, and the runs of each of its tasks.

    Attributes:
        job: the array's id; None where the submitter ended before it could note it.
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
        """What a task printed; None where it never began."""
        return next(iter(sorted(self.folder.glob(f"*_{index}_0_log.out"))), None)


@dataclass(frozen=True)
class Queued:
    """A task that Slurm knows.

    Attributes:
        job: `12_3`.
        state: Slurm's word.
        restarts: how often it was requeued.
        node: where it works; empty while it waits.
        reason: why it waits, in Slurm's word; `None` where there is no reason.
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
        return self.state not in PENDING | AT_WORK


Place = tuple[str, int]
"""Where a run is in Slurm: the job's name, and the task's index in the array."""


def prepare(
    root: Path, sweep: str, tasks: Sequence[Sequence[PlannedRun]], plan: Plan
) -> Submission:
    """Write down what will be submitted, before it is."""
    clean = re.sub(r"[^A-Za-z0-9.-]+", "-", sweep)[:40]
    # To the microsecond, since the newest submission of a run is the one that counts.
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    folder = root.absolute() / FOLDER / f"resvar-{stamp}-{clean}-{uuid.uuid4().hex[:6]}"
    folder.mkdir(parents=True)
    names = tuple(tuple(run.name for run in task) for task in tasks)
    submission = Submission(folder, names)
    values = {"root": str(plan.root), "data": str(plan.data), "device": plan.device,
              "threads": plan.threads, "settings": dict(plan.settings)}  # fmt: skip
    write_json(folder / PLAN, {"format": NOTE_FORMAT, **values})
    return record(submission)


def record(submission: Submission, job: str | None = None) -> Submission:
    """Write what `resvar status` reads, with the job's id as soon as there is one."""
    submission = replace(submission, job=job)
    tasks = [list(task) for task in submission.tasks]
    write_json(submission.folder / RECORD, {"format": NOTE_FORMAT, "job": job, "tasks": tasks})
    return submission


def withdraw(submission: Submission) -> None:
    """Take back what sbatch has refused."""
    shutil.rmtree(submission.folder)


def read_submission(folder: Path) -> Submission:
    """What was handed to Slurm.

    Raises:
        UserError: the record is damaged, or of a later version of resvar.
    """
    values = read_json(folder / RECORD)
    tasks, job = values.get("tasks"), values.get("job")
    if not (
        isinstance(tasks, list)
        and all(isinstance(task, list) and all(isinstance(r, str) for r in task) for task in tasks)
        and (job is None or isinstance(job, str))
    ):
        raise UserError(
            f"{folder / RECORD}: this is damaged; take the folder away once its job has ended."
        )
    return Submission(folder, tuple(tuple(task) for task in tasks), job)


def read_plan(folder: Path) -> Plan:
    """What the tasks need.

    Raises:
        UserError: the plan is damaged, or of a later version of resvar.
    """
    values = read_json(folder / PLAN)
    try:
        settings = {str(name): str(text) for name, text in values["settings"].items()}
        root, data = Path(values["root"]), Path(values["data"])
        return Plan(root, data, str(values["device"]), int(values["threads"]), settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / PLAN}: this is damaged ({error!r}).") from error


def places(root: Path) -> dict[str, tuple[Submission, int]]:
    """Run → the newest submission that has it, and the task there.

    Raises:
        UserError: a record is damaged.
    """
    found: dict[str, tuple[Submission, int]] = {}
    for path in sorted(root.glob(f"{FOLDER}/*/{RECORD}")):  # their names begin with the time
        submission = read_submission(path.parent)
        for index, task in enumerate(submission.tasks):
            found |= dict.fromkeys(task, (submission, index))
    return found


def held(root: Path, runs: Iterable[str]) -> set[str]:
    """Those of the runs that are in Slurm's hands: waiting there, or at work.

    Raises:
        UserError: a record is damaged.
        NoAnswerError: something was submitted, and Slurm cannot be asked about it.
    """
    known = places(root)
    submitted = {run: known[run] for run in runs if run in known}
    queue = ask({submission.name for submission, _ in submitted.values()})
    return {
        run
        for run, (submission, index) in submitted.items()
        if (task := queue.get((submission.name, index))) is not None and not task.ended
    }


# --- asking Slurm ---------------------------------------------------------------------------------


def ask(names: Iterable[str]) -> dict[Place, Queued]:
    """What Slurm knows about the tasks of the jobs with these names, asked once for all.

    A task that ended some minutes ago (`MinJobAge`) is not known any more.

    Raises:
        NoAnswerError: there is no squeue, or it fails, or does not answer.
    """
    wanted = sorted(names)
    if not wanted:
        return {}
    columns = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
    command = ["squeue", "--noheader", "--array", "--all", "--states=all",
               f"--name={','.join(wanted)}", f"--Format={columns}"]  # fmt: skip
    return parse(client(command))


def parse(text: str) -> dict[Place, Queued]:
    """The tasks in what squeue prints."""
    found = {}
    for line in text.splitlines():
        values, start = {}, 0
        for name, width in COLUMNS.items():
            values[name] = line[start : start + width].strip()
            start += width
        index, restarts = values["ArrayTaskID"], values["RestartCnt"]
        if not index.isdecimal():
            continue  # no task of an array
        job = f"{values['ArrayJobID']}_{index}"
        found[values["Name"], int(index)] = Queued(
            job, values["State"], int(restarts) if restarts.isdecimal() else 0,
            values["NodeList"], values["Reason"],
        )  # fmt: skip
    return found


def client(command: Sequence[str]) -> str:
    """What a client of Slurm prints.

    Raises:
        NoAnswerError: it is not there, fails, or does not answer in time.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE, check=False, errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise NoAnswerError(f"there is no {command[0]} on this machine") from None
    except OSError as error:
        raise NoAnswerError(f"{command[0]} cannot be started ({error.strerror})") from error
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{command[0]} has not answered for {PATIENCE:.0f} s") from None
    if done.returncode != 0:
        raise NoAnswerError(f"{command[0]} fails: {_reason(done.stderr)}")
    return done.stdout


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error|fatal): ", "", lines[-1]) if lines else "it does not say why"


def note(path: Path) -> Mapping[str, Any] | None:
    """What a task has noted; None where it has noted nothing (yet)."""
    try:
        return read_json(path)
    except UserError:
        return None
