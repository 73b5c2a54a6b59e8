"""Forward and backward along the depth: what each unit does to the signal and to the gradient.

BN takes the statistics of the batch, as it does in training, in micro-batches of the size that a
run has; so initial networks, whose running statistics mean nothing yet, and trained ones are
measured in the same way. Everything is computed in fp32, and summed up in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.errors import RunError
from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit
from resvar.probes.findings import Signal, Unit
from resvar.probes.hooks import Look, keeps_shape, looking, mode, units


@dataclass(frozen=True)
class Measured:
    """The units of a network, the loss, and the gradient's norm at the last unit's output."""

    units: list[Unit]
    loss: float
    end_gradient: float


def measure_signals(
    network: ResidualNetwork, images: Tensor, labels: Tensor, bn_images: int
) -> Measured:
    """Pass images forward and the loss's gradient back, and say what each unit did.

    Args:
        images: float [N, 3, H, W], normalised, on the network's device.
        labels: int64 [N].
        bn_images: the most images that one BN sees at a time.

    Raises:
        RunError: a signal is not finite.
    """
    watched = [_Watched(name, stage, unit) for name, stage, unit in units(network)]
    loss, end = 0.0, 0.0
    parts = math.ceil(len(labels) / bn_images)
    with mode(network, training=True):
        for some, theirs in zip(
            images.tensor_split(parts), labels.tensor_split(parts), strict=True
        ):
            part = _pass(network, watched, some, theirs, len(labels))
            loss, end = loss + part[0], end + part[1]
    end = math.sqrt(end)
    if not all(math.isfinite(number) for number in (loss, end, *_numbers(watched))):
        raise RunError(
            f"{network.ordering.name}-{network.architecture.depth}: the signal is no longer finite "
            "along the depth, so there is nothing to measure."
        )
    return Measured([unit.found(end) for unit in watched], loss, end)


def _pass(
    network: ResidualNetwork,
    watched: Sequence[_Watched],
    images: Tensor,
    labels: Tensor,
    total: int,
) -> tuple[float, float]:
    """One micro-batch: its share of the loss, and of the gradient's squared norm at the end."""
    inputs: list[Tensor] = []
    at_inputs: dict[nn.Module, Look] = {}
    at_outputs: dict[nn.Module, Look] = {}
    passed: list[Tensor] = []  # which values every ReLU after an addition let pass in this stage
    for unit in watched:
        at_inputs |= {unit.module: inputs.append} | unit.after_additions(passed)
        at_outputs |= {unit.module.shortcut: unit.shortcut.add, unit.module.branch: unit.branch.add}
    at_inputs[network.head_lead] = inputs.append
    with looking(at_inputs, at_outputs):
        # Gradients of inputs alone: the weights need none, and none is left in them.
        logits = network(images.float().requires_grad_())
    loss = F.cross_entropy(logits, labels, reduction="sum") / total
    *gradients, last = torch.autograd.grad(loss, inputs)
    for unit, gradient in zip(watched, gradients, strict=True):
        unit.gradient += _square_sum(gradient)
    return float(loss.detach()), _square_sum(last)


@dataclass
class _Sums:
    """Of a signal, over micro-batches."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    negative: int = 0

    @torch.no_grad()
    def add(self, signal: Tensor) -> None:
        self.count += signal.numel()
        self.total += float(signal.sum(dtype=torch.float64))
        self.squares += _square_sum(signal)
        self.negative += int((signal < 0).sum())

    def found(self) -> Signal:
        mean = self.total / self.count
        return Signal(
            mean=mean,
            std=math.sqrt(max(0.0, self.squares / self.count - mean**2)),
            negative=self.negative / self.count,
            norm=math.sqrt(self.squares),
        )


@dataclass
class _Watched:
    """A unit, and what was seen of it so far."""

    name: str
    stage: int
    module: ResidualUnit
    shortcut: _Sums = field(default_factory=_Sums)
    branch: _Sums = field(default_factory=_Sums)
    gradient: float = 0.0  # squared
    log_gains: list[float] = field(default_factory=list)  # per micro-batch
    let_pass: list[int] = field(default_factory=list)
    straight: list[int] = field(default_factory=list)

    def after_additions(self, passed: list[Tensor]) -> dict[nn.Module, Look]:
        """What looks at the signal before each op after the addition.

        Args:
            passed: holds the mask of values that passed so far in this stage, once there is one.
        """

        @torch.no_grad()
        def at_sum(signal: Tensor) -> None:
            if not keeps_shape(self.module) or not passed:  # a stage begins
                passed[:] = [torch.ones_like(signal, dtype=torch.bool)]
            here = torch.ones_like(passed[0])
            log_gain = 0.0
            for op in self.module.after_add:
                if isinstance(op, nn.BatchNorm2d):
                    log_gain += _log_gain(op, signal)
                else:
                    here &= signal > 0
                signal = op(signal)
            passed[0] &= here
            self.log_gains.append(log_gain)
            self.let_pass.append(int(here.sum()))
            self.straight.append(int(passed[0].sum()))

        return {self.module.after_add: at_sum}

    def found(self, end: float) -> Unit:
        shortcut, branch = self.shortcut.found(), self.branch.found()
        gradient, count = math.sqrt(self.gradient), self.branch.count
        return Unit(
            name=self.name,
            stage=self.stage,
            keeps_shape=keeps_shape(self.module),
            shortcut=shortcut,
            branch=branch,
            ratio=branch.norm / shortcut.norm if shortcut.norm else None,
            gradient=gradient,
            gradient_ratio=gradient / end if end else None,
            gain=math.exp(sum(self.log_gains) / len(self.log_gains)),
            passed=sum(self.let_pass) / count,
            straight=sum(self.straight) / count,
        )


def _log_gain(bn: nn.BatchNorm2d, signal: Tensor) -> float:
    """log of |scale| / deviation, in the mean over channels: the factor that BN has for a signal.

    A channel that is constant counts with its deviation as BN takes it, sqrt(eps). A scale of
    zero would make the mean -inf; it counts as the smallest positive number.
    """
    deviation = (signal.var(dim=(0, 2, 3), correction=0) + bn.eps).sqrt()
    gain = bn.weight.abs().clamp_min(torch.finfo(torch.float32).tiny) / deviation
    return float(gain.double().log().mean())


def _square_sum(signal: Tensor) -> float:
    return float(torch.linalg.vector_norm(signal.detach(), dtype=torch.float64)) ** 2


def _numbers(watched: Sequence[_Watched]) -> list[float]:
    return [
        number
        for unit in watched
        for number in (
            unit.shortcut.squares, unit.branch.squares, unit.gradient, *unit.log_gains,
        )
    ]  # fmt: skip
