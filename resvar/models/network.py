"""A network: stem, first lead, stages of residual units, head; built from data for every family."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from resvar.errors import UserError, quoted
from resvar.models.architecture import (
    Architecture,
    Family,
    Shortcut,
    StrideOn,
    UnitKind,
    plan,
)
from resvar.models.layout import network_layers
from resvar.models.ordering import Ordering, find_ordering
from resvar.models.unit import ResidualUnit, build_layer, build_sequence, initialise


class ResidualNetwork(nn.Module):
    """Images [N, 3, H, W] → logits [N, classes], in one ordering throughout.

    Modules are registered in the order in which the signal meets them. In an ordering with a
    lead, the first unit's lead is `first_lead`, before the split (and before the pooling of the
    ImageNet stem), and the head repeats the lead after the last addition.
    """

    def __init__(self, ordering: Ordering, architecture: Architecture, num_classes: int) -> None:
        super().__init__()
        self.ordering = ordering
        self.architecture = architecture
        rows = network_layers(ordering, architecture, num_classes)
        (stem,), *stages, (head,) = rows.values()
        self.stem = build_sequence(stem, "stem")
        self.first_lead = build_sequence(stem, "first_lead")
        self.pool = build_layer(stem[-1]) if stem[-1].place == "pool" else nn.Identity()
        self.stages = nn.Sequential(*(nn.Sequential(*map(ResidualUnit, units)) for units in stages))
        self.head_lead = build_sequence(head, "head_lead")
        self.classifier = nn.Linear(head[-1].channels_in, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        signal = self.pool(self.first_lead(self.stem(images)))
        return self.forward_head(self.stages(signal))

    def forward_head(self, signal: Tensor) -> Tensor:
        """The layers after the last unit: float [N, C, H, W] → logits [N, classes]."""
        activated = self.head_lead(signal)
        return self.classifier(activated.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    @property
    def layers(self) -> int:
        """Layers as the papers count them: convolutions on the main path, and the linear layer."""
        rows = network_layers(self.ordering, self.architecture, num_classes=1).values()
        return sum(layer.is_counted for units in rows for unit in units for layer in unit)


def build_model(
    variant: str | Ordering = "full-preact",
    depth: int = 164,
    family: str = "cifar",
    num_classes: int = 10,
    cardinality: int = 1,
    base_width: int = 64,
    stem: str | None = None,
    shortcut: str | None = None,
    unit: str | None = None,
    stride_on: str | None = None,
    seed: int | None = None,
) -> ResidualNetwork:
    """A residual network in any ordering.

    Args:
        variant: a shipped name, the path of a YAML file, or an `Ordering`.
        depth: layers, e.g. 20, 110, 164, 1001 (CIFAR) or 18, 34, 50, 101, 152 (ImageNet).
        family: `cifar` or `imagenet`.
        num_classes: width of the logits.
        cardinality, base_width: groups and their width, as in ResNeXt-50 (32×4d).
        stem, shortcut, unit, stride_on: see `resvar.models.architecture.plan`.
        seed: of the initial weights, without touching torch's global generator; None: draw from
            that generator, as other modules do.

    Returns:
        A module from float images [N, 3, H, W] to logits [N, num_classes].

    Raises:
        UserError: no such ordering or network.
    """
    for name, value, choices in (
        ("family", family, get_args(Family)),
        ("stem", stem, (None, *get_args(Family))),
        ("shortcut", shortcut, (None, *get_args(Shortcut))),
        ("unit", unit, (None, *get_args(UnitKind))),
        ("stride_on", stride_on, (None, *get_args(StrideOn))),
    ):
        if value not in choices:
            words = ", ".join(word for word in choices if word)
            raise UserError(f"'{name}' must be one of {words}, not {quoted(value)}.")
    if num_classes < 1:
        raise UserError(f"'num_classes' must be at least 1, not {num_classes}.")
    ordering = find_ordering(variant)
    architecture = plan(depth, family, unit, stem, cardinality, base_width, shortcut, stride_on)
    if seed is None:
        return ResidualNetwork(ordering, architecture, num_classes)
    return seeded_network(ordering, architecture, num_classes, seed)


def seeded_network(
    ordering: Ordering, architecture: Architecture, num_classes: int, seed: int
) -> ResidualNetwork:
    """A network with the initial weights of a seed; torch's global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResidualNetwork(ordering, architecture, num_classes)


def count_parameters(network: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(weights.numel() for weights in network.parameters())
