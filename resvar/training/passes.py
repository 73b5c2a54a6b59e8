"""Optimisation from outside: passes that change how a plain network computes, not what.

`prepare_network` applies them in the one order that works: fuse replaces the forward of units (and
on a GPU of BN), recompute wraps whatever forward it finds, compile traces the outcome.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resvar.kernels.build import compiler_command
from resvar.kernels.cache import private_folder
from resvar.kernels.fuse import fuse
from resvar.kernels.ghost_fuse import fuse_ghost
from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit
from resvar.training.execution import Execution
from resvar.training.multi_tensor import count_from_outside

RECOMPILE_LIMIT = 64
"""Compilations of one piece of code, one per shape of unit; torch's default is 8."""

INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch keeps compiled units; by default in /tmp, under a name that anyone can claim."""


def prepare_network(network: ResidualNetwork, plan: Execution) -> ResidualNetwork:
    """The network on its device, with the passes that the settings ask for."""
    network = plan.to_device(network)
    if plan.multi_tensor:
        count_from_outside(network)
    if plan.ghost:
        fuse_ghost(network, plan.settings.bn_batch_size)
    elif plan.kernels == "fused":
        fuse(network)
    if plan.settings.recompute == "unit":
        recompute_units(network)
    if plan.compiles:
        compile_units(network)
    return network


def recompute_units(network: nn.Module) -> None:
    """Keep of each unit only its input, and compute the unit again for the backward pass.

    Costs a second forward pass and saves most of the memory: a deep network then needs that of its
    units' inputs and of one unit. Weights, gradients and running statistics keep every bit.
    """
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.forward = partial(_recomputed, module, module.forward)  # type: ignore[method-assign]


def _recomputed(unit: ResidualUnit, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _running_statistics_kept(unit)

    out: Tensor = checkpoint(
        forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return out


@contextmanager
def _running_statistics_kept(unit: nn.Module) -> Iterator[None]:
    """Inside, BN normalises by its batch but does not move its running statistics: the first pass
    has already counted this batch."""
    norms = [module for module in unit.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(bn, bn.momentum, bn.num_batches_tracked) for bn in norms]
    for bn, _, batches in before:
        bn.momentum = 0.0
        bn.num_batches_tracked = None if batches is None else batches.clone()
    try:
        yield
    finally:
        for bn, momentum, batches in before:
            bn.momentum, bn.num_batches_tracked = momentum, batches


def compile_units(network: nn.Module) -> None:
    """Let each unit compile itself with torch.compile at its first call in training.

    A whole network of 110 layers takes minutes to compile. Its units are the same code with other
    weights, so one compilation serves all units of a shape: five or six in a CIFAR network.
    """
    from torch._dynamo import config
    from torch._inductor.config import cpp

    if compiler := compiler_command():
        cpp.cxx = (None, shlex.join(compiler))
    if sys.platform == "linux" and INDUCTOR_CACHE not in os.environ:
        with suppress(OSError, RuntimeError):  # no private folder is possible
            os.environ[INDUCTOR_CACHE] = str(private_folder(lambda _: None) / "torchinductor")
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, RECOMPILE_LIMIT)  # the second name is that of torch before 2.6
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.compile(dynamic=False)


def uncompiled(plan: Execution) -> AbstractContextManager[Any]:
    """Inside, compiled units compute as they are written: evaluation is not worth compiling."""
    if not plan.compiles or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager
