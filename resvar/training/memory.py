"""Whether a run can fit into the memory of its device: one that cannot is refused early."""

from __future__ import annotations

import torch

from resvar.config import Settings
from resvar.data.splits import num_classes
from resvar.errors import UserError
from resvar.limits import available_memory
from resvar.models.layout import network_layers
from resvar.training.execution import Execution


def require_memory(plan: Execution) -> None:
    """Refuse a run that needs more memory than its device has.

    Raises:
        UserError: it does, by `least_memory`.
    """
    needed, there = least_memory(plan.settings), memory_of(plan.device)
    if needed > there:
        saving = "" if plan.settings.recompute == "unit" else ", --set recompute=unit"
        raise UserError(
            f"training this network takes at least {_gigabytes(needed)} of memory, and "
            f"{plan.device} has {_gigabytes(there)}: take fewer images at a time (--set "
            f"bn_batch_size=…){saving} or a smaller network."
        )


def least_memory(settings: Settings) -> int:
    """Bytes that any implementation of an update needs: a lower bound.

    Weights, gradients and momentum, each in fp32, and of one micro-batch what the backward pass
    needs of each convolution: its output, or its normalised copy. With `recompute`, and perhaps
    with `compile`, that is only the signal between two units.
    """
    rows = network_layers(
        settings.ordering, settings.architecture, num_classes(settings), settings.input_size
    )
    units = [unit for row in rows.values() for unit in row]
    parameters = sum(layer.parameters for unit in units for layer in unit)
    if (settings.recompute, settings.compile) == ("none", "none"):
        kept = [layer for unit in units for layer in unit if layer.counts]
    else:
        kept = [unit[-1] for unit in units]
    elements = settings.bn_batch_size * sum(layer.elements for layer in kept)
    copies = 3 if settings.momentum else 2
    return 4 * copies * parameters + (2 if settings.precision == "bf16" else 4) * elements


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory; of a processor, those that this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_memory()


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
