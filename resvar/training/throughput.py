"""Training on random images, to measure speed without a dataset."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from resvar.data.memory import MemoryTrainLoader, Normalization
from resvar.training.capture import WARM_UPS
from resvar.training.execution import Execution
from resvar.training.step import Updater


def made_up_loader(plan: Execution, count: int) -> MemoryTrainLoader:
    """Batches of `count` random images with the size and augmentation of the settings."""
    s = plan.settings
    side = s.image_size if s.dataset == "folder" else 32
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = random.integers(0, 10, count)
    normalization = Normalization.measure(pixels, s.normalize)
    return MemoryTrainLoader(
        pixels, labels, normalization, s.batch_size, 0, s.crop_padding, s.flip, plan.device
    )


def warm_up_updates(plan: Execution) -> int:
    """The first updates, which are slower than the rest."""
    return WARM_UPS + 1 if plan.captures else 2


def measure_throughput(
    plan: Execution, seconds: float = 4.0, ready: Callable[[], None] | None = None
) -> float:
    """Training images per second here: as many updates as fit in `seconds`, at least two.

    Args:
        ready: called after the first updates, which do not count.
    """
    loader, updater = made_up_loader(plan, plan.settings.batch_size), Updater(plan)
    first, times = warm_up_updates(plan), list[float]()
    while len(times) < first + 2 or sum(times[first:]) < seconds:
        if len(times) == first and ready is not None:
            ready()
        begun = time.monotonic()
        updater(*loader.batch(len(times)))
        float(updater.meters.loss)  # wait for the device
        times.append(time.monotonic() - begun)
    return plan.settings.batch_size * len(times[first:]) / sum(times[first:])
