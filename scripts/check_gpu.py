"""Check on a GPU what the tests cannot check without one, and print a verdict for each claim.

    python scripts/check_gpu.py [--depth 20] [--device cuda]

Each claim is checked in a separate process, since torch's global switches belong to a process.
Claims about time are checked last, one at a time. Exits with 0 if all hold, 1 if one does not, 2 if
there is no GPU. No dataset is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import numpy as np
import torch

from resvar.bench.contenders import Contender
from resvar.bench.turns import run_together, started_workers, take_turns
from resvar.config import Settings, resolve
from resvar.data.memory import MemoryEvalLoader, MemoryTrainLoader, Normalization
from resvar.data.splits import Splits
from resvar.training.capture import WARM_UPS
from resvar.training.checkpoint import digest
from resvar.training.execution import Execution
from resvar.training.machine import device_name
from resvar.training.trainer import Trainer

IMAGES = 1024
"""Synthetic: ten flat colours with noise, so that there is something to learn."""


def main() -> int:
    """Check the requested claims; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--claim", choices=CLAIMS, help="check only this one, in this process")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use, so nothing was checked.", file=sys.stderr)
        return 2
    if options.claim:
        return _here(options.claim, options.depth, torch.device(options.device))
    print(f"ResNet-{options.depth} on {device_name(torch.device(options.device))}", flush=True)
    command = [sys.executable, __file__, "--depth", str(options.depth), "--device", options.device]
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

    def holds(claim: str) -> bool:
        return not subprocess.run([*command, "--claim", claim], env=environment).returncode

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(holds, OF_BITS))
    found += map(holds, OF_TIME)
    print(f"{sum(found)} of {len(found)} claims hold")
    return 0 if all(found) else 1


def _here(claim: str, depth: int, device: torch.device) -> int:
    check = CLAIMS[claim]
    try:
        holds, evidence = check(depth, device)
    except Exception as error:  # a check that breaks fails its claim, not the others
        holds, evidence = False, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    print(f"{'holds' if holds else 'FAILS':6} {claim}: {evidence}", flush=True)
    return 0 if holds else 1


# --- the claims -----------------------------------------------------------------------------------

Verdict = tuple[bool, str]


def trains(depth: int, device: torch.device) -> Verdict:
    """The loss on ten colours falls by at least a quarter in 60 updates."""
    trainer = start(settings_of(depth), device)
    first, last = losses(trainer, 60)[:5], losses(trainer, 5)
    return median(last) < 0.75 * median(first), f"loss {median(first):.3f} → {median(last):.3f}"


def equals_cpu(depth: int, device: torch.device) -> Verdict:
    """Initial logits and the losses of three updates, in fp32, match those of the CPU."""
    settings = settings_of(
        depth, "precision=fp32", "deterministic=true", "lr=0.01", "kernels=plain"
    )
    there, here = start(settings, device), start(settings, torch.device("cpu"))
    found = []
    for trainer in (there, here):
        images, _ = trainer.splits.training.batch(0)
        trainer.network.train()
        with torch.no_grad():
            found.append(trainer.plan.forward(trainer.network, images[:64]).cpu())
    logits = float((found[0] - found[1]).abs().max() / found[1].abs().max())
    pairs = zip(losses(there, 3), losses(here, 3), strict=True)
    loss = max(abs(a - b) / b for a, b in pairs)
    return logits < 1e-3 and loss < 1e-3, f"relative: logits {logits:.1e}, losses {loss:.1e}"


def repeats(depth: int, device: torch.device) -> Verdict:
    """With deterministic=true, two runs have the same bits."""
    settings = settings_of(depth, "deterministic=true")
    return _same([run_to(start(settings, device), 12) for _ in range(2)])


def captures(depth: int, device: torch.device) -> Verdict:
    """They also have the bits of a run without a CUDA graph."""
    asked = ("capture=iteration", "capture=none")
    settings = [settings_of(depth, "deterministic=true", capture) for capture in asked]
    return _same([run_to(start(each, device), 12) for each in settings])


def resumes(depth: int, device: torch.device) -> Verdict:
    """A run resumed from a checkpoint at iteration 5 ends with the same bits."""
    settings = settings_of(depth, "deterministic=true")
    whole = run_to(start(settings, device), 12)
    begun = start(settings, device)
    run_to(begun, 5)
    state = begun.state()
    gone_on = start(settings, device)
    gone_on.restore(state)
    return _same([whole, run_to(gone_on, 12)])


def repeats_compiled(depth: int, device: torch.device) -> Verdict:
    """Two runs also have the same bits with compile=unit."""
    settings = settings_of(depth, "deterministic=true", "compile=unit")
    return _same([run_to(start(settings, device), 12) for _ in range(2)])


def queues_only(depth: int, device: torch.device, overrides: tuple[str, ...] = ()) -> Verdict:
    """Within an epoch an update never synchronises: torch would raise an error."""
    trainer = start(settings_of(depth, *overrides), device)
    run_to(trainer, WARM_UPS + 1)
    with no_waiting():
        run_to(trainer, 7)  # of the eight batches of the first epoch
    return True, "three updates under torch.cuda.set_sync_debug_mode('error')"


