"""`resvar sweep --launcher slurm`: the runs that are missing, as job arrays of Slurm.

What a task does on its node is in `task.py`, what a submission leaves behind in `submission.py`,
what submitit does for it in `executor.py`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from resvar.console import console_for_output, pluralize
from resvar.errors import RunError, UserError
from resvar.rundir import is_locked, locked
from resvar.sequences import chunks
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.sweeps.launch import require_inputs, say, sort_runs
from resvar.sweeps.local import require_positive
from resvar.sweeps.resources import Resources
from resvar.sweeps.submission import (
    FOLDER,
    NoAnswerError,
    Plan,
    Submission,
    client,
    held,
    prepare,
    record,
    withdraw,
)

if TYPE_CHECKING:
    from resvar.sweeps.executor import ArrayExecutor

LARGEST_ARRAY = 1000
"""Tasks; Slurm's own default for an array, and as many as a plan is kept readable for."""

Task = tuple[PlannedRun, ...]


def run_on_slurm(
    sweep: Sweep,
    data: Path,
    device: str,
    jobs: int | None,
    per_gpu: int,
    resources: Resources,
    dry_run: bool,
) -> None:
    """Submit the runs that are not finished, not at work and not in the queue already.

    Args:
        jobs: runs at work at a time, at most; None: what the launcher's file says.
        per_gpu: runs side by side in one task.

    Raises:
        UserError: submitit, sbatch or the data is missing, sbatch refuses the job, or a run's
            folder holds other settings.
        RunError: Slurm does not answer, or not everything could be submitted.
    """
    require_positive(jobs, per_gpu)
    require_submitit()
    if "%" in str(sweep.root.absolute()):
        raise UserError(
            f"--out {sweep.root}: Slurm gives '%' in a file's name a meaning; rename it."
        )
    console = console_for_output()
    if dry_run:
        todo = _missing(sweep, console, patient=False)
        _show(sweep, todo, _Asked(data, device, jobs, per_gpu, resources), console)
        return
    require_sbatch()
    require_inputs(sort_runs(sweep)[0], data)
    with locked(sweep.root / FOLDER):  # who submits meanwhile would submit the same
        todo = _missing(sweep, console)
        if todo:
            sweep.write_manifest()
            _submit(sweep, todo, _Asked(data, device, jobs, per_gpu, resources), console)


def require_submitit() -> None:
    """Refuse before anything is written.

    Raises:
        UserError: the package that submits is missing.
    """
    if find_spec("submitit") is None:
        raise UserError("--launcher slurm needs the package submitit: pip install 'resvar[slurm]'.")


