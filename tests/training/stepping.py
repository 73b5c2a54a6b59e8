"""A trainer on a few synthetic images, and its updates outside a run."""

from __future__ import annotations

import numpy as np
import torch

from resvar.data.memory import MemoryEvalLoader, MemoryTrainLoader, Normalization
from resvar.data.splits import Splits
from resvar.training.distributed import SINGLE_PROCESS
from resvar.training.execution import Execution
from resvar.training.trainer import Trainer

CPU = torch.device("cpu")


def trainer_of(settings, splits, ranks=SINGLE_PROCESS):
    """A run at its beginning, on the processor."""
    return Trainer(Execution.resolve(settings, CPU, ranks), splits)


def start(settings, images=24):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    labels = random.integers(0, 10, images)
    normalization = Normalization.measure(pixels, "pixel-mean")
    batches = MemoryTrainLoader(
        pixels, labels, normalization, settings.batch_size, seed=0, padding=1
    )
    test = MemoryEvalLoader(pixels, labels, normalization)
    return trainer_of(settings, Splits(batches, test, None))


def run(trainer, updates):
    for _ in range(updates):
        trainer.step()
    return trainer
