"""`resvar sweep` on this machine: say what will be done and how long it takes, then do it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from resvar.console import console_for_output, duration, pluralize
from resvar.data.cifar import DATASETS, find_problems
from resvar.errors import UserError
from resvar.sweeps.estimate import estimate, given, measure, print_estimate
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.sweeps.local import (
    Slot,
    has_diverged,
    is_finished,
    launch,
    make_slots,
    report_failures,
    require_positive,
    taking_turns,
)
from resvar.training.events import require_tensorboard


def run_here(
    sweep: Sweep, data: Path, device: str, jobs: int | None, per_gpu: int | None, dry_run: bool
) -> None:
    """Plan, estimate, launch, and report failures.

    Raises:
        UserError: the data is missing, a run's folder holds other settings, or torchrun started
            this.
        RunError: some runs failed.
        Stopped: asked to stop.
    """
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("a sweep starts its processes itself: leave torchrun out.")
    console = console_for_output()
    slots = make_slots(jobs, per_gpu, device, len(sweep.runs))
    todo = _announced(sweep, console)
    if dry_run:
        for run in todo:
            say(console, f"  resvar train {' '.join(run.arguments)} --out {run.folder}")
        return
    if not todo:
        return
    require_inputs(todo, data)
    where = f"{len(slots)} at a time ({pluralize(slots[0].threads, 'thread')} each)"
    if taking_turns(slots):
        say(
            console,
            "Runs that share a GPU gain nothing unless NVIDIA's multi-process service is there: "
            "start it with `nvidia-cuda-mps-control -d`.",
        )
    say(console, f"{len(todo)} to do, {where}. Measuring how long that takes …")
    say(
        console,
        f"About {duration(seconds(todo, slots))} in all. Ctrl-C stops; typed again it goes on.",
    )
    outcome = launch(sweep, slots, data, console)
    report_failures(outcome, console)
    also = f"; {len(outcome.diverged)} of them diverged" if outcome.diverged else ""
    say(console, f"All {len(sweep.runs)} runs are finished{also}. Next: resvar report {sweep.root}")


def sort_runs(sweep: Sweep) -> tuple[list[PlannedRun], int, int]:
    """The runs that are still to do, how many are finished, and how many have diverged.

    Raises:
        UserError: a run's folder holds one with other settings.
    """
    unfinished = [run for run in sweep.runs if not is_finished(run)]
    todo = [run for run in unfinished if not has_diverged(run)]
    return todo, len(sweep.runs) - len(unfinished), len(unfinished) - len(todo)


def require_inputs(todo: Sequence[PlannedRun], data: Path) -> None:
    """Refuse before anything is written.

    Raises:
        UserError: the data is missing or damaged, or a package that a run asks for.
    """
    for run in todo:
        require_tensorboard(run.settings)
    for name in sorted({run.settings.dataset for run in todo}):
        if name in DATASETS and (found := find_problems(DATASETS[name], data)):
            raise UserError(
                f"{found[0].rstrip('.')}; get the data with `resvar data --dir {data}` or name its "
                "folder with --data DIR or RESVAR_DATA."
            )


def estimate_here(
    sweep: Sweep, device: str, jobs: int | None, per_gpu: int | None, speeds: str | None
) -> None:
    """Say what is left of a sweep in device hours and by the clock, and start nothing.

    Args:
        speeds: what `--images-per-second` says; None: measure.

    Raises:
        UserError: a run's folder holds other settings, or `speeds` is wrong.
    """
    console = console_for_output()
    require_positive(jobs, per_gpu)
    if not (todo := _announced(sweep, console)):
        return
    if speeds is not None:
        print_estimate(estimate(todo, given(speeds, todo)), console, None)
        return
    slots = make_slots(jobs, per_gpu, device, len(todo))
    print_estimate(estimate(todo, measure(todo, slots[0])), console, len(slots))


def seconds(todo: Sequence[PlannedRun], slots: Sequence[Slot]) -> float:
    """How long the runs will take by the clock."""
    return estimate(todo, measure(todo, slots[0])).by_the_clock(len(slots))


def _announced(sweep: Sweep, console: Console) -> list[PlannedRun]:
    """The runs that are still to do, after a line that counts the others."""
    todo, done, hopeless = sort_runs(sweep)
    also = f", {hopeless} diverged" if hopeless else ""
    runs = pluralize(len(sweep.runs), "run")
    say(console, f"{runs} in {sweep.root}, {done} of them finished already{also}.")
    return todo


def say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
