"""The claims of check_gpu.py about bits: what a small network computes on a GPU.

Each check runs in a process of its own, on images of ten colours, so no dataset is needed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from resvar.bench.profile import DeviceWork
from resvar.config import resolve
from resvar.data.memory import MemoryEvalLoader, MemoryTrainLoader, Normalization
from resvar.data.splits import Splits
from resvar.settings import Settings
from resvar.training.capture import WARM_UPS
from resvar.training.checkpoint import digest, load_newest, save
from resvar.training.evaluate import evaluate
from resvar.training.execution import Execution
from resvar.training.trainer import Trainer

IMAGES = 1024
"""Ten flat colours with noise, so that there is something to learn."""

Verdict = Literal["holds", "FAILS", "figure", "not checked"]
"""`figure`: one that is wanted on another card."""


@dataclass(frozen=True)
class Case:
    """What claims are checked with: the depth, the device, and overrides of every setting."""

    depth: int
    device: torch.device
    overrides: tuple[str, ...] = ()

    def settings(self, *overrides: str, variant: str = "full-preact") -> Settings:
        return resolve(
            options={"variant": variant, "depth": self.depth},
            overrides=["warmup_iterations=0", "lr=0.05", *self.overrides, *overrides],
        )

    def start(self, *overrides: str) -> Trainer:
        return start(self.settings(*overrides), self.device)


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Attributes:
        evidence: what was found, in one line.
        figures: by name; None where one could not be measured.
        kernels: of an update, the longest in all first.
        lines: to print below the evidence.
    """

    verdict: Verdict
    evidence: str
    figures: Mapping[str, float | None] = field(default_factory=dict)
    kernels: Sequence[DeviceWork] = ()
    lines: Sequence[str] = ()


def found(holds: bool, evidence: str, figures: Mapping[str, float] | None = None) -> Finding:
    return Finding("holds" if holds else "FAILS", evidence, figures or {})


# --- the claims -----------------------------------------------------------------------------------


def trains(case: Case, *how: str) -> Finding:
    """The loss on ten colours falls by at least a quarter in 60 updates."""
    trainer = case.start(*how)
    first, last = median(losses(trainer, 60)[:5]), median(losses(trainer, 5))
    evidence = f"loss {first:.3f} → {last:.3f}"
    return found(last < 0.75 * first, evidence, {"first_loss": first, "last_loss": last})


def equals_cpu(case: Case) -> Finding:
    """Initial logits and the losses of three updates, in fp32, match those of the CPU."""
    settings = case.settings("precision=fp32", "deterministic=true", "lr=0.01", "kernels=plain")
    there, here = start(settings, case.device), start(settings, torch.device("cpu"))
    first = relative(logits(there).cpu(), logits(here))
    pairs = zip(losses(there, 3), losses(here, 3), strict=True)
    loss = max(abs(a - b) / b for a, b in pairs)
    evidence = f"relative: logits {first:.1e}, losses {loss:.1e}"
    return found(first < 1e-3 and loss < 1e-3, evidence, {"logits": first, "losses": loss})


def equals_micro_batches(case: Case, variants: Sequence[str]) -> Finding:
    """In fp32, kernels=fused computes the function of micro-batches, and its gradient, to 1e-5."""
    worst: dict[str, float] = {}
    counted = True
    for variant in variants:
        plain, fused = (first_update(case, variant, kernels) for kernels in ("plain", "fused"))
        counted = counted and fused.batches == plain.batches
        for name, value in differences(fused, plain).items():
            worst[name] = max(value, worst.get(name, 0.0))
    close = all(worst[name] <= 1e-5 for name in ("logits", "gradient", "BN statistics"))
    # The gradient of the linear layer is the largest: an error in another may hide behind it.
    close = close and all(value <= 1e-4 for value in worst.values())
    evidence = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    count = "as" if counted else "NOT as"
    return found(close and counted, f"relative: {evidence}; {count} many batches counted", worst)


def repeats(case: Case, *how: str) -> Finding:
    """With deterministic=true, two runs have the same bits."""
    return same(bits(run_to(case.start("deterministic=true", *how), 12)) for _ in range(2))


def captures(case: Case, *how: str) -> Finding:
    """They also have the bits of a run without CUDA graphs, in training and in evaluations."""
    asked = ("capture=iteration", "capture=none")
    trainers = (case.start("deterministic=true", capture, *how) for capture in asked)
    return same(map(bits_with_evaluations, trainers), "weights, momenta and evaluations")


def resumes(case: Case, *how: str) -> Finding:
    """A run that another process resumes from its checkpoint ends with the same bits."""
    how = ("deterministic=true", *how)
    with tempfile.TemporaryDirectory() as folder, processes() as pool:
        whole = pool.submit(train_part, case, how, 12)
        pool.submit(train_part, case, how, 5, save_in=Path(folder)).result()
        rest = pool.submit(train_part, case, how, 12, resume_from=Path(folder))
        return same([whole.result(), rest.result()])


def queues_only(case: Case, *how: str) -> Finding:
    """Within an epoch an update never synchronises: torch would raise an error."""
    trainer = case.start(*how)
    run_to(trainer, WARM_UPS + 1)
    with no_waiting():
        run_to(trainer, 7)  # of the eight batches of the first epoch
    return found(True, "three updates under torch.cuda.set_sync_debug_mode('error')")


