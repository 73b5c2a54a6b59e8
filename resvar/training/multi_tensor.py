"""What an update does to each weight or each BN, done to all of them by one operation.

A GPU needs as long to start a kernel for 16 numbers as for 16 thousand. A network of 110 layers has
as many weights to cast to bf16 and as many BNs that count their batches, in each micro-batch. Here
one operation casts all weights once an update, and one counts for all BNs. The bits are the same.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resvar.kernels.ghost_fuse import normalise


def count_from_outside(network: nn.Module) -> None:
    """Let BN not count its batches itself; `batch_counters` are the numbers to raise instead.

    A BN without momentum is left alone, since it needs the number itself.
    """
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.forward = MethodType(_uncounted, module)  # type: ignore[method-assign]


def _uncounted(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if bn.training and bn.track_running_stats and bn.momentum is not None:
        return normalise(bn, x)
    return nn.BatchNorm2d.forward(bn, x)


def batch_counters(network: nn.Module) -> list[Tensor]:
    """`num_batches_tracked` of every BN that does not count itself, each int64 []."""
    return [
        norm.num_batches_tracked
        for norm in network.modules()
        if type(norm) is nn.BatchNorm2d
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.num_batches_tracked is not None
    ]


class CastWeights:
    """The weights of convolutions and linear layers in the type of the signals.

    Autocast would cast each weight again in each micro-batch, and its gradient back.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weights = {
            f"{name}.{own}": weight
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
            for own, weight in module.named_parameters(recurse=False)
        }

    def __call__(self) -> dict[str, Tensor]:
        """Copies by name, for `torch.func.functional_call`; gradients reach the weights."""
        copies = _Cast.apply(self.dtype, *self.weights.values())
        return dict(zip(self.weights, copies, strict=True))


class _Cast(torch.autograd.Function):
    """Tensors in another type. Saves nothing, so each micro-batch may go back through it."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.original = tensors[0].dtype
        return _cast(tensors, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_cast(gradients, ctx.original))


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return tuple(copies)
