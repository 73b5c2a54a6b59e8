"""Looking into a network without leaving a trace: hooks that go, modes that come back.

Nothing in the model knows that it is probed. What a unit adds up can be seen from outside, since
its parts are modules: the shortcut signal leaves `unit.shortcut`, the branch's output leaves
`unit.branch`, and their sum enters `unit.after_add`, even where that is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit

Look = Callable[[Tensor], None]


def units(network: ResidualNetwork) -> list[tuple[str, int, ResidualUnit]]:
    """Name, stage and module of each residual unit, in the order in which the signal meets them."""
    found = []
    for stage, held in enumerate(network.stages):
        assert isinstance(held, nn.Sequential)
        for index, unit in enumerate(held):
            assert isinstance(unit, ResidualUnit)
            found.append((f"stages.{stage}.{index}", stage, unit))
    return found


def keeps_shape(unit: ResidualUnit) -> bool:
    """Whether the shortcut is the identity."""
    return isinstance(unit.shortcut, nn.Identity)


@contextmanager
def looking(
    at_inputs: dict[nn.Module, Look] | None = None, at_outputs: dict[nn.Module, Look] | None = None
) -> Iterator[None]:
    """Show what enters and leaves modules, inside the block; the hooks go however it ends."""
    with ExitStack() as hooks:
        for module, look in (at_inputs or {}).items():
            hooks.callback(module.register_forward_pre_hook(_at_input(look)).remove)
        for module, look in (at_outputs or {}).items():
            hooks.callback(module.register_forward_hook(_at_output(look)).remove)
        yield


def _at_input(look: Look) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
        del module
        look(given[0])

    return hook


def _at_output(look: Look) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def hook(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        del module, given
        look(out)

    return hook


@contextmanager
def mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside the block, then each module's own again.

    In training mode BN takes the mean and deviation of the batch, as while a network learns, but
    notes neither down: its buffers stay as they are.
    """
    modes = [(module, module.training) for module in network.modules()]
    tracking = [
        (module, module.track_running_stats)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    try:
        network.train(training)
        for module, _ in tracking:
            # In evaluation mode BN still needs its buffers.
            module.track_running_stats = module.track_running_stats and not training
        yield
    finally:
        for module, tracked in tracking:
            module.track_running_stats = tracked
        for held, was in modes:
            held.training = was
