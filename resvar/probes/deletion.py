"""Deletion of single units from a trained network (Veit et al. 2016, arXiv:1605.06431).

Deleting a unit zeroes its branch, so only the shortcut signal enters `after_add`. Without an
`after_add` the unit becomes the identity. A unit that changes the shape keeps its padding or
projection. BN uses its running statistics; nothing is retrained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit
from resvar.probes.hooks import mode, observing, units
from resvar.probes.measurements import Deletion
from resvar.training.execution import Execution

DELETION_BATCH = 128
"""Images per batch: the input of every unit stays in memory."""


@torch.no_grad()
def delete_units(
    network: ResidualNetwork, images: Tensor, labels: Tensor, plan: Execution
) -> Deletion:
    """The error on `images` of the whole network, and without each of its units.

    A deletion starts from the input of the deleted unit, recorded in the whole network.

    Args:
        images: float [N, 3, H, W], normalised, on the network's device.
        labels: int64 [N].
        plan: for its precision, `fp32` or `bf16`.
    """
    members = [unit for _, _, unit in units(network)]
    wrong, wrong_whole = [0] * len(members), 0
    network = plan.to_device(network)
    batches = zip(*(torch.split(of, DELETION_BATCH) for of in (images, labels)), strict=True)
    with mode(network, training=False), plan.autocast():
        for some, classes in batches:
            inputs: list[Tensor] = []
            with observing(dict.fromkeys(members, inputs.append)):
                logits = network(some.contiguous(memory_format=plan.memory_format))
            wrong_whole += _count_wrong(logits, classes)
            for index, signal in enumerate(inputs):
                wrong[index] += _count_wrong(_without(network, members[index:], signal), classes)
    total = len(labels)
    return Deletion(
        images=total,
        precision="bf16" if plan.settings.precision == "bf16" else "fp32",
        error=100.0 * wrong_whole / total,
        errors=[100.0 * count / total for count in wrong],
    )


def _without(network: ResidualNetwork, rest: Sequence[ResidualUnit], signal: Tensor) -> Tensor:
    """The logits for the input of `rest[0]`, whose branch is zeroed."""
    with observing({}, {rest[0].branch: Tensor.zero_}):
        signal = rest[0](signal)
    for unit in rest[1:]:
        signal = unit(signal)
    return network.forward_head(signal)


def _count_wrong(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) != labels).sum())
