"""What is left of a sweep in hours: from a throughput that is measured here, or given."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resvar.console import console_for_output, duration, per_second, pluralize
from resvar.errors import UserError
from resvar.rundir import read_progress
from resvar.settings import CIFAR_TEST_IMAGES, SAMPLE_TEST_IMAGES, Settings
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
    """Training images per second of a run of each workload.

    Attributes:
        source: of the figures, as a sentence.
        together: runs that share a device at these speeds.
    """

    speeds: Mapping[Workload, float]
    source: str
    together: int = 1


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

    An evaluated image counts as a third of a trained one, and runs on different devices are assumed
    not to slow each other down. Loading the dataset, and checkpoints, are left out.

    Attributes:
        lengths: seconds that are left of each run, in the order in which the runs are started.
    """

    parts: tuple[WorkloadEstimate, ...]
    lengths: tuple[float, ...]
    throughput: Throughput

    @property
    def total(self) -> float:
        """Seconds of all runs, one after the other."""
        return sum(self.lengths)

    def by_the_clock(self, at_a_time: int) -> float:
        """Seconds with several runs at a time."""
        return makespan(self.lengths, at_a_time)

    def finished_within(self, seconds: float, at_a_time: int) -> int:
        """The number of runs that end in this time."""
        return sum(end <= seconds for end in ends(self.lengths, at_a_time))


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
    return Estimate(tuple(parts.values()), tuple(lengths), throughput)


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


def makespan(lengths: Sequence[float], at_a_time: int) -> float:
    """Seconds until the last run ends."""
    return max(ends(lengths, at_a_time), default=0.0)


def ends(lengths: Sequence[float], at_a_time: int) -> list[float]:
    """Seconds until each run ends, if a free place always takes the next run of the list."""
    free = [0.0] * max(1, min(at_a_time, len(lengths)))
    found = []
    for length in lengths:
        found.append(free[0] + length)
        heapq.heapreplace(free, found[-1])
    return found


# --- the throughput -----------------------------------------------------------------


def given_throughput(text: str, todo: Sequence[PlannedRun], together: int = 1) -> Throughput:
    """From `110=6000,164=3500`: depth and training images per second of a run.

    Args:
        together: runs that share a device; the speed is that of a run beside the others.

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
    beside = f" of each of {together} runs on a device" if together > 1 else ""
    source = f"Not measured here: images per second{beside} as --images-per-second says."
    return Throughput(speeds, source, together)


def measured_throughput(todo: Sequence[PlannedRun], slots: Sequence[Slot]) -> Throughput:
    """From a few real updates of each workload on synthetic images, on the device of a slot.

    As many runs at a time as share that device: all of the processor, or of one GPU. They work in
    processes of their own, so that the sweep's process stays small.

    Raises:
        UserError: the device cannot train one of the networks.
        RunError: that process ended without an answer.
    """
    kinds = {workload(run.settings): run.settings for run in todo}
    begun = {workload(run.settings) for run in todo if read_progress(run.folder) is not None}
    measured = [(settings, kind in begun) for kind, settings in kinds.items()]
    together = min(sum(slot.gpu == slots[0].gpu for slot in slots), len(todo))
    speeds, device = measured_speeds(measured, slots[0], together)
    source = f"Measured here on {device}, {pluralize(together, 'run')} at a time."
    return Throughput(dict(zip(kinds, speeds, strict=True)), source, together)


# --- the table ------------------------------------------------------------------------------------


def print_estimate(found: Estimate, own: Mapping[int, str], limit: float = math.inf) -> None:
    """Print the hours of each network, the total, the wall time, and what ends before a limit.

    Args:
        limit: seconds.
        own: further numbers of runs at a time, in words; an example is `{2: "in 2 slots here"}`.
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
    runs, together = len(found.lengths), found.throughput.together
    devices = [*(count for count in DEVICES if count * together < runs), -(-runs // together)]
    such = {count * together: f"on {pluralize(count, 'such device')}" for count in devices}
    places = {**own, **{count: words for count, words in such.items() if count not in own}}
    times = [f"{duration(found.by_the_clock(count))} {words}" for count, words in places.items()]
    console = console_for_output()
    console.print(found.throughput.source)
    print_table(filled("", columns, [*rows, in_all]), console)
    if together > 1:
        spent = duration(found.total / together)
        console.print(f"A device trains {together} runs at a time: {spent} of device time.")
    console.print(f"Wall time: {', '.join(times)}.")
    if limit < math.inf:
        finished = {words: found.finished_within(limit, n) for n, words in places.items()}
        within = ", ".join(f"{count} {words}" for words, count in finished.items())
        others = "; a rerun resumes the others" if min(finished.values()) < runs else ""
        console.print(
            f"Finished within {duration(limit)}, of {pluralize(runs, 'run')}: {within}{others}."
        )
    console.print(
        "It assumes that runs on different devices do not slow each other down; checkpoints and "
        "loading are left out."
    )
