"""What is left of a sweep in hours: from a throughput that is measured here, or given."""

from __future__ import annotations

import heapq
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import wait

from rich.console import Console
from rich.table import Table

from resvar.config import CIFAR_TEST_IMAGES, Settings
from resvar.console import duration
from resvar.errors import UserError
from resvar.rundir import read_progress
from resvar.sweeps.grid import PlannedRun
from resvar.sweeps.local import Slot

Network = tuple[object, ...]
"""What runs of one speed have in common: the architecture and the batch, not the ordering."""

DEVICES = (1, 8, 64)
"""Numbers of devices for which the estimate says how long the sweep takes; one per run besides."""


@dataclass(frozen=True)
class Throughput:
    """Training images per second of each network on one device, and where the figures are from."""

    speeds: Mapping[Network, float]
    source: str


@dataclass(frozen=True)
class Part:
    """The open runs of one network.

    Attributes:
        speed: training images per second.
        whole: seconds of a run from its beginning.
        left: seconds that are left of each run.
    """

    name: str
    speed: float
    whole: float
    left: tuple[float, ...]


@dataclass(frozen=True)
class Estimate:
    """What the open runs of a sweep take.

    An evaluated image counts as a third of a trained one, and runs are taken not to slow each
    other down. Loading the dataset, and checkpoints, are left out.

    Attributes:
        lengths: seconds that are left of each run, in the order in which they are started.
    """

    parts: tuple[Part, ...]
    lengths: tuple[float, ...]
    source: str

    @property
    def total(self) -> float:
        """Seconds on one device."""
        return sum(self.lengths)

    def by_the_clock(self, devices: int) -> float:
        """Seconds on so many devices: whichever is free takes the next run."""
        return makespan(self.lengths, devices)


def estimate(todo: Sequence[PlannedRun], throughput: Throughput) -> Estimate:
    """What these runs take; of one that has begun only what is left of it counts."""
    names: dict[Network, str] = {}
    speed, whole = {}, {}
    left: dict[Network, list[float]] = {}
    lengths = []
    for run in todo:
        network = network_of(run.settings)
        names[network] = f"ResNet-{run.settings.depth}"
        speed[network] = throughput.speeds[network]
        whole[network] = run.settings.work(CIFAR_TEST_IMAGES) / speed[network]
        progress = read_progress(run.folder)
        lengths.append(whole[network] * (1 - (progress.share if progress is not None else 0.0)))
        left.setdefault(network, []).append(lengths[-1])
    parts = tuple(
        Part(name, speed[network], whole[network], tuple(left[network]))
        for network, name in names.items()
    )
    return Estimate(parts, tuple(lengths), throughput.source)


def network_of(settings: Settings) -> Network:
    return settings.architecture, settings.batch_size, settings.bn_batch_size


def makespan(lengths: Sequence[float], devices: int) -> float:
    """Seconds until the last run ends, if whichever device is free takes the next of the list."""
    free = [0.0] * max(1, min(devices, len(lengths)))
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


# --- where the throughput is from -----------------------------------------------------------------


def given(text: str, todo: Sequence[PlannedRun]) -> Throughput:
    """`110=6000,164=3500`: depth and training images per second of one device.

    Raises:
        UserError: that is not how it is written, or a depth of an open run is missing.
    """
    option = f"--images-per-second {text}"
    by_depth: dict[int, float] = {}
    for word in text.split(","):
        depth, _, speed = word.partition("=")
        try:
            by_depth[int(depth)] = float(speed)
        except ValueError:
            raise UserError(
                f"{option}: write it as DEPTH=N[,…], such as 110=240,164=160."
            ) from None
    if wrong := [depth for depth, speed in by_depth.items() if not 0 < speed < math.inf]:
        raise UserError(f"{option}: at depth {wrong[0]} the number must be above 0.")
    depths = {run.settings.depth for run in todo}
    if missing := sorted(depths - by_depth.keys()):
        raise UserError(
            f"{option}: depth {missing[0]} is missing; `resvar bench --depth {missing[0]}` on the "
            "device measures it."
        )
    speeds = {network_of(run.settings): by_depth[run.settings.depth] for run in todo}
    return Throughput(speeds, "Not measured here: images per second as --images-per-second says.")


def measure(todo: Sequence[PlannedRun], slot: Slot) -> Throughput:
    """A few real updates of each network on made-up images, in a slot like this.

    In a process of its own, so that the sweep's stays small.
    """
    kinds = {network_of(run.settings): run.settings for run in todo}
    with ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),
        initializer=_belong_to_parent,
    ) as pool:
        speeds, device = pool.submit(_measure, list(kinds.values()), slot).result()
    source = f"Measured here on {device}, with nothing beside it."
    return Throughput(dict(zip(kinds, speeds, strict=True)), source)


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


def _measure(kinds: Sequence[Settings], slot: Slot) -> tuple[list[float], str]:
    """Images per second of each, and the device in words."""
    os.environ.update(slot.environment)  # before CUDA looks which GPU it may use
    import torch

    from resvar.training.execution import Execution
    from resvar.training.machine import choose_device, device_name
    from resvar.training.throughput import measure_throughput

    device = choose_device(slot.device)
    torch.set_num_threads(slot.threads)
    speeds = []
    for settings in kinds:
        known = settings.model_copy(update={"num_classes": settings.num_classes or 1000})
        plan = Execution.resolve(known, device)
        plan.prepare_process()
        speeds.append(measure_throughput(plan))
    return speeds, device_name(device)


# --- for people -----------------------------------------------------------------------------------


def print_estimate(found: Estimate, console: Console, slots: int | None) -> None:
    """The hours of each network and of all, and how long that is by the clock.

    Args:
        slots: of this machine; None where the figures are those of another one.
    """
    table = Table(
        "network", "open runs", "images/s", "hours a run", "hours left", box=None, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for part in found.parts:
        speed = f"{part.speed:,.0f}" if part.speed >= 10 else f"{part.speed:.1f}"
        hours = f"{part.whole / 3600:,.2f}", f"{sum(part.left) / 3600:,.2f}"
        table.add_row(part.name, f"{len(part.left)}", speed, *hours)
    table.add_row("in all", f"{len(found.lengths)}", "", "", f"{found.total / 3600:,.2f}")
    console.print(found.source, highlight=False, soft_wrap=True)
    console.print(table)
    runs = len(found.lengths)
    clocks = (
        [] if slots is None else [f"{duration(found.by_the_clock(slots))} in {slots} slots here"]
    )
    for devices in [*(count for count in DEVICES if count < runs), runs]:
        plural = "s" * (devices != 1)
        clocks.append(f"{duration(found.by_the_clock(devices))} on {devices} such device{plural}")
    console.print(f"By the clock: {', '.join(clocks)}.", highlight=False, soft_wrap=True)
    console.print(
        "Runs are taken not to slow each other down; checkpoints and loading are left out.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
