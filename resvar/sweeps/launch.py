"""`resvar sweep` on this machine: print the plan and how long it takes, then carry it out."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from resvar.console import deliver, duration, pluralize, print_line
from resvar.data.cifar import DATASETS, find_problems
from resvar.errors import RunError, Stopped, UserError
from resvar.sweeps.estimate import (
    estimate,
    given_throughput,
    measured_throughput,
    print_estimate,
)
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.sweeps.limit import TimeLimit
from resvar.sweeps.local import LocalSweep
from resvar.sweeps.processes import FailedRun, Standing, standing_of
from resvar.sweeps.slots import Slot, make_slots, mps_advice, require_positive
from resvar.training.events import require_trackers
from resvar.training.stop import sweep_process


def run_here(
    sweep: Sweep,
    data: Path,
    device: str,
    jobs: int | None,
    per_gpu: int | None,
    dry_run: bool,
    speeds: str | None = None,
    limit: TimeLimit | None = None,
) -> None:
    """Plan, estimate, train, and report failures.

    Args:
        speeds: the value of `--images-per-second`; None: measure, unless the time is limited.
        limit: of the time; None: none.

    Raises:
        UserError: the data is missing, a directory contains another run, torchrun started
            this process, or its environment names an impossible sweep.
        RunError: some runs failed.
        Stopped: Ctrl-C, SIGTERM, or the time is up.
    """
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("a sweep starts its processes itself: leave torchrun out.")
    sweep_process()  # before anything is written
    slots = make_slots(jobs, per_gpu, device, len(sweep.runs))
    if dry_run:
        show_plan(sweep, data, device)
        return
    sweep.require_possible()
    limit = limit or TimeLimit()
    limit.require_useful(sweep.runs)
    found = _standing(sweep)
    todo = found.open
    if todo:
        require_inputs(todo, data)
        try:
            _announce(todo, slots, data, speeds, limit.seconds)
        except KeyboardInterrupt:
            raise Stopped("stopped before any run was started.") from None
    elif not found.failed:
        return
    local = LocalSweep(sweep, slots, data, limit)
    local.run()
    local.report()
    diverged = f"; {len(local.diverged)} of them diverged" if local.diverged else ""
    print_line(
        f"All {len(sweep.runs)} runs are finished{diverged}. Next: resvar report {sweep.root}"
    )


def show_plan(sweep: Sweep, data: Path, device: str) -> None:
    """Print the open runs as a shell script; everything else is a comment."""
    found = standing_of(sweep, tolerant=True)
    others = {"diverged": len(found.diverged), "unusable": len(found.failed)}
    lines = [f"# {run_counts(sweep, len(found.finished), others)}"]
    lines += [pasteable_command(run, data, device) for run in found.open]
    lines += comments(sweep, found.failed)
    deliver("".join(f"{line}\n" for line in lines), None)


def _announce(
    todo: Sequence[PlannedRun],
    slots: Sequence[Slot],
    data: Path,
    speeds: str | None,
    limit: float,
) -> None:
    """Print how many runs there are to do, where, how long they take, and when the sweep stops.

    Raises:
        UserError: `speeds` is wrong.
    """
    given = None if speeds is None else given_throughput(speeds, todo)
    if advice := mps_advice(slots):
        print_line(advice)
    where = f"{len(slots)} at a time ({pluralize(slots[0].threads, 'thread')} each)"
    measure = given is None and limit == math.inf
    print_line(f"{len(todo)} to do, {where}.{' Measuring how long that takes …' * measure}")
    words = ["Ctrl-C stops the runs; rerun the command to resume."]
    if limit < math.inf:
        words = [f"The sweep stops within {duration(limit)}; rerun the command to resume."]
    if given is not None or measure:
        try:
            found = estimate(todo, given or measured_throughput(todo, slots), data)
        except RunError as error:
            words.insert(0, f"The time is unknown: {str(error).rstrip('.')}.")
        else:
            total = duration(found.by_the_clock(len(slots)))
            count = pluralize(found.finished_within(limit, len(slots)), "run")
            within = f", {count} within {duration(limit)}" if limit < math.inf else ""
            words.insert(0, f"About {total} in total{within}.")
    print_line(" ".join(words))


def estimate_here(
    sweep: Sweep,
    data: Path,
    device: str,
    jobs: int | None,
    per_gpu: int | None,
    speeds: str | None,
    limit: TimeLimit,
) -> None:
    """Print the work that is left of a sweep, in device hours and wall time; start nothing.

    Args:
        data: the folder of the dataset; it need not exist.
        speeds: the value of `--images-per-second`; None: measure.
        limit: the time for which to tell how many runs finish.

    Raises:
        UserError: a directory contains another run, `speeds` is wrong, or the time is too short.
    """
    require_positive(jobs, per_gpu)
    sweep.require_possible()
    limit.require_useful(sweep.runs)
    if not (todo := _standing(sweep).open):
        return
    if speeds is not None:
        throughput = given_throughput(speeds, todo, per_gpu or 1)
        own = {} if jobs is None else {jobs: f"with {pluralize(jobs, 'run')} at a time"}
    else:
        slots = make_slots(jobs, per_gpu, device, len(todo))
        if advice := mps_advice(slots):
            print_line(advice)
        throughput = measured_throughput(todo, slots)
        own = {len(slots): f"in {pluralize(len(slots), 'slot')} here"}
    print_estimate(estimate(todo, throughput, data), own, limit.seconds)


# --- shared with the sweeps on Slurm --------------------------------------------------------------


def pasteable_command(run: PlannedRun, data: Path, device: str) -> str:
    """The command that makes the same run by itself, from any folder."""
    where = ["--data", str(data.absolute()), "--out", str(run.folder.absolute())]
    chosen = [] if device == "auto" else ["--device", device]
    return shlex.join(["resvar", "train", *run.arguments, *where, *chosen])


def comments(sweep: Sweep, failed: Sequence[FailedRun]) -> list[str]:
    """The runs that would be refused, as comments of a shell script."""
    lines = [f"# {failure.run.folder} cannot be used: {failure.reason}" for failure in failed]
    lines += [f"# impossible: {shlex.join(c.arguments)}: {c.reason}" for c in sweep.conflicts]
    if sweep.conflicts:
        lines.append("# The sweep starts only without impossible runs.")
    return lines


def require_inputs(todo: Sequence[PlannedRun], data: Path) -> None:
    """Check what the runs need, before anything is written.

    Raises:
        UserError: the data is missing or damaged, or a package that a run asks for.
    """
    for run in todo:
        require_trackers(run.settings)
    for name in sorted({run.settings.dataset for run in todo}):
        if name in DATASETS and (found := find_problems(DATASETS[name], data)):
            raise UserError(
                f"{found[0].rstrip('.')}; get the data with `resvar data --dir {data}` or name its "
                "folder with --data DIR or RESVAR_DATA."
            )


def print_counts(sweep: Sweep, finished: int, others: Mapping[str, int]) -> None:
    """Print `counts`."""
    print_line(run_counts(sweep, finished, others))


def run_counts(sweep: Sweep, finished: int, others: Mapping[str, int]) -> str:
    """One line: the number of runs, how many of them are finished, and the others by word."""
    words = [f"{finished} of them finished already"]
    words += [f"{count} {word}" for word, count in others.items() if count]
    return f"{pluralize(len(sweep.runs), 'run')} in {sweep.root}, {', '.join(words)}."


def print_unusable(failed: Sequence[FailedRun]) -> None:
    """A line for each run whose directory cannot be used, with the reason."""
    for failure in failed:
        print_line(f"  {failure.run.folder} cannot be used: {failure.reason}")


def _standing(sweep: Sweep) -> Standing:
    """The runs by their status, after a line that counts them."""
    found = standing_of(sweep)
    others = {"diverged": len(found.diverged), "unusable": len(found.failed)}
    print_counts(sweep, len(found.finished), others)
    print_unusable(found.failed)
    return found
