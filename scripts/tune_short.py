"""The search behind the protocol `short`: settings compared on held-out training images.

    python scripts/tune_short.py --out runs/short-search              # the search, on full-preact
    python scripts/tune_short.py --both --out runs/short-search-both  # is it best for V1, too?

Trains ResNet-20 for ten epochs of 45,000 training images with each of the settings below, one seed
each, and sorts them by the error on the 5,000 held-out images. The test set is not used. With
`--both`, original and full-preact are trained with each setting of a grid around the chosen one,
so that the two have the same budget. Finished runs are not trained again, so the records in
results/ give the tables immediately; a run takes six minutes to an hour on one CPU core. More
settings of Muon were compared on a GPU: docs/runs/short-gpu.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

IMAGES, EPOCHS, HELD_OUT = 50_000, 10, 5_000

SEARCH: dict[str, dict[str, object]] = {
    "lr0.3-wd5e-4": {},
    "lr0.3-wd2e-4-nesterov-pad2": {"weight_decay": 2e-4, "nesterov": True, "crop_padding": 2},
    "lr0.3-wd5e-4-nesterov-pad2": {"nesterov": True, "crop_padding": 2},
    "lr0.2-wd2e-4-nesterov-bn64": {
        "lr": 0.2, "weight_decay": 2e-4, "nesterov": True, "bn_batch_size": 64,
    },
    "lr0.2-wd5e-4-nesterov-pad2-batch64": {
        "lr": 0.2, "nesterov": True, "crop_padding": 2, "batch_size": 64, "bn_batch_size": 64,
    },
    "lr0.3-wd5e-4-nesterov-pad1": {"nesterov": True, "crop_padding": 1},
    "lr0.5-wd5e-4-nesterov-pad2": {"lr": 0.5, "nesterov": True, "crop_padding": 2},
    "muon0.15-decay0.02-peak0.15-pad2": {
        "optimizer": "muon", "muon_lr": 0.15, "muon_decay": 0.02, "peak_at": 0.15,
        "nesterov": True, "crop_padding": 2,
    },
}  # fmt: skip
"""Folder → the settings that differ from `BASE`, in the order in which they were tried."""

GRID: dict[str, dict[str, object]] = {
    f"muon{rate}-peak{peak}": SEARCH["muon0.15-decay0.02-peak0.15-pad2"]
    | {"muon_lr": rate, "peak_at": peak}
    for rate, peak in product((0.08, 0.15, 0.3), (0.15, 0.3))
}
"""The same for `--both`: Muon's peak rate, and where in training the peak is."""

BASE: dict[str, object] = {
    "schedule": "one-cycle", "lr": 0.3, "peak_at": 0.3, "warmup_lr": 0.01,
    "optimizer": "sgd", "muon_lr": 0.02, "muon_decay": 0.0, "momentum": 0.9, "nesterov": False,
    "weight_decay": 5e-4, "weight_decay_on": "weights",
    "normalize": "pixel-mean", "crop_padding": 4, "flip": True,
    "batch_size": 128, "bn_batch_size": 128,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default: the records in results/")
    parser.add_argument("--both", action="store_true", help="a grid for original and full-preact")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    if asked.both:
        out = asked.out or Path("results/short-search-both")
        runs = [(variant, out / variant, GRID) for variant in ("original", "full-preact")]
    else:
        runs = [("full-preact", asked.out or Path("results/short-search"), SEARCH)]
    for variant, folder, settings in runs:
        Console().print(compare(variant, folder, settings, asked.device))


def compare(variant: str, out: Path, search: dict[str, dict[str, object]], device: str) -> Table:
    """Train what is missing, and tabulate all by held-out error."""
    found = []
    for name, changes in search.items():
        if not (out / name / "result.json").exists():  # on any device
            subprocess.run(command(out / name, changes, device, variant), check=True)
        result = json.loads((out / name / "result.json").read_text(encoding="utf-8"))
        found.append((result["holdout_error"], name, result["train_loss"]))
    table = Table(
        Column("settings", overflow="fold"), "held-out error in %", "mean training loss",
        title=f"{variant}, ResNet-20",
    )  # fmt: skip
    for error, name, loss in sorted(found):
        table.add_row(name, f"{error:.2f}", f"{loss:.3f}")
    return table


def command(
    folder: Path, changes: dict[str, object], device: str, variant: str = "full-preact"
) -> list[str]:
    """The command line of one run, which is evaluated once, at its end."""
    values = BASE | changes
    iterations = math.ceil(EPOCHS * (IMAGES - HELD_OUT) / int(str(values["batch_size"])))
    values |= {"holdout": HELD_OUT, "iterations": iterations, "eval_every": iterations}
    sets = (("--set", f"{key}={json.dumps(value)}") for key, value in values.items())
    return [
        sys.executable, "-m", "resvar", "train", "--variant", variant, "--depth", "20",
        "--protocol", "short", "--device", device, "--out", str(folder),
        *(word for pair in sets for word in pair),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
