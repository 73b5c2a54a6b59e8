"""One residual unit for every ordering: y = after_add( branch( lead(x) ) + shortcut(x) ).

A shortcut that projects takes lead(x), too. Read `ResidualUnit.forward` first: it is the equation.
The layers at each place come from `resvar.models.layout`. No ordering needs its own class or its
own `if`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.models.layout import BRANCH, Layer, UnitLayers


class ResidualUnit(nn.Module):
    """A branch of two or three convolutions with a shortcut around it.

    Input [N, channels_in, H, W] → output [N, channels_out, H/stride, W/stride].
    """

    def __init__(self, layers: UnitLayers) -> None:
        super().__init__()
        self.lead = build_sequence(layers, "lead")
        self.branch = build_sequence(layers, *BRANCH)
        self.shortcut = _build_shortcut(layers)
        self.after_add = build_sequence(layers, "after_add")
        self.projects = isinstance(self.shortcut, Projection)

    def forward(self, x: Tensor) -> Tensor:
        # A projection is a convolution and takes the activated signal, like the branch. Identity
        # and padding pass on the raw signal: the point of pre-activation.
        activated = self.lead(x)
        shortcut = self.shortcut(activated if self.projects else x)
        return self.after_add(self.branch(activated) + shortcut)  # type: ignore[no-any-return]


class Projection(nn.Sequential):
    """Option B: a 1×1 convolution with the stride; BN follows where `trail` begins with BN."""


class Padding(nn.Module):
    """Option A: every second pixel; zero channels, half of them before and half after."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels_out - channels_in) // 2
        self.after = channels_out - channels_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def build_sequence(layers: UnitLayers, *places: str) -> nn.Sequential:
    """The modules at the given places, in layer order."""
    return nn.Sequential(*(build_layer(layer) for layer in layers if layer.place in places))


def build_layer(layer: Layer) -> nn.Module:
    """The module for a layer. In a convolution only the stride changes the resolution; it has no
    bias, since BN has one."""
    channels_in, channels_out = layer.channels_in, layer.channels_out
    match layer.op:
        case "conv":
            return nn.Conv2d(
                channels_in,
                channels_out,
                layer.kernel,
                stride=layer.stride,
                padding=layer.kernel // 2,
                groups=layer.groups,
                bias=False,
            )
        case "bn":
            return nn.BatchNorm2d(channels_out)
        case "relu":
            return nn.ReLU()
        case "pad":
            return Padding(channels_in, channels_out, layer.stride)
        case "max":
            return nn.MaxPool2d(layer.kernel, layer.stride, padding=layer.kernel // 2)
    raise ValueError(f"no module for {layer}")


def _build_shortcut(layers: UnitLayers) -> nn.Module:
    modules = build_sequence(layers, "shortcut")
    if not modules:
        return nn.Identity()
    return modules[0] if isinstance(modules[0], Padding) else Projection(*modules)


def initialise(module: nn.Module) -> None:
    """He normal by fan-out for convolutions (arXiv:1502.01852, eq. 14), BN at 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.weight.fill_(1.0)
                part.bias.zero_()
