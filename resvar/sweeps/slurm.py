"""`resvar sweep --launcher slurm`: the open runs as job arrays of Slurm, and their batch script.

The work of a task on its node is in `task.py`, the records of a submission are in `submission.py`.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from resvar.console import deliver, pluralize, print_line
from resvar.errors import RunError, UserError
from resvar.files import write_text
from resvar.rundir import is_locked, locked
from resvar.sequences import chunks
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.sweeps.launch import (
    comments,
    pasteable_command,
    print_counts,
    print_unusable,
    require_inputs,
)
from resvar.sweeps.processes import SAFE_PYTHON, FailedRun, import_path, standing_of
from resvar.sweeps.resources import Resources
from resvar.sweeps.slots import require_positive
from resvar.sweeps.submission import (
    SUBMISSIONS,
    Plan,
    SlurmError,
    Submission,
    create_submission,
    discard_submission,
    run_client,
    runs_in_slurm,
    write_record,
)

LARGEST_ARRAY = 1000
"""Tasks; Slurm's own default for an array, and a size at which its records stay readable."""

SUBMIT_TIMEOUT = 300.0
"""Seconds for sbatch, which by itself tries again for a while where the controller is busy."""

UNREACHABLE = re.compile(r"contact|timed out|temporarily|connection|socket", re.IGNORECASE)
"""In a message of sbatch: the controller is at fault, and not the request."""

NO_GPUS = "; use --device cpu, or another gpus_per_task in the launcher's file"

BATCH_SCRIPT = """\
#!/bin/bash
{options}
{setup}
# Until Python listens to signals, it ignores them: by default they would end it.
srun --unbuffered --cpus-per-task {cpus} --output {log} \
bash -c 'trap "" USR2 TERM; exec "$@"' resvar {command}
"""


class RefusedError(UserError):
    """sbatch has refused the job: nothing was submitted."""


