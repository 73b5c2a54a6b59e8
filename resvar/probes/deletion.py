"""Taking one unit away at a time from a trained network (Veit et al. 2016, arXiv:1605.06431).

To delete a unit is to silence its branch: the shortcut signal goes on alone, through whatever
stands after the addition. So in an ordering with an after_add, the ReLU or BN there stays where it
is; in one without, the unit is simply not there. A unit that changes the shape keeps the shortcut
that does so, padding or projection. BN keeps its running statistics; nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit
from resvar.probes.findings import Deletion
from resvar.probes.hooks import looking, mode, units
from resvar.training.execution import Execution

AT_A_TIME = 128
"""Images; their signal is kept at the input of every unit."""


@torch.no_grad()
def delete_units(
    network: ResidualNetwork, images: Tensor, labels: Tensor, plan: Execution
) -> Deletion:
    """The error on `images` of the network, and of it without each of its units.

    Each deletion starts from the signal at the deleted unit, which is that of the whole network.

    Args:
        images: float [N, 3, H, W], normalised, on the network's device.
        labels: int64 [N].
        plan: for its precision, `fp32` or `bf16`.
    """
    parts = [unit for _, _, unit in units(network)]
    wrong = [0] * len(parts)
    wrong_whole = 0
    network = plan.to_device(network)
    with mode(network, training=False), plan.autocast():
        for some, theirs in zip(
            torch.split(images, AT_A_TIME), torch.split(labels, AT_A_TIME), strict=True
        ):
            inputs: list[Tensor] = []
            with looking(at_inputs=dict.fromkeys(parts, inputs.append)):
                logits = network(some.contiguous(memory_format=plan.memory_format))
            wrong_whole += _wrong(logits, theirs)
            for index, signal in enumerate(inputs):
                wrong[index] += _wrong(_without(network, parts, index, signal), theirs)
    total = len(labels)
    return Deletion(
        images=total,
        precision="bf16" if plan.settings.precision == "bf16" else "fp32",
        error=100.0 * wrong_whole / total,
        errors=[100.0 * count / total for count in wrong],
    )


def _without(
    network: ResidualNetwork, parts: Sequence[ResidualUnit], index: int, signal: Tensor
) -> Tensor:
    """The logits when the unit at `index`, which `signal` is about to enter, has no branch."""
    with looking(at_outputs={parts[index].branch: _silence}):
        signal = parts[index](signal)
    for unit in parts[index + 1 :]:
        signal = unit(signal)
    return network.forward_head(signal)


def _silence(signal: Tensor) -> None:
    signal.zero_()


def _wrong(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) != labels).sum())
