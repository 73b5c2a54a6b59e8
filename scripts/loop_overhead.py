"""The cost of the training loop beyond the mathematics.

    python scripts/loop_overhead.py --depth 110 --blocks 10 --iterations 5

Measures the same updates done in two ways, in turns in one process (A B A B …): the bare forward,
backward and optimizer step on one fixed batch, and resvar's own iteration with its data,
augmentation, sums and progress. Prints medians and the ratio of each pair of blocks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from resvar.config import resolve
from resvar.data.cifar import DATASETS, default_folder, load_cifar
from resvar.data.splits import Splits
from resvar.training.execution import Execution
from resvar.training.machine import choose_device, device_name
from resvar.training.progress import Progress
from resvar.training.trainer import Trainer
from resvar.training.writer import Writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="full-preact")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--protocol", default="paper")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of each kind")
    parser.add_argument("--iterations", type=int, default=10, help="updates per block")
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    asked = {key: getattr(options, key) for key in ("variant", "depth", "protocol")}
    # The bare update launches kernel by kernel and takes micro-batches in turn: so does ours here.
    settings = resolve(options=asked, overrides=["capture=none"])
    plan = Execution.resolve(settings, device)
    plan.prepare_process()
    images = load_cifar(DATASETS[settings.dataset], options.data)
    splits = Splits.prepare(images, plan.settings, device)
    with tempfile.TemporaryDirectory() as folder:
        console = Console(
            force_terminal=True, file=(Path(folder) / "screen").open("w", encoding="utf-8")
        )
        trainer, plain = (Trainer(plan, splits) for _ in range(2))
        with Writer(Path(folder), trainer, print) as writer, Progress(trainer, console) as progress:
            pairs = measure(
                options,
                device,
                bare=bare_update(plain),
                ours=lambda: trainer.step([writer, progress]),
            )
    show(options, device, pairs)  # outside: the progress bar captures what is printed


def bare_update(trainer: Trainer) -> Callable[[], None]:
    """Forward, backward and step on a fixed batch, in the same micro-batches."""
    images, labels = trainer.splits.training.batch(0)
    size, plan = trainer.settings.bn_batch_size, trainer.plan
    cuts = [slice(first, first + size) for first in range(0, len(labels), size)]
    parts = [(images[cut], labels[cut]) for cut in cuts]
    network, optimizer = trainer.network, trainer.updater.optimizer

    def update() -> None:
        for some_images, some_labels in parts:
            logits = plan.forward(network, some_images)
            torch.nn.functional.cross_entropy(logits, some_labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def measure(
    options: argparse.Namespace,
    device: torch.device,
    bare: Callable[[], None],
    ours: Callable[[], None],
) -> list[tuple[float, float]]:
    """Seconds per iteration in alternating blocks: (bare, ours) for each pair."""

    def block(update: Callable[[], None]) -> float:
        begun = time.perf_counter()
        for _ in range(options.iterations):
            update()
        float(torch.zeros((), device=device))  # wait for the device
        return (time.perf_counter() - begun) / int(options.iterations)

    block(bare), block(ours)
    return [(block(bare), block(ours)) for _ in range(options.blocks)]


def show(
    options: argparse.Namespace, device: torch.device, pairs: list[tuple[float, float]]
) -> None:
    """Print medians, ranges, and the ratio pair by pair."""
    ratios = [b / a for a, b in pairs]
    print(f"{options.variant}-{options.depth}, protocol {options.protocol}, {device_name(device)}")
    for name, times in zip(("bare", "resvar"), zip(*pairs, strict=True), strict=True):
        low, middle, high = min(times), statistics.median(times), max(times)
        print(
            f"{name:>7}: {1e3 * middle:8.2f} ms per iteration ({1e3 * low:.2f} to {1e3 * high:.2f})"
        )
    print(
        f"  ratio: {statistics.median(ratios):8.4f} (median of {len(ratios)} pairs, "
        f"{min(ratios):.4f} to {max(ratios):.4f}); the overhead of the loop is "
        f"{100 * (statistics.median(ratios) - 1):.1f} %"
    )


if __name__ == "__main__":
    main()
