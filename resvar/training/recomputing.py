"""`recompute: unit`: keep of each residual unit only its input, and compute it again for backward.

Costs a second forward pass and saves most of the memory: a deep network then needs that of its
units' inputs and of one unit. Every bit stays the same: weights, gradients and running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resvar.config import Settings
from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit


def recompute_units(network: ResidualNetwork, settings: Settings) -> ResidualNetwork:
    """The same network, whose units keep only their input where the settings say so."""
    if settings.recompute == "unit":
        for module in network.modules():
            if isinstance(module, ResidualUnit):
                module.forward = partial(_recomputed, module, module.forward)  # type: ignore[method-assign]
    return network


def _recomputed(unit: ResidualUnit, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _running_statistics_kept(unit)

    found: Tensor = checkpoint(
        forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return found


@contextmanager
def _running_statistics_kept(unit: nn.Module) -> Iterator[None]:
    """Inside, BN normalises by its batch and does not note it down: it did so the first time."""
    tracking = [
        m for m in unit.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats
    ]
    for bn in tracking:
        bn.track_running_stats = False
    try:
        yield
    finally:
        for bn in tracking:
            bn.track_running_stats = True
