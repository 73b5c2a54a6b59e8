"""Fewer passes over memory: BN, ReLU and convolution as one operator, the same function.

`fuse(network)` replaces the `forward` of each residual unit and each `nn.Sequential` in a network.
The new forward gives BN, the ReLU after it and the convolution after that to one operator
(fused.cpp) where that operator accepts them. Otherwise it calls the modules separately: in
evaluation mode, with hooks, or for another memory format or type. Weights, their names and random
numbers stay untouched; results agree up to rounding.

The networks (resvar/models) contain nothing of this. Fuse before `recompute` and before `compile`,
which wrap the forward that they find.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from resvar.models.unit import ResidualUnit


def fuse(network: nn.Module) -> None:
    """Make a network use the fused operators, which must be loaded (`build.load_operators`).

    A deep copy of a fused network is also fused, since bound methods are copied with their module.
    """
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.forward = MethodType(_fused_unit, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Sequential):
            module.forward = MethodType(_fused_sequential, module)  # type: ignore[method-assign]


def is_fused(module: nn.Module) -> bool:
    """Whether `fuse` replaced the forward of this module."""
    forward = getattr(module.forward, "__func__", None)
    return forward in (_fused_unit, _fused_sequential)


def _fused_sequential(modules: nn.Sequential, x: Tensor) -> Tensor:
    return run(list(modules), x)


def _fused_unit(unit: ResidualUnit, x: Tensor) -> Tensor:
    """`ResidualUnit.forward`; a projection takes the activated signal, so only its sum is fused."""
    if unit.projects:
        activated = unit.lead(x)
        out = add(unit.branch, activated, unit.shortcut(activated))
    else:
        out = fork(unit.lead, unit.branch, x, unit.shortcut)
    return cast(Tensor, unit.after_add(out))


def fork(
    lead: nn.Sequential, branch: nn.Sequential, x: Tensor, shortcut: Callable[[Tensor], Tensor]
) -> Tensor:
    """`branch(lead(x)) + shortcut(x)`.

    Both paths send a gradient back to x. BN's backward pass adds the second gradient to its own
    while writing it; otherwise the sum is a separate operation.
    """
    if is_hooked(lead) or is_hooked(branch):
        return cast(Tensor, branch(lead(x)) + shortcut(x))
    modules, out, raw = [*lead, *branch], x, x
    head = _head(modules, x)
    if head and type(head[0]) is nn.BatchNorm2d:
        out, raw = _operator(head, x, fork=True)
        modules = modules[len(head) :]
    return run(modules, out, shortcut(raw))


def add(branch: nn.Sequential, x: Tensor, added: Tensor) -> Tensor:
    """`branch(x) + added`; the convolution that ends a branch adds while it writes."""
    if is_hooked(branch):
        return cast(Tensor, branch(x) + added)
    return run(list(branch), x, added)


def run(modules: list[nn.Module], x: Tensor, added: Tensor | None = None) -> Tensor:
    """Apply the modules in order to x [N, C, H, W] and add `added`; fused where possible."""
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


def is_hooked(module: nn.Module) -> bool:
    """Whether a forward or backward hook observes this module's input or output."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def _head(modules: list[nn.Module], x: Tensor) -> list[nn.Module]:
    """The first modules that one operator can compute together: BN, ReLU, convolution, in order.

    BN or a convolution may be alone; ReLU only follows BN. Empty if the operator accepts none.
    """
    head: list[nn.Module] = []
    if modules and _takes_bn(modules[0], x):
        relu = len(modules) > 1 and type(modules[1]) is nn.ReLU and not is_hooked(modules[1])
        head = modules[: 1 + relu]
    following = modules[len(head) : len(head) + 1]
    return head + following if following and _takes_conv(following[0], x) else head


def _takes_bn(bn: nn.Module, x: Tensor) -> bool:
    return (
        type(bn) is nn.BatchNorm2d
        and bn.training
        and bn.affine
        and bn.momentum is not None
        and not is_hooked(bn)
        and _in_rows(x)
        and x.numel() > x.shape[1]  # torch refuses one value per channel, with a message
        and _WIDE.get(x.dtype) is bn.weight.dtype
    )


def _takes_conv(conv: nn.Module, x: Tensor) -> bool:
    """Whether weight_gradient.h computes the gradient of its weights."""
    return (
        type(conv) is nn.Conv2d
        and conv.training
        and not is_hooked(conv)
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
    """Whether `added` has the type, shape and memory format of the convolution's output."""
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
    """Whether torch's convolution would keep the signal's type, with or without autocast."""
    if torch.is_autocast_enabled("cpu"):
        return signal is torch.get_autocast_dtype("cpu") and weights is torch.float32
    return signal is weights


@cache
def _takes_convolutions(signal: torch.dtype) -> bool:
    return bool(torch.ops.resvar.takes_convolutions(signal))


_WIDE = {
    torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64,
}  # fmt: skip
"""Type of a signal → type of the BN parameters that the operator accepts with it."""


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
