"""Signal and gradient along the depth, unit by unit.

BN uses the statistics of the batch, as in training, in micro-batches of the run's size. So initial
networks, which have no useful running statistics, are measured like trained ones. Signals are fp32,
sums fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.errors import RunError
from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit
from resvar.probes.hooks import Observer, keeps_shape, mode, observing, units
from resvar.probes.measurements import Signal, UnitSignals


class SignalMeasurement(NamedTuple):
    """The units of a network, the loss, and the gradient's norm at the last unit's output."""

    units: list[UnitSignals]
    loss: float
    end_gradient: float


def measure_signals(
    network: ResidualNetwork, images: Tensor, labels: Tensor, bn_images: int
) -> SignalMeasurement:
    """Run images forward and the gradient of the loss backward, and measure every unit.

    Args:
        images: float [N, 3, H, W], normalised, on the network's device.
        labels: int64 [N].
        bn_images: the largest micro-batch for BN.

    Raises:
        RunError: a signal is not finite.
    """
    meters = [_UnitMeter(name, stage, unit) for name, stage, unit in units(network)]
    parts = math.ceil(len(labels) / bn_images)
    loss = end_squares = 0.0
    with mode(network, training=True):
        for some, classes in zip(
            images.tensor_split(parts), labels.tensor_split(parts), strict=True
        ):
            part = _measure_micro_batch(network, meters, some, classes, len(labels))
            loss, end_squares = loss + part[0], end_squares + part[1]
    if not all(map(math.isfinite, [loss, end_squares, *(meter.check for meter in meters)])):
        raise RunError(
            f"{network.ordering.name}-{network.architecture.depth}: the signal is no longer finite "
            "along the depth and cannot be measured."
        )
    end = math.sqrt(end_squares)
    return SignalMeasurement([meter.result(end) for meter in meters], loss, end)


def _measure_micro_batch(
    network: ResidualNetwork,
    meters: Sequence[_UnitMeter],
    images: Tensor,
    labels: Tensor,
    total: int,
) -> tuple[float, float]:
    """Its part of the loss, and of the gradient's squared norm at the last unit's output."""
    unit_inputs: list[Tensor] = []
    passed: list[Tensor] = []
    inputs: dict[nn.Module, Observer] = {}
    outputs: dict[nn.Module, Observer] = {}
    for meter in meters:
        unit = meter.unit
        inputs |= {unit: unit_inputs.append, unit.after_add: meter.after_addition(passed)}
        outputs |= {unit.shortcut: meter.shortcut.add, unit.branch: meter.branch.add}
    inputs[network.head_lead] = unit_inputs.append
    with observing(inputs, outputs):
        # Only the images require gradients; the weights get none.
        logits = network(images.float().requires_grad_())
    loss = F.cross_entropy(logits, labels, reduction="sum") / total
    *gradients, last = torch.autograd.grad(loss, unit_inputs)
    for meter, gradient in zip(meters, gradients, strict=True):
        meter.gradient_squares += _square_sum(gradient)
    return float(loss.detach()), _square_sum(last)


class _SignalMeter:
    """Sums of a signal over micro-batches."""

    def __init__(self) -> None:
        self.count, self.total, self.squares, self.negative = 0, 0.0, 0.0, 0

    @torch.no_grad()
    def add(self, signal: Tensor) -> None:
        self.count += signal.numel()
        self.total += float(signal.sum(dtype=torch.float64))
        self.squares += _square_sum(signal)
        self.negative += int((signal < 0).sum())

    def result(self) -> Signal:
        mean = self.total / self.count
        return Signal(
            mean=mean,
            std=math.sqrt(max(0.0, self.squares / self.count - mean**2)),
            negative=self.negative / self.count,
            norm=math.sqrt(self.squares),
        )


class _UnitMeter:
    """A unit with its sums over micro-batches."""

    def __init__(self, name: str, stage: int, unit: ResidualUnit) -> None:
        self.name, self.stage, self.unit = name, stage, unit
        self.shortcut, self.branch = _SignalMeter(), _SignalMeter()
        self.gradient_squares = 0.0
        self.log_gains: list[float] = []
        self.passed = self.straight = 0

    def after_addition(self, passed: list[Tensor]) -> Observer:
        """An observer of the sum that records BN's gain and the values that ReLU passes.

        Args:
            passed: one mask of the values that every ReLU after an addition has passed so far in
                this stage; shared by all units, initially empty.
        """

        @torch.no_grad()
        def observe(signal: Tensor) -> None:
            if not keeps_shape(self.unit) or not passed:  # a new stage
                passed[:] = [torch.ones_like(signal, dtype=torch.bool)]
            here = torch.ones_like(passed[0])
            log_gain = 0.0
            for op in self.unit.after_add:
                if isinstance(op, nn.BatchNorm2d):
                    log_gain += _log_gain(op, signal)
                else:
                    here &= signal > 0
                signal = op(signal)
            passed[0] &= here
            self.log_gains.append(log_gain)
            self.passed += int(here.sum())
            self.straight += int(passed[0].sum())

        return observe

    @property
    def check(self) -> float:
        """Not finite if a signal is not."""
        return self.shortcut.squares + self.branch.squares + self.gradient_squares + self._log_gain

    @property
    def _log_gain(self) -> float:
        return sum(self.log_gains) / len(self.log_gains)

    def result(self, end: float) -> UnitSignals:
        """`end`: the gradient's norm at the last unit's output."""
        shortcut, branch = self.shortcut.result(), self.branch.result()
        gradient = math.sqrt(self.gradient_squares)
        return UnitSignals(
            name=self.name,
            stage=self.stage,
            keeps_shape=keeps_shape(self.unit),
            shortcut=shortcut,
            branch=branch,
            ratio=branch.norm / shortcut.norm if shortcut.norm else None,
            gradient=gradient,
            gradient_ratio=gradient / end if end else None,
            gain=math.exp(self._log_gain),
            passed=self.passed / self.branch.count,
            straight=self.straight / self.branch.count,
        )


def _log_gain(bn: nn.BatchNorm2d, signal: Tensor) -> float:
    """Mean over channels of log(|scale| / deviation), the factor that BN applies to a signal.

    A constant channel has BN's deviation sqrt(eps). A scale of zero, whose log is -inf, counts as
    the smallest positive number.
    """
    deviation = (signal.var(dim=(0, 2, 3), correction=0) + bn.eps).sqrt()
    gain = bn.weight.abs().clamp_min(torch.finfo(torch.float32).tiny) / deviation
    return float(gain.double().log().mean())


def _square_sum(signal: Tensor) -> float:
    return float(torch.linalg.vector_norm(signal.detach(), dtype=torch.float64)) ** 2
