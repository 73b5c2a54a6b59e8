"""The outcome of a finished run, compared bit for bit with another."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch

TIMINGS = {"images_per_second", "seconds"}


def differing(out: Path, reference: Path) -> list[str]:
    """The parts of the outcome that differ, bit for bit, and temporary files left over."""
    ours, theirs = outcome(out), outcome(reference)
    found = [what for what in theirs if ours[what] != theirs[what]]
    return found + [f"{path.name} is left over" for path in out.glob("*.tmp")]


def outcome(folder: Path) -> dict[str, object]:
    """Weights, momentum, metrics, … of a finished run, without timings and commit."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    momentum = {
        number: held["momentum_buffer"] for number, held in state["optimizer"]["state"].items()
    }
    assert momentum
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "predictions": (folder / "predictions.npy").read_bytes(),
        "weights": {name: bits(held) for name, held in state["model"].items()},
        "momentum": {number: bits(held) for number, held in momentum.items()},
        "iteration": state["iteration"],
        "metrics": [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows],
        "result": {k: v for k, v in result.items() if k not in {*TIMINGS, "commit", "commits"}},
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }


def bits(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), data.numpy().tobytes()
