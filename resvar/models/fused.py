"""Fewer passes over memory: BN and the ReLU after it as one operator, the same function.

What a network computes is written in `resvar.models.unit`: BN and ReLU are modules in a row. A
`Chain` is such a row. Once `fuse` has been called on a network, its chains give BN and ReLU to one
operator (resvar/kernels/fused.cpp) wherever that can take them, and go through the modules
one by one wherever it cannot: in evaluation, under hooks, for another layout or type. Weights,
names and random numbers are untouched; results agree to rounding.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class Chain(nn.Sequential):
    """Modules one after the other, [N, C, H, W] → [N, C', H', W']."""

    fused = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return _run(list(self), x)

    def fork(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What comes out, and x for a second path.

        Both paths send a gradient back to x. Fused, BN's backward pass adds the second one to its
        own as it writes it; otherwise adding the two is an operation of its own.
        """
        if self.fused and (head := _fusible(list(self), x)):
            out, again = _bn(head, x, fork=True)
            return _run(list(self)[len(head) :], out), again
        return self(x), x


def fuse(network: nn.Module) -> None:
    """Let the chains of a network use the fused operators, which must be loaded."""
    for module in network.modules():
        if isinstance(module, Chain):
            module.fused = True


def _run(modules: list[nn.Module], x: Tensor) -> Tensor:
    while modules:
        if head := _fusible(modules, x):
            (x,) = _bn(head, x)
        else:
            head = modules[:1]
            x = head[0](x)
        modules = modules[len(head) :]
    return x


def _fusible(modules: list[nn.Module], x: Tensor) -> list[nn.Module]:
    """The modules at the beginning that one operator computes: BN and ReLU, BN alone, or none."""
    if not modules or not _takes(modules[0], x):
        return []
    relu = len(modules) > 1 and type(modules[1]) is nn.ReLU and not _hooked(modules[1])
    return modules[: 1 + relu]


def _takes(bn: nn.Module, x: Tensor) -> bool:
    return (
        type(bn) is nn.BatchNorm2d
        and bn.training
        and bn.affine
        and bn.momentum is not None
        and not _hooked(bn)
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() > x.shape[1]  # torch refuses one value per channel, and says so
        and _WIDE.get(x.dtype) is bn.weight.dtype
        and x.is_contiguous(memory_format=torch.channels_last)
    )


_WIDE = {
    torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64,
}  # fmt: skip
"""Type of a signal → type of the parameters that the operator takes with it."""


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _bn(head: list[nn.Module], x: Tensor, fork: bool = False) -> list[Tensor]:
    bn = cast(nn.BatchNorm2d, head[0])
    mean, var = bn.running_mean, bn.running_var
    if not bn.track_running_stats:
        mean = var = None
    elif bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    out: list[Tensor] = torch.ops.resvar.bn(
        x, bn.weight, bn.bias, mean, var, bn.momentum, bn.eps, len(head) > 1, fork
    )
    return out
