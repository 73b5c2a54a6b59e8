"""Whether a run can fit into the memory of its device: one that cannot is refused early."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from resvar.data.splits import num_classes
from resvar.errors import UserError
from resvar.limits import available_memory
from resvar.models.layout import Layer, network_layers
from resvar.training.execution import Execution


def require_memory(plan: Execution) -> None:
    """Refuse a run that needs more memory than its device has.

    Raises:
        UserError: it does, by `least_memory`.
    """
    needed, there = least_memory(plan), memory_of(plan.device)
    if needed > there:
        saving = "" if plan.settings.recompute == "unit" else ", --set recompute=unit"
        whole = plan.images_at_once > plan.settings.bn_batch_size  # a pass takes the whole batch
        fewer = "kernels=plain" if whole else "bn_batch_size=…"
        raise UserError(
            f"training this network takes at least {_gigabytes(needed)} of memory, and "
            f"{plan.device} has {_gigabytes(there)}: use fewer images at a time (--set "
            f"{fewer}){saving} or a smaller network."
        )


def least_memory(plan: Execution) -> int:
    """Bytes that an update needs: a lower bound.

    Weights, gradients and momentum, each in fp32, and the signals of one forward pass that the
    backward pass needs. With `recompute`, and perhaps with `compile`, they are those between two
    units.
    """
    settings = plan.settings
    rows = network_layers(
        settings.ordering, settings.architecture, num_classes(settings), settings.input_size
    )
    units = [unit for row in rows.values() for unit in row]
    layers = [layer for unit in units for layer in unit]
    if (settings.recompute, settings.compile) != ("none", "none"):
        kept = [unit[-1] for unit in units]
    elif settings.kernels == "fused":  # an operator computes its BN and ReLU again
        kept = [layer for layer in layers if layer.is_counted]
    else:
        kept = _kept_by_torch([layer for layer in layers if layer.place != "shortcut"])
    elements = plan.images_at_once * sum(layer.elements for layer in kept)
    parameters = sum(layer.parameters for layer in layers)
    copies = 3 if settings.momentum else 2
    return 4 * copies * parameters + (2 if settings.precision == "bf16" else 4) * elements


def _kept_by_torch(path: Sequence[Layer]) -> list[Layer]:
    """The layers whose output is kept: convolution and BN keep their input, ReLU its output."""
    return [
        layer
        for layer, following in pairwise(path)
        if layer.op == "relu" or following.op in ("conv", "bn")
    ]


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory; for a processor, what this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_memory()


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
