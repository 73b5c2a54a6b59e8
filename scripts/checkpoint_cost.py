"""What a checkpoint costs: seconds to check, write, flush, read back and verify one, as a run does.

    python scripts/checkpoint_cost.py --depth 110 --depth 164

Prints a line per depth. `scripts/simulate_sweep.py --checkpoint` takes the figure. Needs CIFAR-10.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from resvar.config import resolve
from resvar.data.cifar import DATASETS, Images, default_folder, load
from resvar.data.sets import Sets
from resvar.training.loop import Trainer
from resvar.training.machine import choose_device, choose_precision, describe, prepare
from resvar.training.progress import Watch
from resvar.training.run import CHECKPOINT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, action="append", help="110 and 164 unless given")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary")
    options = parser.parse_args()
    loaded = load(DATASETS["cifar10"], options.data)
    for depth in options.depth or [110, 164]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(depth, loaded, Path(folder), options)


def measure(depth: int, loaded: Images, folder: Path, options: argparse.Namespace) -> None:
    """Two saves to warm up, since the second is the first that keeps the one before it."""
    device = choose_device(options.device)
    settings = resolve(options={"variant": "full-preact", "depth": depth})
    known = {"precision": choose_precision(settings.precision, device)}
    settings = settings.model_copy(update=known)
    prepare(settings, device)
    trainer = Trainer.start(settings, Sets.prepare(loaded, settings, device), device)
    times = []
    console = Console(file=(folder / "screen").open("w"))
    with Watch(folder, trainer, console) as watch:
        trainer.step(watch)  # now the optimizer has its momenta
        for _ in range(options.repeats + 2):
            begun = time.monotonic()
            watch.save(trainer)
            times.append(time.monotonic() - begun)
    kept = times[2:]
    print(
        f"ResNet-{depth} on {describe(device)}: {statistics.median(kept):.3f} s a checkpoint, the "
        f"median of {len(kept)} ({min(kept):.3f} to {max(kept):.3f}); "
        f"{(folder / CHECKPOINT).stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
