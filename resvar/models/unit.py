"""One residual unit for every ordering: y = after_add( branch( lead(x) ) + shortcut(x) ).

Read `ResidualUnit.forward` first: it is the equation. An `Ordering` says which ops stand where, an
`Architecture` which convolutions. No ordering has a class or an `if` of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.models.architecture import KERNELS, Architecture, Shortcut
from resvar.models.ordering import Ordering


class ResidualUnit(nn.Module):
    """A branch of two or three convolutions with a shortcut around it.

    Input [N, channels_in, H, W] → output [N, channels_out, H/stride, W/stride].

    `leads=False` builds the first unit of a network: its lead belongs to the network, before the
    split, so that both paths take the activated signal (arXiv:1603.05027, section 4.1).
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
        self.projects = isinstance(self.shortcut, Projection)

    def forward(self, x: Tensor) -> Tensor:
        # A projection is a convolution and takes the led signal, as the branch does. Identity and
        # padding pass the raw signal on: the point of pre-activation.
        led = self.lead(x)
        shortcut = self.shortcut(led if self.projects else x)
        return self.after_add(self.branch(led) + shortcut)  # type: ignore[no-any-return]


class Projection(nn.Sequential):
    """Option B: a 1×1 convolution with the stride; BN follows where `trail` begins with BN."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, bn: bool) -> None:
        super().__init__(conv(channels_in, channels_out, kernel=1, stride=stride))
        if bn:
            self.append(nn.BatchNorm2d(channels_out))


class Padding(nn.Module):
    """Option A: every second pixel; zero channels, half of them before and half after."""

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
    """A convolution that keeps the resolution up to its stride; no bias, since BN has one."""
    return nn.Conv2d(
        channels_in,
        channels_out,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
    )


def ops(names: Iterable[str], channels: int) -> nn.Sequential:
    """The modules at one place of an ordering, for a signal with `channels` channels."""
    return nn.Sequential(*(nn.BatchNorm2d(channels) if op == "bn" else nn.ReLU() for op in names))


def _branch(
    ordering: Ordering,
    architecture: Architecture,
    channels_in: int,
    inner: int,
    out: int,
    stride: int,
) -> nn.Sequential:
    """The convolutions of a unit, `between` them, and `trail` after the last."""
    kernels = KERNELS[architecture.unit]
    strided = kernels.index(3) if architecture.stride_on == "3x3" else 0
    channels = [channels_in, *[inner] * (len(kernels) - 1), out]
    branch = nn.Sequential()
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