def capturing_pays(depth: int, device: torch.device) -> Verdict:
    """An update from a CUDA graph is at least a tenth faster than without one."""
    return _faster(depth, device, (), ("capture=none",))


def compiling_pays(depth: int, device: torch.device) -> Verdict:
    """compile=unit is at least a tenth faster, measured in turns, both with CUDA graphs."""
    return _faster(depth, device, ("compile=unit",), ())


def _faster(
    depth: int, device: torch.device, new: tuple[str, ...], old: tuple[str, ...]
) -> Verdict:
    group = [Contender(" ".join(how) or "default", settings_of(depth, *how)) for how in (old, new)]
    (before, after), _ = take_turns(group, str(device), None, 5, 1.0, _quiet, details=False)
    ratio = after.ratio(before)
    return ratio > 1.1, (
        f"{before.speed:,.0f} → {after.speed:,.0f} images/s, {ratio:.2f} × (median of 5 turns)"
    )


def packing_pays(depth: int, device: torch.device) -> Verdict:
    """Two runs that share the GPU are faster together than one alone (`--per-gpu 2`); this needs
    NVIDIA's multi-process service (`nvidia-cuda-mps-control -d`)."""
    settings = settings_of(depth)
    crowd = [Contender(f"run {n}", settings) for n in range(2)]
    with started_workers(crowd, str(device)) as workers:
        for worker in workers:
            worker.answer()
            worker.ask(do="warm up")
        run_together(workers, 10)
        alone, both = [], []
        for _ in range(5):
            alone.append(50 * settings.batch_size / run_together(workers[:1], 50))
            both.append(100 * settings.batch_size / run_together(workers, 50))
    ratio = median(both) / median(alone)
    return ratio > 1, f"{median(alone):,.0f} → {median(both):,.0f} images/s in total, {ratio:.2f} ×"


OF_BITS: dict[str, Callable[[int, torch.device], Verdict]] = {
    "training works": trains,
    "equals the processor": equals_cpu,
    "repeats bit for bit": repeats,
    "captured: the same bits": captures,
    "resumes bit for bit": resumes,
    "repeats bit for bit, compiled": repeats_compiled,
    "waits for nothing": queues_only,
    "waits for nothing, not captured": partial(queues_only, overrides=("capture=none",)),
    "waits for nothing, compiled": partial(queues_only, overrides=("compile=unit",)),
}
OF_TIME: dict[str, Callable[[int, torch.device], Verdict]] = {
    "capturing is faster": capturing_pays,
    "compile=unit is faster": compiling_pays,
    "two runs on a GPU do more than one": packing_pays,
}
CLAIMS = OF_BITS | OF_TIME


# --- with what ------------------------------------------------------------------------------------


def settings_of(depth: int, *overrides: str) -> Settings:
    return resolve(
        options={"variant": "full-preact", "depth": depth},
        overrides=["warmup_iterations=0", "lr=0.05", *overrides],
    )


def start(settings: Settings, device: torch.device) -> Trainer:
    """A run on images of ten colours, in memory."""
    plan = Execution.resolve(settings, device)
    plan.prepare_process()
    random = np.random.default_rng(0)
    labels = np.arange(IMAGES) % 10
    colours = random.integers(40, 216, (10, 1, 1, 3))
    noise = random.normal(0, 20, (IMAGES, 32, 32, 3))
    pixels = (colours[labels] + noise).clip(0, 255).astype(np.uint8)
    normalization = Normalization.measure(pixels, settings.normalize)
    batches = MemoryTrainLoader(
        pixels, labels, normalization, settings.batch_size, settings.seed, device=device
    )
    test = MemoryEvalLoader(pixels[:100], labels[:100], normalization, device)
    return Trainer(plan, Splits(batches, test, None))


def run_to(trainer: Trainer, iteration: int) -> Trainer:
    while trainer.iteration < iteration:
        trainer.updater(*trainer.splits.training.batch(trainer.iteration))
    return trainer


def losses(trainer: Trainer, updates: int) -> list[float]:
    """The mean loss of each of the next `updates` batches."""
    found, before = [], float(trainer.updater.meters.loss)
    for _ in range(updates):
        trainer.updater(*trainer.splits.training.batch(trainer.iteration))
        after = float(trainer.updater.meters.loss)
        found.append((after - before) / trainer.settings.batch_size)
        before = after
    return found


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _same(trainers: list[Trainer]) -> Verdict:
    digests = [
        digest({"model": t.network.state_dict(), "optimizer": t.updater.optimizer.state_dict()})
        for t in trainers
    ]
    same = digests[0] == digests[1]
    return same, f"weights and momenta after {trainers[0].iteration} updates, SHA-256"


def _quiet(text: str) -> None:
    del text


if __name__ == "__main__":
    sys.exit(main())
