"""The cost of a checkpoint, relative to the training between two of them.

    python scripts/checkpoint_cost.py --depth 110 --depth 164 --repeats 9

Writes checkpoints as a run does with its default settings: write the metrics; write, flush, read
back and verify the state; verify and rename the old one; flush the folder; record the progress.
Between checkpoints it trains a few iterations of the paper's protocol on synthetic images, and
computes how long `checkpoint_every` of them take. Prints medians with minimum and maximum, and the
share of the training time, which should stay below 1 %. The result depends on the disk: with --dir,
name a folder on the disk that your runs use.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from resvar.config import resolve
from resvar.data.cifar import Images
from resvar.data.splits import Splits
from resvar.rundir import CHECKPOINT
from resvar.settings import Settings
from resvar.training.execution import Execution
from resvar.training.machine import choose_device, device_name
from resvar.training.trainer import Trainer
from resvar.training.writer import Writer

ALLOWED = 0.01


def main() -> int:
    """Measure; returns 0 if every checkpoint costs at most 1 %."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="full-preact")
    parser.add_argument("--depth", type=int, action="append", help="default: 110 and 164")
    parser.add_argument("--repeats", type=int, default=9, help="checkpoints; default: 9")
    parser.add_argument(
        "--iterations", type=int, default=2, help="between two checkpoints; default: 2"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dir", type=Path, help="where to write; default: the temporary folder")
    asked = parser.parse_args()
    device, most = choose_device(asked.device), 0.0
    print(device_name(device))
    for depth in asked.depth or (110, 164):
        settings = resolve(options={"variant": asked.variant, "depth": depth})
        plan = Execution.resolve(settings, device)
        plan.prepare_process()
        with tempfile.TemporaryDirectory(dir=asked.dir) as folder:
            saves, iterations = measure(plan, Path(folder), asked)
            size = (Path(folder) / CHECKPOINT).stat().st_size
        between = settings.checkpoint_every * statistics.median(iterations)
        share = statistics.median(saves) / between
        most = max(most, share)
        print(
            f"{asked.variant}-{depth}, {plan}: a checkpoint of {size / 1e6:.1f} MB takes "
            f"{spread(saves)}, an iteration {spread(iterations)}; {settings.checkpoint_every} "
            f"iterations between two take {between:.1f} s, so checkpoints cost {share:.2%} of the "
            "training time",
            flush=True,
        )
    return 0 if most <= ALLOWED else 1


def measure(
    plan: Execution, folder: Path, asked: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Seconds of each checkpoint and of each iteration; the first two of both warm up."""
    trainer = Trainer(plan, made_up(plan.settings, plan.device))
    saves: list[float] = []
    iterations: list[float] = []
    with Writer(folder, trainer, print) as writer:
        for _ in range(asked.repeats + 2):
            for _ in range(asked.iterations):
                begun = time.perf_counter()
                trainer.step([writer])
                trainer.mean_loss()  # wait for the device
                iterations.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            trainer.check()
            writer.on_checkpoint(trainer)
            saves.append(time.perf_counter() - begun)
    return saves[2:], iterations[2:]


def made_up(settings: Settings, device: torch.device) -> Splits:
    """As much data as one batch needs."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (settings.batch_size, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, settings.batch_size)
    names = tuple(str(number) for number in range(10))
    return Splits.prepare(Images(pixels, labels, pixels, labels, names, ""), settings, device)


def spread(seconds: list[float]) -> str:
    low, middle, high = (1e3 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    sys.exit(main())
