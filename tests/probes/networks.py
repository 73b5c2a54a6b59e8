"""Small networks to probe, and parts that break in them what the paper claims."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resvar.models.network import ResidualNetwork, build_model
from resvar.probes.hooks import keeps_shape, units
from resvar.probes.identity import check_identity
from resvar.probes.measurements import Moment
from resvar.probes.signals import measure_signals

IMAGES = 12


def make_network(variant="full-preact", depth=14, seed=0, **more) -> ResidualNetwork:
    return build_model(variant, depth=depth, seed=seed, **more)


def make_images(count=IMAGES, seed=0) -> tuple[Tensor, Tensor]:
    """Float [N, 3, 32, 32] and labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=random)
    return torch.randn(count, 3, 32, 32, generator=random) * 0.5, labels


def trained(network: ResidualNetwork, seed=1) -> ResidualNetwork:
    """With weights and BN buffers that no initialisation has."""
    random = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.weight.copy_(torch.rand(part.weight.shape, generator=random) + 0.5)
                part.bias.copy_(torch.randn(part.bias.shape, generator=random) * 0.3)
                part.running_mean.copy_(torch.randn(part.bias.shape, generator=random) * 0.3)
                part.running_var.copy_(torch.rand(part.bias.shape, generator=random) + 0.5)
    return network


def moment(network: ResidualNetwork, iteration=0) -> Moment:
    """The network, measured as `resvar probe` does, but for deletion."""
    images, labels = make_images()
    found = measure_signals(network, images, labels, bn_images=8)
    return Moment(
        iteration=iteration,
        loss=found.loss,
        end_gradient=found.end_gradient,
        units=found.units,
        identity=check_identity(network, images[:4], labels[:4]),
    )


def identity_shortcuts(network: ResidualNetwork):
    return [unit for _, _, unit in units(network) if keeps_shape(unit)]


class Scaled(nn.Identity):
    """Claims to be the identity, and multiplies."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Deaf(nn.Identity):
    """The identity forward, but only half of the gradient comes back."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x * 0.5 - x.detach() * 0.5) - (x - x.detach())
