"""One residual unit for every ordering: y = after_add( shortcut(x) + branch( lead(x) ) ).

Read `ResidualUnit.forward` first; it is the whole rule. Which ops stand where comes from an
`Ordering`, which convolutions from an `Architecture`. No ordering has a class or an `if` of its
own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.models.architecture import KERNELS, Architecture, Shortcut
from resvar.models.fused import Chain
from resvar.models.ordering import Ordering


class ResidualUnit(nn.Module):
    """A branch of two or three convolutions with a shortcut around it.

    Input [N, channels_in, H, W] → output [N, channels_out, H/stride, W/stride].

    `leads=False` builds the first unit of a network: its lead stands in the network itself, before
    the split, so that both paths take the activated signal (arXiv:1603.05027, section 4.1).
    """

    def __init__(
        self,
        ordering: Ordering,
        architecture: Architecture,
        channels_in: int,
        channels_inner: int,
        channels_out: int,
        stride: int,
        leads: bool = True,
    ) -> None:
        super().__init__()
        self.lead = ops(ordering.lead if leads else (), channels_in)
        self.branch = _branch(
            ordering, architecture, channels_in, channels_inner, channels_out, stride
        )
        self.shortcut = _shortcut(
            architecture.shortcut, channels_in, channels_out, stride, ordering.projection_has_bn
        )
        self.after_add = ops(ordering.after_add, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        # A projection is a convolution and takes what the branch takes; identity and padding
        # pass the raw signal on, which is the point of pre-activation.
        if isinstance(self.shortcut, Projection):
            x = self.lead(x)
            y = self.branch.plus(x, self.shortcut(x))
        else:
            y, _ = self.lead.fork(x, self.branch, self.shortcut)
        return self.after_add(y)  # type: ignore[no-any-return]


class Projection(Chain):
    """Option B: a 1×1 convolution with the stride, and BN where the branch ends so."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, bn: bool) -> None:
        super().__init__(conv(channels_in, channels_out, kernel=1, stride=stride))
        if bn:
            self.append(nn.BatchNorm2d(channels_out))


class Padding(nn.Module):
    """Option A: every second pixel, and zero channels, half of them before and half after."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels_out - channels_in) // 2
        self.after = channels_out - channels_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def conv(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the resolution (but for the stride), without a bias: BN has one."""
    return nn.Conv2d(
        channels_in,
        channels_out,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
    )


def ops(names: Iterable[str], channels: int) -> Chain:
    """The modules of a place of an ordering, for a signal of so many channels."""
    return Chain(*(nn.BatchNorm2d(channels) if op == "bn" else nn.ReLU() for op in names))


def _branch(
    ordering: Ordering,
    architecture: Architecture,
    channels_in: int,
    inner: int,
    out: int,
    stride: int,
) -> Chain:
    """The convolutions of a unit, `between` them, and `trail` after the last."""
    kernels = KERNELS[architecture.unit]
    strided = kernels.index(3) if architecture.stride_on == "3x3" else 0
    channels = [channels_in, *[inner] * (len(kernels) - 1), out]
    branch = Chain()
    for index, kernel in enumerate(kernels):
        if index:
            branch.extend(ops(ordering.between, channels[index]))
        branch.append(
            conv(
                channels[index],
                channels[index + 1],
                kernel,
                stride=stride if index == strided else 1,
                groups=architecture.cardinality if kernel == 3 else 1,
            )
        )
    return branch.extend(ops(ordering.trail, out))


def _shortcut(
    kind: Shortcut, channels_in: int, channels_out: int, stride: int, bn: bool
) -> nn.Module:
    if channels_in == channels_out and stride == 1:
        return nn.Identity()
    if kind == "pad":
        return Padding(channels_in, channels_out, stride)
    return Projection(channels_in, channels_out, stride, bn)


def initialise(module: nn.Module) -> None:
    """He normal by fan-out for convolutions (arXiv:1502.01852, eq. 14), BN at 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.weight.fill_(1.0)
                part.bias.zero_()