def run_on_slurm(
    sweep: Sweep,
    data: Path,
    device: str,
    jobs: int | None,
    per_gpu: int,
    resources: Resources,
    dry_run: bool,
) -> None:
    """Submit the runs that are neither finished nor running nor in Slurm's queue.

    Args:
        jobs: maximum number of runs at a time; None: as in the launcher's file.
        per_gpu: runs side by side in one task.

    Raises:
        UserError: sbatch or the data is missing, sbatch refuses the job, or a run's directory
            contains other settings.
        RunError: Slurm does not answer, or a part of the runs could not be submitted.
    """
    require_positive(jobs, per_gpu)
    if "%" in str(sweep.root.absolute()):
        raise UserError(
            f"--out {sweep.root}: Slurm gives '%' in a file's name a meaning; rename it."
        )
    gpus = 0 if device == "cpu" else resources.gpus_per_task
    cpus = resources.cpus_per_task or per_gpu
    parallel = resources.parallel if jobs is None else -(-jobs // per_gpu)
    # A task that was given a GPU must not train without it.
    device = "cuda" if device == "auto" and gpus else device
    arrays = ArrayJobs(
        sweep,
        per_gpu,
        resources.model_copy(
            update={"gpus_per_task": gpus, "cpus_per_task": cpus, "parallel": parallel}
        ),
        Plan(sweep.root.absolute(), data.absolute(), device, max(1, cpus // per_gpu), {}),
    )
    if dry_run:
        arrays.show(*_unsubmitted_runs(sweep, dry_run=True))
        return
    sweep.require_possible()
    if shutil.which("sbatch") is None:
        raise UserError(
            "--launcher slurm needs sbatch, which is not on this machine's PATH: type it on a "
            "cluster's login node, or look at the batch script here with --dry-run."
        )
    require_inputs(standing_of(sweep).open, data)
    with locked(sweep.root / SUBMISSIONS):  # a second submitter would submit the same runs
        todo, failed = _unsubmitted_runs(sweep)
        if todo:
            sweep.write_manifest()
            arrays.submit(todo)
    if failed:
        raise RunError(
            f"{pluralize(len(failed), 'run')} cannot be submitted, for the reason above."
        )


@dataclass(frozen=True)
class ArrayJobs:
    """The runs of a sweep as job arrays.

    Attributes:
        per_gpu: runs side by side in one task.
        resources: the request of a task, after all choices.
        plan: what the tasks need, without the settings of their runs.
    """

    sweep: Sweep
    per_gpu: int
    resources: Resources
    plan: Plan

    def show(self, todo: Sequence[PlannedRun], failed: Sequence[FailedRun]) -> None:
        """Print the batch script of each array, its runs, and those refused; write nothing."""
        arrays = self._split(todo, LARGEST_ARRAY)
        for tasks in arrays:
            folder = self.plan.root / SUBMISSIONS / f"resvar-TIME-{self.sweep.name}"
            deliver(f"\n{self._script(folder, len(tasks), len(arrays))}\n", None)
            for index, task in enumerate(tasks):
                for run in task:
                    command = pasteable_command(run, self.plan.data, self.plan.device)
                    deliver(f"  task {index}: {command}\n", None)
        deliver("".join(f"{line}\n" for line in comments(self.sweep, failed)), None)

    def submit(self, todo: Sequence[PlannedRun]) -> None:
        """Submit one array after the other.

        Raises:
            UserError: sbatch refuses the first array.
            RunError: sbatch refuses a later one, or Slurm cannot be reached.
        """
        arrays = self._split(todo, _largest_array())
        jobs: list[str] = []
        count = 0
        for tasks in arrays:
            settings = {run.name: run.settings.to_yaml() for task in tasks for run in task}
            plan = replace(self.plan, settings=settings)
            submission = create_submission(self.plan.root, self.sweep.name, tasks, plan)
            script = self._script(submission.folder, len(tasks), len(arrays))
            try:
                job = _sbatch(submission, script)
            except RefusedError as error:
                discard_submission(submission)
                if not jobs:
                    raise
                raise RunError(
                    f"{error} Before that {count} runs were submitted; the same command submits "
                    "the others."
                ) from error
            write_record(submission, job)
            jobs.append(job)
            count += len(settings)
            print_line(
                f"Submitted {pluralize(len(settings), 'run')} as job {job}: an array of "
                f"{pluralize(len(tasks), 'task')}.",
            )
        print_line(
            f"This terminal may be closed. `resvar status {self.sweep.root}` shows their status; "
            f"`scancel {' '.join(jobs)}` stops them, each with a checkpoint; this same command "
            "submits what is missing.",
        )

    def _split(
        self, todo: Sequence[PlannedRun], largest: int
    ) -> list[tuple[tuple[PlannedRun, ...], ...]]:
        """Runs to tasks to arrays."""
        return chunks(chunks(todo, self.per_gpu), largest)

    def _script(self, folder: Path, count: int, arrays: int) -> str:
        """The batch script of an array of `count` tasks; `arrays` share the running tasks."""
        wanted = self.resources
        parallel = max(1, wanted.parallel // arrays) if wanted.parallel else count
        options = {
            "job-name": folder.name,
            "array": f"0-{count - 1}%{min(parallel, count)}",
            "nodes": 1,
            "output": folder / "%A_%a_0_log.out",  # of both streams
            "open-mode": "append",  # a requeued task continues its log
            "requeue": True,
            "signal": f"USR2@{wanted.signal_delay}",
            "partition": wanted.partition,
            "account": wanted.account,
            "qos": wanted.qos,
            "time": wanted.time,
            "mem": wanted.mem,
            "gpus-per-node": wanted.gpus_per_task or None,  # the task is alone on its node
            "cpus-per-task": wanted.cpus_per_task,  # srun does not inherit it since Slurm 22.05
            **wanted.sbatch,
        }
        path = [
            word for name, value in import_path().items() for word in ("env", f"{name}={value}")
        ]
        return BATCH_SCRIPT.format(
            options="\n".join(
                f"#SBATCH --{name}" + ("" if value is True else f"={shlex.quote(str(value))}")
                for name, value in options.items()
                if value is not None
            ),
            setup="\n".join(["", *wanted.setup]),
            cpus=wanted.cpus_per_task,
            log=shlex.quote(str(options["output"])),
            command=shlex.join(
                [*path, *SAFE_PYTHON, "-u", "-m", "resvar.sweeps.task", str(folder)]
            ),
        )


def _unsubmitted_runs(
    sweep: Sweep, dry_run: bool = False
) -> tuple[list[PlannedRun], list[FailedRun]]:
    """The runs to submit, and those that cannot be; after a line that counts the others.

    Args:
        dry_run: without Slurm's answer too, and past runs whose folder is taken.
    """
    found = standing_of(sweep, tolerant=dry_run)
    open_runs = found.open
    queued: set[str] = set()
    try:
        queued = runs_in_slurm(sweep.root, [run.name for run in open_runs])
    except SlurmError as error:
        if not dry_run:
            raise RunError(
                f"{error}, so which runs are queued already is not known; try again later."
            ) from error
        print_line(f"What is queued already is not known: {error}.")
    todo = [run for run in open_runs if run.name not in queued and not is_locked(run.folder)]
    others = {
        "diverged": len(found.diverged),
        "unusable": len(found.failed),
        "with Slurm": len(queued),
        "running elsewhere": len(open_runs) - len(queued) - len(todo),
    }
    print_counts(sweep, len(found.finished), others)
    if not dry_run:
        print_unusable(found.failed)
    return todo, found.failed


def _sbatch(submission: Submission, script: str) -> str:
    """Submit an array; its id.

    Raises:
        RefusedError: sbatch refuses the job, and why.
        RunError: Slurm cannot be reached, or its answer is not understood; the job may be in the
            queue nevertheless.
    """
    path = submission.folder / "submission.sh"
    write_text(path, script)
    try:
        answer = run_client(["sbatch", str(path)], timeout=SUBMIT_TIMEOUT)
    except SlurmError as error:
        reason = error.complaint or str(error)
        if not error.complaint or UNREACHABLE.search(reason):
            raise RunError(f"sbatch could not reach Slurm ({reason}); try again.") from error
        hint = NO_GPUS if "generic resource" in reason else ""
        raise RefusedError(f"sbatch refuses the job: {reason}{hint}.") from error
    job = re.search(r"job ([0-9]+)", answer)
    if job is None:
        raise RunError(f"sbatch's answer is not understood ({answer.strip()!r}).")
    path.rename(path.with_name(f"{job[1]}_submission.sh"))
    return job[1]


def _largest_array() -> int:
    """The number of tasks that the cluster allows in one array."""
    with suppress(SlurmError):
        match = re.search(r"MaxArraySize\s*=\s*(\d+)", run_client(["scontrol", "show", "config"]))
        if match and int(match[1]) > 0:
            return min(int(match[1]), LARGEST_ARRAY)
    return LARGEST_ARRAY