# --- with what ------------------------------------------------------------------------------------


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
    test = MemoryEvalLoader(pixels, labels, normalization, device, batch_size=100)
    return Trainer(plan, Splits(batches, test, None))


def run_to(trainer: Trainer, iteration: int) -> Trainer:
    while trainer.iteration < iteration:
        trainer.updater(*trainer.splits.training.batch(trainer.iteration))
    return trainer


def losses(trainer: Trainer, updates: int) -> list[float]:
    """The mean loss of each of the next `updates` batches."""
    means, before = [], float(trainer.updater.meters.loss)
    for _ in range(updates):
        run_to(trainer, trainer.iteration + 1)
        after = float(trainer.updater.meters.loss)
        means.append((after - before) / trainer.settings.batch_size)
        before = after
    return means


@torch.no_grad()
def logits(trainer: Trainer) -> Tensor:
    """Those of the first batch in training mode, [batch size, classes]; moves BN's statistics."""
    images, _ = trainer.splits.training.batch(0)
    parts = torch.split(images, trainer.plan.images_at_once)
    return torch.cat([trainer.plan.forward(trainer.network, part) for part in parts])


@dataclass(frozen=True)
class FirstUpdate:
    """What the first update computes. Gradients by kind of module; BN's statistics in turn a mean
    and a standard deviation, each [channels]; the batches that each BN has counted."""

    logits: Tensor
    gradients: dict[str, Tensor]
    statistics: list[Tensor]
    batches: list[int]


def first_update(case: Case, variant: str, kernels: str) -> FirstUpdate:
    """The first update in fp32, with the input of each ReLU far from 0.

    Near 0, rounding decides whether a ReLU passes a gradient, and one such decision changes the
    network's gradient by 1e-3. So BN's scales and shifts put 0 four standard deviations away: the
    even channels above it, the odd ones below.
    """
    settings = case.settings(
        "precision=fp32", "deterministic=true", "weight_decay=0", f"kernels={kernels}",
        variant=variant,
    )  # fmt: skip
    first, trainer = start(settings, case.device), start(settings, case.device)
    for each in (first, trainer):
        norms = [m for m in each.network.modules() if isinstance(m, nn.BatchNorm2d)]
        with torch.no_grad():
            for norm in norms:
                norm.weight.fill_(0.25)
                norm.bias[0::2], norm.bias[1::2] = 1.0, -1.0
    run_to(trainer, 1)
    gradients: dict[str, list[Tensor]] = {}
    for module in trainer.network.modules():
        for weights in module.parameters(recurse=False):
            gradient = trainer.updater.optimizer.state[weights]["momentum_buffer"]
            gradients.setdefault(type(module).__name__, []).append(gradient.reshape(-1))
    buffers = [[*norm.buffers()] for norm in norms]
    return FirstUpdate(
        logits(first),
        {kind: torch.cat(each) for kind, each in gradients.items()},
        [tensor for mean, variance, _ in buffers for tensor in (mean, variance.sqrt())],
        [int(count) for *_, count in buffers],
    )


def differences(fused: FirstUpdate, plain: FirstUpdate) -> dict[str, float]:
    """Relative, by name. A mean is compared in standard deviations."""
    whole = [torch.cat([*each.gradients.values()]) for each in (fused, plain)]
    scales = [scale for scale in plain.statistics[1::2] for _ in range(2)]
    return {
        "logits": relative(fused.logits, plain.logits),
        "gradient": relative(*whole),
        **{
            f"of {kind}": relative(fused.gradients[kind], gradient)
            for kind, gradient in plain.gradients.items()
        },
        "BN statistics": max(
            relative(*of) for of in zip(fused.statistics, plain.statistics, scales, strict=True)
        ),
    }


def relative(value: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    difference = (value.double() - expected.double()).norm()
    return float(difference / (expected if scale is None else scale).double().norm())


def processes() -> Executor:
    """Two at a time, a new one for each task."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1)


def train_part(
    case: Case,
    how: tuple[str, ...],
    until: int,
    save_in: Path | None = None,
    resume_from: Path | None = None,
) -> str:
    """A run to iteration `until`, from the beginning or a checkpoint; returns its digest."""
    trainer = case.start(*how)
    if resume_from is not None:
        state = load_newest(resume_from)
        assert state is not None
        trainer.restore(state)
    run_to(trainer, until)
    if save_in is not None:
        save(save_in, trainer.state())
    return bits(trainer)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def bits(trainer: Trainer) -> str:
    optimizer = trainer.updater.optimizer.state_dict()
    return digest({"model": trainer.network.state_dict(), "optimizer": optimizer})


def bits_with_evaluations(trainer: Trainer) -> str:
    """After 12 updates, with an evaluation amid them and one after them."""
    evaluations = []
    for iteration in (6, 12):
        run_to(trainer, iteration)
        one = evaluate(
            trainer.network, trainer.splits.test, trainer.plan, captured=trainer.evaluation_graph
        )
        evaluations += [one.loss, one.predictions]
    return digest([bits(trainer), evaluations])


def same(digests: Iterable[str], what: str = "weights and momenta") -> Finding:
    one, other = digests
    return found(one == other, f"{what} after 12 updates, SHA-256")
