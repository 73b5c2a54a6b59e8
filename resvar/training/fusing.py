"""`kernels: fused`: BN, ReLU, the shortcut's and the weights' gradients in operators of our own.

`auto` takes them where they gain something and can be built, on a processor; a signal then lies in
channels_last. Their results differ from the plain ones by rounding. So what was taken is written
down, as precision is, and a run goes on with what it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from resvar.config import Settings
from resvar.errors import UserError
from resvar.kernels.build import BuildError, load
from resvar.kernels.fuse import fuse
from resvar.models.network import ResidualNetwork

Kernels = Literal["plain", "fused"]


def choose_kernels(
    settings: Settings, device: torch.device, say: Callable[[str], None] | None = None
) -> Kernels:
    """`auto` is `fused` where that can be had. Builds the operators where they are missing.

    Args:
        settings: with `precision` already `fp32` or `bf16`.
        say: told that something is built, and why `auto` is `plain` where a compiler would help.

    Raises:
        UserError: `fused` was asked for and cannot be had.
    """
    if settings.kernels == "plain":
        return "plain"
    obstacle = _obstacle(settings, device) or _too_old(settings)
    if obstacle is None:
        try:
            load(say)
            obstacle = _gain(settings)
        except BuildError as error:
            obstacle = str(error)
            if settings.kernels == "auto" and say is not None:
                say(f"Without the fused operators, which are faster: {obstacle}.")
    if obstacle is None:
        return "fused"
    if settings.kernels == "fused":
        raise UserError(f"'kernels' fused: {obstacle}; use --set kernels=plain.")
    return "plain"


def fuse_operators(
    network: ResidualNetwork, settings: Settings, device: torch.device
) -> ResidualNetwork:
    """The same network, with the fused operators where the settings have them.

    Raises:
        UserError: they cannot be had.
    """
    if settings.kernels == "fused":
        choose_kernels(settings, device)
        fuse(network)
    return network


def _obstacle(settings: Settings, device: torch.device) -> str | None:
    if device.type != "cpu":
        return "they are for the processor"
    if settings.compile != "none":
        return "they do not go with 'compile' unit, which fuses in its own way"
    if settings.memory_format == "contiguous":
        return "they need channels_last (--set memory_format=channels_last, or auto)"
    return None


def _too_old(settings: Settings) -> str | None:
    """What would come of it is known without building anything."""
    if _only_for_speed(settings) and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return NO_GAIN
    return None


def _gain(settings: Settings) -> str | None:
    """In fp32 the layout would change for the operators' sake alone, and that may cost more than BN
    and ReLU gain where the weights' gradients do not come with them."""
    if _only_for_speed(settings) and not torch.ops.resvar.takes_convolutions(torch.float32):
        return NO_GAIN
    return None


def _only_for_speed(settings: Settings) -> bool:
    return settings.kernels == settings.memory_format == "auto" and settings.precision == "fp32"


NO_GAIN = "they gain nothing in fp32 on this processor"
