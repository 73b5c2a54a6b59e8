"""Temporary hooks on a network, and temporary modes.

The model has no code for probes. The terms of a unit's addition are visible at its modules: the
shortcut signal leaves `unit.shortcut`, the branch signal leaves `unit.branch`, and their sum enters
`unit.after_add`, even where that is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit

Observer = Callable[[Tensor], object]


def units(network: ResidualNetwork) -> list[tuple[str, int, ResidualUnit]]:
    """Name, stage and module of each residual unit, in the order of the signal."""
    found = []
    for stage, members in enumerate(network.stages):
        assert isinstance(members, nn.Sequential)
        for index, unit in enumerate(members):
            assert isinstance(unit, ResidualUnit)
            found.append((f"stages.{stage}.{index}", stage, unit))
    return found


def keeps_shape(unit: ResidualUnit) -> bool:
    """Whether the shortcut is the identity."""
    return isinstance(unit.shortcut, nn.Identity)


@contextmanager
def observing(
    inputs: Mapping[nn.Module, Observer], outputs: Mapping[nn.Module, Observer] | None = None
) -> Iterator[None]:
    """Inside the block, observers receive the inputs and outputs of modules."""
    with ExitStack() as hooks:
        for module, observer in inputs.items():
            hooks.callback(module.register_forward_pre_hook(partial(_input, observer)).remove)
        for module, observer in (outputs or {}).items():
            hooks.callback(module.register_forward_hook(partial(_output, observer)).remove)
        yield


def _input(observer: Observer, _: nn.Module, arguments: tuple[Any, ...]) -> None:
    observer(arguments[0])


def _output(observer: Observer, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
    observer(output)


@contextmanager
def mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside the block; each module's mode is restored after it.

    In training mode BN uses the statistics of the batch but does not update its buffers.
    """
    modes = [(module, module.training) for module in network.modules()]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    tracking = [norm.track_running_stats for norm in norms]
    try:
        network.train(training)
        for norm in norms if training else ():
            norm.track_running_stats = False
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
        for module, was_training in modes:
            module.training = was_training
