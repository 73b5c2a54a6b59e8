"""Make run directories that later versions must read: a finished, a begun and a diverged run.

    python -m tests.frozen.make tests/frozen/format-1

Run it once, when a format changes, into a new folder; existing folders never change. To be small,
the finished and the diverged run have no checkpoint, and those of the begun run are compressed,
with rounded weights and momenta (random digits do not compress). Beside the runs is the list of a
sweep.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from resvar import load_run
from resvar.export.description import Provenance
from resvar.export.safetensors_file import to_safetensors
from resvar.rundir import CHECKPOINT, PROBE, SNAPSHOTS, snapshot_path
from resvar.sweeps.grid import plan_sweep
from resvar.training.checkpoint import load, load_newest, save
from tests.support.commands import Commands, train
from tests.support.tiny import make_marked_cifar

END = "end.json"
"""Beside the begun run: its weights after it was resumed and finished."""

NOT_KEPT = ("checkpoint.pt", "checkpoint.previous.pt", "run.lock")
COARSE = 16
"""Weights are rounded to a sixteenth."""


def main(target: Path) -> None:
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        make_marked_cifar(here / "data")
        commands = Commands(here / "data")

        def run(out: Path, *more: str, **variables: str) -> int:
            return commands.run(*train("--out", str(out), *more), cwd=here, **variables).code

        assert run(here / "finished") == 0
        assert run(here / "diverged", "--set", "lr=1e30") == 1
        assert run(here / "begun", RESVAR_TEST_KILL="iteration:9") < 0
        round_off(here / "begun")
        for kind in ("finished", "begun", "diverged"):
            shutil.copytree(here / kind, target / kind, ignore=shutil.ignore_patterns(*NOT_KEPT))
        add_the_rest(commands, here / "begun", target)
        pack(here / "begun" / CHECKPOINT, target / "begun")
        assert run(here / "begun") == 0
        end = json.dumps(weights(here / "begun"), indent=2) + "\n"
        (target / END).write_text(end, encoding="utf-8")


def add_the_rest(commands: Commands, begun: Path, target: Path) -> None:
    """A snapshot, a probe, and the list of a sweep."""
    run, state = load_run(begun), load(begun / CHECKPOINT)
    path = snapshot_path(begun, state["iteration"])
    path.parent.mkdir()
    path.write_bytes(to_safetensors(run.model, Provenance(run.config, state["iteration"])))
    pack(path, target / begun.name / SNAPSHOTS)
    probed = commands.run(
        "probe", begun, "--at", "init", "--images", "8", "--device", "cpu", cwd=begun
    )
    assert probed.code == 0, probed
    shutil.copy(begun / PROBE, target / begun.name / PROBE)
    plan_sweep(None, {"variants": ["original"], "depths": [8]}, [], target).write_manifest()


def pack(path: Path, folder: Path) -> None:
    """Compress a file into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))


def unpack(folder: Path) -> None:
    """Undo `pack`, everywhere below a folder."""
    for packed in folder.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()


def round_off(run: Path) -> None:
    state = load_newest(run)
    assert state is not None
    held = [*state["model"].values()]
    held += [momentum["momentum_buffer"] for momentum in state["optimizer"]["state"].values()]
    for tensor in held:
        if tensor.ndim > 1:
            tensor.copy_((tensor * COARSE).round() / COARSE)
    save(run, state)


def weights(run: Path) -> dict[str, float]:
    """Name → mean of the absolute values, of each parameter and statistic."""
    model: dict[str, torch.Tensor] = load(run / CHECKPOINT)["model"]
    return {name: float(held.double().abs().mean()) for name, held in model.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
