"""What is left of a sweep in hours: from a throughput that is measured here, or given."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resvar.config import CIFAR_TEST_IMAGES, SAMPLE_TEST_IMAGES, Settings
from resvar.console import console_for_output, duration, per_second, pluralize
from resvar.errors import UserError
from resvar.rundir import read_progress
from resvar.sweeps.grid import PlannedRun
from resvar.sweeps.measure import measured_speeds
from resvar.sweeps.slots import Slot
from resvar.table import filled, left, print_table, right

Workload = tuple[object, ...]
"""What decides the speed of a run: its architecture and batch, but not its ordering."""

DEVICES = (1, 8, 64)
"""Numbers of devices for which an estimate gives the time; one device for each run is added."""


@dataclass(frozen=True)
class Throughput:
    """Training images per second of each workload on one device, and the source of the figures."""

    speeds: Mapping[Workload, float]
    source: str


@dataclass(frozen=True)
class WorkloadEstimate:
    """The open runs of one workload.

    Attributes:
        speed: training images per second.
        whole: seconds of a run from its beginning.
        left: seconds that are left of each run.
    """

    name: str
    speed: float
    whole: float
    left: list[float]


@dataclass(frozen=True)
class Estimate:
    """The time of the open runs of a sweep.

    An evaluated image counts as a third of a trained one, and runs are assumed not to slow each
    other down. Loading the dataset, and checkpoints, are left out.

    Attributes:
        lengths: seconds that are left of each run, in the order in which the runs are started.
    """

    parts: tuple[WorkloadEstimate, ...]
    lengths: tuple[float, ...]
    source: str

    @property
    def total(self) -> float:
        """Seconds on one device."""
        return sum(self.lengths)

    def by_the_clock(self, devices: int) -> float:
        """Seconds on several devices: a free device takes the next run."""
        return makespan(self.lengths, devices)


def estimate(
    todo: Sequence[PlannedRun], throughput: Throughput, data: Path | None = None
) -> Estimate:
    """The time that these runs take; of a run that has begun only the rest counts.

    Args:
        data: the folder of the dataset. A folder of images is searched for its evaluation images;
            without one, 10,000 are assumed, the number of CIFAR.
    """
    parts: dict[Workload, WorkloadEstimate] = {}
    lengths = []
    test_images = {name: _test_images(name, data) for name in {r.settings.dataset for r in todo}}
    for run in todo:
        settings, progress = run.settings, read_progress(run.folder)
        key = workload(settings)
        speed = throughput.speeds[key]
        images, done = test_images[settings.dataset], progress.iteration if progress else 0
        whole = settings.work(images) / speed
        lengths.append(settings.work(images, done) / speed)
        part = WorkloadEstimate(f"ResNet-{settings.depth}", speed, whole, [])
        parts.setdefault(key, part).left.append(lengths[-1])
    return Estimate(tuple(parts.values()), tuple(lengths), throughput.source)


def workload(settings: Settings) -> Workload:
    return settings.architecture, settings.batch_size, settings.bn_batch_size


def _test_images(dataset: str, data: Path | None) -> int:
    if dataset == "folder" and data is not None:
        from resvar.data.folder import EVALUATION
        from resvar.data.photos import list_images

        for name in EVALUATION:
            with suppress(UserError):
                return len(list_images(data / name).samples)
    return SAMPLE_TEST_IMAGES if dataset == "sample" else CIFAR_TEST_IMAGES


def makespan(lengths: Sequence[float], devices: int) -> float:
    """Seconds until the last run ends, if a free device always takes the next run of the list."""
    free = [0.0] * max(1, min(devices, len(lengths)))
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


# --- the throughput -----------------------------------------------------------------


def given_throughput(text: str, todo: Sequence[PlannedRun]) -> Throughput:
    """From `110=6000,164=3500`: depth and training images per second of one device.

    Raises:
        UserError: the text has another form, or lacks the depth of an open run.
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
    speeds = {workload(run.settings): by_depth[run.settings.depth] for run in todo}
    return Throughput(speeds, "Not measured here: images per second as --images-per-second says.")


def measured_throughput(todo: Sequence[PlannedRun], slot: Slot) -> Throughput:
    """From a few real updates of each workload on synthetic images, in the given slot.

    The updates run in a process of their own, so that the sweep's process stays small.

    Raises:
        UserError: the device cannot train one of the networks.
        RunError: that process ended without an answer.
    """
    kinds = {workload(run.settings): run.settings for run in todo}
    begun = {workload(run.settings) for run in todo if read_progress(run.folder) is not None}
    measured = [(settings, kind in begun) for kind, settings in kinds.items()]
    speeds, device = measured_speeds(measured, slot)
    source = f"Measured here on {device}, with nothing else running."
    return Throughput(dict(zip(kinds, speeds, strict=True)), source)


# --- the table ------------------------------------------------------------------------------------


def print_estimate(found: Estimate, slots: int | None) -> None:
    """Print the hours of each network, the total, and the wall time.

    Args:
        slots: the number of slots of this machine; None where the figures are another machine's.
    """
    in_all = ("total", None, None, found.total, len(found.lengths))
    rows = [(p.name, p.speed, p.whole, sum(p.left), len(p.left)) for p in found.parts]
    columns = (
        left("network", lambda row: row[0]),
        right("open runs", lambda row: row[4], ",d"),
        right("images/s", lambda row: row[1] and per_second(row[1])),
        right("time a run", lambda row: row[2] and duration(row[2])),
        right("time left", lambda row: duration(row[3])),
    )
    runs = len(found.lengths)
    counts = [*(count for count in DEVICES if count < runs), runs]
    times = [
        f"{duration(found.by_the_clock(count))} on {pluralize(count, 'such device')}"
        for count in counts
    ]
    if slots is not None:
        times.insert(0, f"{duration(found.by_the_clock(slots))} in {slots} slots here")
    console = console_for_output()
    console.print(found.source)
    print_table(filled("", columns, [*rows, in_all]), console)
    console.print(f"Wall time: {', '.join(times)}.")
    console.print(
        "It assumes that runs do not slow each other down; checkpoints and loading are left out."
    )