def require_sbatch() -> None:
    """Refuse before anything is written.

    Raises:
        UserError: this machine cannot submit.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "--launcher slurm needs sbatch, which is not on this machine's PATH: type it on a "
            "cluster's login node, or look at the batch script here with --dry-run."
        )


# --- inside ---------------------------------------------------------------------------------------


class _Asked:
    """What the user asks for, beside the runs."""

    def __init__(
        self, data: Path, device: str, jobs: int | None, per_gpu: int, resources: Resources
    ) -> None:
        self.data, self.per_gpu, self.resources = data.absolute(), per_gpu, resources
        self.gpus = 0 if device == "cpu" else resources.gpus_per_task
        # A task that was given a GPU shall not go on without it where it finds none.
        self.device = "cuda" if device == "auto" and self.gpus else device
        self.cpus = resources.cpus_per_task or per_gpu
        self.parallel = resources.parallel if jobs is None else -(-jobs // per_gpu)

    def plan(self, root: Path, tasks: Sequence[Task]) -> Plan:
        settings = {run.name: run.settings.to_yaml() for task in tasks for run in task}
        threads = max(1, self.cpus // self.per_gpu)
        return Plan(root.absolute(), self.data, self.device, threads, settings)

    def executor(self, submission: Submission, arrays: int) -> ArrayExecutor:
        """`arrays` share the number of tasks at work."""
        from resvar.sweeps.executor import ArrayExecutor

        parallel = None if self.parallel is None else max(1, self.parallel // arrays)
        return ArrayExecutor(submission, self.resources, self.gpus, self.cpus, parallel)


def _missing(sweep: Sweep, console: Console, patient: bool = True) -> list[PlannedRun]:
    """The runs to submit; says how all of them stand.

    Args:
        patient: whether it matters what Slurm says; a dry run does without.
    """
    open_runs, done, hopeless = sort_runs(sweep)
    in_queue: set[str] = set()
    try:
        in_queue = held(sweep.root, [run.name for run in open_runs])
    except NoAnswerError as error:
        if patient:
            raise RunError(
                f"{error}, so which runs are queued already is not known; try again later."
            ) from error
        say(console, f"What is queued already is not known: {error}.")
    todo = [run for run in open_runs if run.name not in in_queue and not is_locked(run.folder)]
    elsewhere = len(open_runs) - len(in_queue) - len(todo)
    words = [f"{done} of them finished already"]
    others = {"diverged": hopeless, "with Slurm": len(in_queue), "at work elsewhere": elsewhere}
    words += [f"{count} {what}" for what, count in others.items() if count]
    runs = pluralize(len(sweep.runs), "run")
    say(console, f"{runs} in {sweep.root}, {', '.join(words)}.")
    return todo


def _show(sweep: Sweep, todo: Sequence[PlannedRun], asked: _Asked, console: Console) -> None:
    """The batch script of each array and its runs; nothing is written."""
    arrays = chunks(chunks(todo, asked.per_gpu), LARGEST_ARRAY)
    for tasks in arrays:
        names = tuple(tuple(run.name for run in task) for task in tasks)
        submission = Submission(sweep.root.absolute() / FOLDER / f"resvar-TIME-{sweep.name}", names)
        say(console, f"\n{asked.executor(submission, len(arrays)).script()}")
        for index, task in enumerate(tasks):
            for run in task:
                command = f"resvar train {' '.join(run.arguments)} --out {run.folder}"
                say(console, f"  task {index}: {command}")


def _submit(sweep: Sweep, todo: Sequence[PlannedRun], asked: _Asked, console: Console) -> None:
    """Hand the runs to sbatch, an array after the other.

    Raises:
        UserError: sbatch refuses the first array.
        RunError: it refuses a later one, or Slurm cannot be reached.
    """
    from resvar.sweeps.executor import RefusedError

    arrays = chunks(chunks(todo, asked.per_gpu), largest_array())
    submitted: list[str] = []
    count = 0
    for tasks in arrays:
        submission = prepare(sweep.root, sweep.name, tasks, asked.plan(sweep.root, tasks))
        try:
            job = asked.executor(submission, len(arrays)).submit_array_job()
        except RefusedError as error:
            withdraw(submission)
            if not submitted:
                raise
            raise RunError(
                f"{error} Before that {count} runs were submitted; the same command submits the "
                "others."
            ) from error
        record(submission, job)
        submitted.append(job)
        runs = sum(len(task) for task in tasks)
        count += runs
        say(
            console,
            f"Submitted {pluralize(runs, 'run')} as job {job}: an array of "
            f"{pluralize(len(tasks), 'task')}.",
        )
    say(
        console,
        f"This terminal may be closed. `resvar status {sweep.root}` says how they stand; "
        f"`scancel {' '.join(submitted)}` stops them, each with a checkpoint; this same command "
        "submits what is missing.",
    )


def largest_array() -> int:
    """How many tasks the cluster takes in one array."""
    with suppress(NoAnswerError):
        match = re.search(r"MaxArraySize\s*=\s*(\d+)", client(["scontrol", "show", "config"]))
        if match and int(match[1]) > 0:
            return min(int(match[1]), LARGEST_ARRAY)
    return LARGEST_ARRAY
