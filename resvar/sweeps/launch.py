"""`resvar sweep` on this machine: print the plan and how long it takes, then carry it out."""

from __future__ import annotations

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
) -> None:
    """Plan, estimate, train, and report failures.

    Args:
        speeds: the value of `--images-per-second`; None: measure.

    Raises:
        UserError: the data is missing, a directory contains another run, torchrun started
            this process, or its environment names an impossible sweep.
        RunError: some runs failed.
        Stopped: Ctrl-C or SIGTERM.
    """
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("a sweep starts its processes itself: leave torchrun out.")
    sweep_process()  # before anything is written
    slots = make_slots(jobs, per_gpu, device, len(sweep.runs))
    if dry_run:
        show_plan(sweep, data, device)
        return
    sweep.require_possible()
    found = _standing(sweep)
    todo = found.open
    if todo:
        require_inputs(todo, data)
        try:
            _announce(todo, slots, data, speeds)
        except KeyboardInterrupt:
            raise Stopped("stopped before any run was started.") from None
    elif not found.failed:
        return
    local = LocalSweep(sweep, slots, data)
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
    lines = [f"# {counts(sweep, len(found.finished), others)}"]
    lines += [pasteable_command(run, data, device) for run in found.open]
    lines += comments(sweep, found.failed)
    deliver("".join(f"{line}\n" for line in lines), None)


def _announce(
    todo: Sequence[PlannedRun], slots: Sequence[Slot], data: Path, speeds: str | None
) -> None:
    """Print how many runs there are to do, where, and how long they take.

    Raises:
        UserError: `speeds` is wrong.
    """
    given = None if speeds is None else given_throughput(speeds, todo)
    if advice := mps_advice(slots):
        print_line(advice)
    threads = pluralize(slots[0].threads, "thread")
    where = f"{len(todo)} to do, {len(slots)} at a time ({threads} each)."
    print_line(where if given else f"{where} Measuring how long that takes …")
    try:
        found = estimate(todo, given or measured_throughput(todo, slots), data)
        time = f"About {duration(found.by_the_clock(len(slots)))} in total"
    except RunError as error:
        time = f"The time is unknown: {str(error).rstrip('.')}"
    print_line(f"{time}. Ctrl-C stops the runs; rerun the command to resume.")


def estimate_here(
    sweep: Sweep,
    data: Path,
    device: str,
    jobs: int | None,
    per_gpu: int | None,
    speeds: str | None,
) -> None:
    """Print the work that is left of a sweep, in device hours and wall time; start nothing.

    Args:
        data: the folder of the dataset; it need not exist.
        speeds: the value of `--images-per-second`; None: measure.

    Raises:
        UserError: a directory contains another run, or `speeds` is wrong.
    """
    require_positive(jobs, per_gpu)
    sweep.require_possible()
    if not (todo := _standing(sweep).open):
        return
    if speeds is not None:
        throughput = given_throughput(speeds, todo, per_gpu or 1)
        own = {} if jobs is None else {jobs: f"with {pluralize(jobs, 'run')} at a time"}
    else:
        slots = make_slots(jobs, per_gpu, device, len(todo))
        throughput = measured_throughput(todo, slots)
        own = {len(slots): f"in {pluralize(len(slots), 'slot')} here"}
    print_estimate(estimate(todo, throughput, data), own)


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
    print_line(counts(sweep, finished, others))


def counts(sweep: Sweep, finished: int, others: Mapping[str, int]) -> str:
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
