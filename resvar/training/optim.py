"""The optimizer of a run: SGD with momentum, or Muon for the filters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from resvar.settings import Settings
from resvar.training.muon import Muon, filters


def build_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with momentum, or Muon for the filters; weight decay on what `weight_decay_on` says.

    `weights` are those of the convolutions and the linear layer: all parameters with more than one
    dimension. BN's scales and shifts and the linear layer's bias have one.
    """
    everywhere = settings.weight_decay_on == "all"
    orthogonal = filters(network) if settings.optimizer == "muon" else []
    rest = [p for p in network.parameters() if all(p is not w for w in orthogonal)]
    groups: list[dict[str, Any]] = [
        {
            "params": orthogonal,
            "weight_decay": settings.muon_decay,
            "orthogonal": True,
            "rate": settings.muon_lr / settings.lr,
        },
        {
            "params": [p for p in rest if p.ndim > 1 or everywhere],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in rest if p.ndim <= 1 and not everywhere], "weight_decay": 0.0},
    ]
    kind = Muon if orthogonal else torch.optim.SGD
    return kind(
        [group for group in groups if group["params"]],
        lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True,
    )  # fmt: skip
