"""The state of runs submitted to Slurm: queued, requeued, running, or failed with their task.

Run directories take precedence: a result, a held lock and a divergence count as they do elsewhere.
Slurm is asked once, about the other submitted runs. A task that Slurm no longer knows, and that did
not note an orderly end, died, and its runs have failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from resvar.reports.records import UNREAD, Record, RunState
from resvar.sweeps.submission import (
    QueuedTask,
    SlurmError,
    Submission,
    TaskKey,
    latest_tasks,
    query_queue,
    read_note,
)

SETTLED = (RunState.DONE, *UNREAD)

ORDERLY = ("stopped", "requeued", "ended")
"""The last note of a task that did not die; its runs have recorded their own state."""


def with_queue(folder: Path, records: Sequence[Record]) -> tuple[list[Record], str]:
    """The records with their state in Slurm, and a sentence if Slurm does not answer.

    Raises:
        UserError: the record of a submission is damaged.
    """
    known = {folder / run: place for run, place in latest_tasks(folder).items()}
    submitted = {
        record.folder: known[record.folder]
        for record in records
        if record.state not in SETTLED and record.folder in known
    }
    try:
        queue = query_queue({submission.name for submission, _ in submitted.values()})
    except SlurmError as error:
        return list(records), f"What Slurm still has queued is not known: {error}."
    return [
        judged(record, *submitted[record.folder], queue) if record.folder in submitted else record
        for record in records
    ], ""


def judged(
    record: Record, submission: Submission, index: int, queue: Mapping[TaskKey, QueuedTask]
) -> Record:
    """The record of a submitted run, with the state of its task in Slurm."""
    if record.state is RunState.RUNNING or record.diverged:
        return record
    task = queue.get((submission.name, index))
    if task is None or task.ended:
        return _without_task(record, submission, index, task)
    begun = read_note(submission.note_path(index)) is not None
    if record.state is RunState.FAILED and begun:  # this task does not try it again
        return record
    if task.pending:
        state = RunState.REQUEUED if task.restarts else RunState.QUEUED
        return replace(record, state=state, message="" if task.reason == "None" else task.reason)
    where = f"on {task.node}" if task.node else ""
    return replace(record, state=RunState.RUNNING, message=where)


def _without_task(
    record: Record, submission: Submission, index: int, task: QueuedTask | None
) -> Record:
    """The record of an unfinished run whose task has ended or was never submitted."""
    if record.state is RunState.FAILED:
        return record
    said, log = read_note(submission.note_path(index)), submission.log(index)
    if said is not None and said.get("state") in ORDERLY:
        return record
    if said is None and log is None:  # it never began
        word = "cancelled in Slurm's queue" if submission.job else "not submitted"
        return replace(record, message=word)
    job = f"{submission.job}_{index}" if submission.job else submission.name
    how = f" ({task.state})" if task is not None else ""
    where = f" on {said['node']}" if said is not None and "node" in said else ""
    printed = f"; see {log}" if log is not None else ""
    message = f"its Slurm task {job} died{where}{how}{printed}"
    return replace(record, state=RunState.FAILED, message=message)
