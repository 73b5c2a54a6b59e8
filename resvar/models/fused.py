"""Fewer passes over memory: BN, ReLU and convolution as one operator, the same function.

What a network computes is written in `resvar.models.unit`: BN, ReLU and convolutions are modules in
a row. A `Chain` is such a row. Once `fuse` has been called on a network, its chains give BN, the
ReLU after it and the convolution after that to one operator (resvar/kernels/fused.cpp) wherever
that can take them, and go through the modules one by one wherever it cannot: in evaluation, under
hooks, for another layout or type. Weights, names and random numbers are untouched; results agree
to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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

    def fork(
        self, x: Tensor, after: Chain, shortcut: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What comes out of this chain and the one after it, and x for a second path.

        Both paths send a gradient back to x. Fused, BN's backward pass adds the second one to its
        own as it writes it; otherwise adding the two is an operation of its own.

        Args:
            shortcut: the second path; what comes out of it is added to what comes out first.
        """
        if not self.fused or _hooked(self) or _hooked(after):
            out = after(self(x))
            return (out if shortcut is None else out + shortcut(x)), x
        modules, out, again = [*self, *after], x, x
        head = _head(modules, x)
        if head and type(head[0]) is nn.BatchNorm2d:
            out, again = _operator(head, x, fork=True)
            modules = modules[len(head) :]
        return _run(modules, out, None if shortcut is None else shortcut(again)), again

    def plus(self, x: Tensor, added: Tensor) -> Tensor:
        """What comes out of this chain, and `added`."""
        if not self.fused or _hooked(self):
            return cast(Tensor, self(x)) + added
        return _run(list(self), x, added)


def fuse(network: nn.Module) -> None:
    """Let the chains of a network use the fused operators, which must be loaded."""
    for module in network.modules():
        if isinstance(module, Chain):
            module.fused = True


def _run(modules: list[nn.Module], x: Tensor, added: Tensor | None = None) -> Tensor:
    while modules:
        if head := _head(modules, x):
            last = len(head) == len(modules) and _takes_added(head[-1], x, added)
            (x,) = _operator(head, x, added=added if last else None)
            if last:
                return x
        else:
            head = modules[:1]
            x = head[0](x)
        modules = modules[len(head) :]
    return x if added is None else x + added


def _head(modules: list[nn.Module], x: Tensor) -> list[nn.Module]:
    """The modules at the beginning that one operator computes, in the order BN, ReLU, convolution.

    BN may stand alone, and so may a convolution; ReLU is only taken after BN. None: an empty list.
    """
    head: list[nn.Module] = []
    if modules and _takes_bn(modules[0], x):
        relu = len(modules) > 1 and type(modules[1]) is nn.ReLU and not _hooked(modules[1])
        head = modules[: 1 + relu]
    following = modules[len(head) : len(head) + 1]
    return head + following if following and _takes_conv(following[0], x) else head


def _takes_bn(bn: nn.Module, x: Tensor) -> bool:
    return (
        type(bn) is nn.BatchNorm2d
        and bn.training
        and bn.affine
        and bn.momentum is not None
        and not _hooked(bn)
        and _in_rows(x)
        and x.numel() > x.shape[1]  # torch refuses one value per channel, and says so
        and _WIDE.get(x.dtype) is bn.weight.dtype
    )


def _takes_conv(conv: nn.Module, x: Tensor) -> bool:
    """Whether the gradient of its weights is one that weight_gradient.h computes."""
    return (
        type(conv) is nn.Conv2d
        and conv.training
        and not _hooked(conv)
        and conv.bias is None
        and (conv.kernel_size, conv.padding) in (((1, 1), (0, 0)), ((3, 3), (1, 1)))
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.in_channels % 16 == conv.out_channels % 16 == 0
        and _in_rows(x)
        and (x.dtype is torch.float32 or x.shape[3] % 2 == 0)
        and _stays(x.dtype, conv.weight.dtype)
        and _takes_convolutions(x.dtype)
    )


def _takes_added(conv: nn.Module, x: Tensor, added: Tensor | None) -> bool:
    """Whether something is added that lies in memory as what the convolution of x puts out does."""
    return (
        added is not None
        and type(conv) is nn.Conv2d
        and added.dtype is x.dtype
        and added.shape == (x.shape[0], conv.out_channels, *x.shape[2:])
        and _in_rows(added)
    )


def _in_rows(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _stays(signal: torch.dtype, weights: torch.dtype) -> bool:
    """Whether torch's own convolution would leave a signal in its type, autocast or not."""
    if torch.is_autocast_enabled("cpu"):
        return signal is torch.get_autocast_dtype("cpu") and weights is torch.float32
    return signal is weights


@cache
def _takes_convolutions(signal: torch.dtype) -> bool:
    return bool(torch.ops.resvar.takes_convolutions(signal))


_WIDE = {
    torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64,
}  # fmt: skip
"""Type of a signal → type of the parameters that the operator takes with it."""


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _operator(
    head: list[nn.Module], x: Tensor, fork: bool = False, added: Tensor | None = None
) -> list[Tensor]:
    filters = head[-1].weight if type(head[-1]) is nn.Conv2d else None
    if type(head[0]) is not nn.BatchNorm2d:
        return [torch.ops.resvar.conv(x, filters, added)]
    bn = head[0]
    mean, var = bn.running_mean, bn.running_var
    if not bn.track_running_stats:
        mean = var = None
    elif bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    relu = any(type(module) is nn.ReLU for module in head)
    out: list[Tensor] = torch.ops.resvar.bn(
        x, bn.weight, bn.bias, mean, var, bn.momentum, bn.eps, relu, fork, filters, added
    )
    return out
