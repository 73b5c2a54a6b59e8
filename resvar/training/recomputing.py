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
    """Inside, BN normalises by its batch, but moves its running statistics by nothing: it has noted
    this batch down already, in the first pass."""
    found = [module for module in unit.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(bn, bn.momentum, bn.num_batches_tracked) for bn in found]
    for bn, _, batches in before:
        bn.momentum = 0.0
        bn.num_batches_tracked = None if batches is None else batches.clone()
    try:
        yield
    finally:
        for bn, momentum, batches in before:
            bn.momentum, bn.num_batches_tracked = momentum, batches
