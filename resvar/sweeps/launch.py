"""`resvar sweep` on this machine: say what will be done and how long it takes, then do it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path

from rich.console import Console

from resvar.config import Settings
from resvar.console import console_for_output, duration
from resvar.data.cifar import DATASETS, problems
from resvar.errors import UserError
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.sweeps.local import (
    Slot,
    has_diverged,
    is_finished,
    launch,
    make_slots,
    report_failures,
)
from resvar.training.events import require_tensorboard


def run_here(
    sweep: Sweep, data: Path, device: str, jobs: int | None, per_gpu: int, dry_run: bool
) -> None:
    """Plan, estimate, launch, and report failures.

    Raises:
        UserError: the data is missing, or a run's folder holds other settings.
        RunError: some runs failed.
        Stopped: asked to stop.
    """
    console = console_for_output()
    open_runs = [run for run in sweep.runs if not is_finished(run)]
    todo = [run for run in open_runs if not has_diverged(run)]
    done, hopeless = len(sweep.runs) - len(open_runs), len(open_runs) - len(todo)
    slots = make_slots(jobs, per_gpu, device, len(sweep.runs))
    also = f", {hopeless} diverged" if hopeless else ""
    _say(console, f"{len(sweep.runs)} runs in {sweep.root}, {done} of them finished already{also}.")
    if dry_run:
        for run in todo:
            _say(console, f"  resvar train {' '.join(run.arguments)} --out {run.folder}")
        return
    if not todo:
        return
    for run in todo:
        require_tensorboard(run.settings)
    for name in sorted({run.settings.dataset for run in todo}):
        if name in DATASETS and (found := problems(DATASETS[name], data)):
            raise UserError(
                f"{found[0].rstrip('.')}; get the data with `resvar data --dir {data}` or name its "
                "folder with --data DIR or RESVAR_DATA."
            )
    where = f"{len(slots)} at a time ({slots[0].threads} thread{'s' * (slots[0].threads > 1)} each)"
    _say(console, f"{len(todo)} to do, {where}. Measuring how long that takes …")
    _say(
        console,
        f"About {duration(estimate(todo, slots))} in all. Ctrl-C stops; typed again it goes on.",
    )
    outcome = launch(sweep, slots, data, console)
    report_failures(outcome, console)
    also = f"; {len(outcome.diverged)} of them diverged" if outcome.diverged else ""
    _say(
        console, f"All {len(sweep.runs)} runs are finished{also}. Next: resvar report {sweep.root}"
    )


def estimate(todo: Sequence[PlannedRun], slots: Sequence[Slot]) -> float:
    """Seconds that the runs will take, from a few real updates of each depth on made-up images.

    Assumes that slots do not slow each other down, and that a forward pass is a third of an update.
    Measured in a process of its own, so that the sweep's stays small.
    """
    settings = [run.settings for run in todo]
    with ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),
        initializer=_belong_to_parent,
    ) as pool:
        seconds: float = pool.submit(_seconds_one_by_one, settings, slots[0]).result()
    return seconds / len(slots)


def _belong_to_parent() -> None:
    """In the measuring process: leave Ctrl-C to the sweep, and end when the sweep does.

    A pool's process would else wait for ever for work from a parent that was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _seconds_one_by_one(todo: Sequence[Settings], slot: Slot) -> float:
    """Seconds that the runs take one after the other in a slot like this."""
    import torch

    from resvar.training.fusing import choose_kernels
    from resvar.training.loop import measure_throughput
    from resvar.training.machine import choose_device, choose_precision

    device = choose_device(slot.device)
    torch.set_num_threads(slot.threads)
    speeds: dict[tuple[object, ...], float] = {}
    total = 0.0
    for s in todo:
        precision = choose_precision(s.precision, device)
        s = s.model_copy(update={"precision": precision})
        kernels = choose_kernels(s, device)
        key = (s.architecture, s.batch_size, s.bn_batch_size, precision, kernels)
        if key not in speeds:
            known = {"kernels": kernels, "num_classes": s.num_classes or 1000}
            speeds[key] = measure_throughput(s.model_copy(update=known), device)
        total += s.work / speeds[key]
    return total


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
