"""The identity test: equations 4 and 5 of arXiv:1603.05027, checked on a network.

Where the shortcut is the identity and nothing follows the addition, units l … L-1 give

    x_L = x_l + F_l + … + F_(L-1)                                    (4)
    dE/dx_l = dE/dx_L (1 + d/dx_l (F_l + … + F_(L-1)))               (5)

The F are the outputs of the branches; autograd gives the derivatives. Equation 4 must hold for each
element up to rounding (Higham, *Accuracy and Stability of Numerical Algorithms*, section 4.2): the
error of a sum of n + 1 numbers a, in any order, is at most n u / (1 - n u) times the sum of |a|,
with the unit roundoff u; here two sums are compared. Equation 5 has no such bound: its difference
is relative to the size of its terms.

A unit that changes the shape has no identity shortcut (h(x) ≠ x in the paper), so it separates two
chains of units: a CIFAR network has three. In each chain equation 4 is checked from every unit to
the end, equation 5 from the first, the middle and the last unit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit
from resvar.probes.hooks import Observer, keeps_shape, mode, observing, units
from resvar.probes.measurements import Identity

PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64}


def check_identity(network: ResidualNetwork, images: Tensor, labels: Tensor) -> Identity:
    """Check both equations in fp32 and fp64; BN uses the statistics of these images.

    Args:
        images: float [N, 3, H, W], normalised; a few suffice, since the equations hold for
            every element or not at all.
        labels: int64 [N].
    """
    forward, relative = dict[str, float](), dict[str, float]()
    backward: dict[str, float | None] = {}
    chains: list[_Chain] = []
    for name, dtype in PRECISIONS.items():
        chains, loss = _run_chains(copy.deepcopy(network).to(dtype), images.to(dtype), labels)
        deviations = [_forward_deviation(chain) for chain in chains]
        forward[name] = max((by_bound for by_bound, _ in deviations), default=0.0)
        relative[name] = max((by_norm for _, by_norm in deviations), default=0.0)
        found = [_backward_deviation(chain, loss) for chain in chains]
        backward[name] = max((value for value in found if value is not None), default=None)
    return Identity(
        images=len(labels),
        chains=len(chains),
        longest=max((len(chain.units) for chain in chains), default=0),
        forward=forward,
        forward_relative=relative,
        backward=backward,
    )


@dataclass
class _Chain:
    """Consecutive units with identity shortcuts: their inputs x_l, their F, and their outputs."""

    units: list[ResidualUnit] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    branches: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def _run_chains(
    network: ResidualNetwork, images: Tensor, labels: Tensor
) -> tuple[list[_Chain], Tensor]:
    """The chains with their signals, still in autograd's graph, and the loss."""
    chains = [_Chain()]
    inputs: dict[nn.Module, Observer] = {}
    outputs: dict[nn.Module, Observer] = {}
    for _, _, unit in units(network):
        if not keeps_shape(unit):
            chains.append(_Chain())
            continue
        chain = chains[-1]
        chain.units.append(unit)
        inputs[unit] = chain.inputs.append
        outputs |= {unit.branch: chain.branches.append, unit: chain.outputs.append}
    with mode(network, training=True), observing(inputs, outputs):
        logits = network(images.requires_grad_())
    return [chain for chain in chains if chain.units], F.cross_entropy(logits, labels)


@torch.no_grad()
def _forward_deviation(chain: _Chain) -> tuple[float, float]:
    """The largest deviation from equation 4 over all l, relative to the rounding bound and norm."""
    end = chain.outputs[-1]
    end_norm = float(torch.linalg.vector_norm(end, dtype=torch.float64))
    total, size = torch.zeros_like(end), torch.zeros_like(end, dtype=torch.float64)
    roundoff = torch.finfo(end.dtype).eps / 2
    by_bound = by_norm = 0.0
    # From the last unit to the first: the network adds in the other direction.
    for terms, (x, branch) in enumerate(
        zip(reversed(chain.inputs), reversed(chain.branches), strict=True), start=1
    ):
        total, size = total + branch, size + branch.abs()
        deviation = (end - (x + total)).double()
        allowed = 2 * terms * roundoff / (1 - terms * roundoff) * (size + x.abs())
        by_bound = max(by_bound, float((deviation.abs() / allowed.clamp_min(1e-30)).max()))
        by_norm = max(by_norm, float(torch.linalg.vector_norm(deviation)) / max(end_norm, 1e-30))
    return by_bound, by_norm


def _backward_deviation(chain: _Chain, loss: Tensor) -> float | None:
    """The largest deviation from equation 5 relative to its terms; None without a gradient."""
    last = len(chain.inputs) - 1
    starts = sorted({0, last // 2, last})
    *gradients, end = torch.autograd.grad(
        loss, [*(chain.inputs[at] for at in starts), chain.outputs[-1]], retain_graph=True
    )
    deviations = []
    for at, gradient in zip(starts, gradients, strict=True):
        branches = torch.stack(chain.branches[at:]).sum(dim=0)
        (through,) = torch.autograd.grad(
            branches, chain.inputs[at], grad_outputs=end, retain_graph=True
        )
        if size := float(end.norm() + through.norm()):
            deviations.append(float((gradient - (end + through)).norm()) / size)
    return max(deviations, default=None)
