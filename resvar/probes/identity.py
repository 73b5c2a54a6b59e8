"""The identity test: equations 4 and 5 of arXiv:1603.05027, put to a network.

Where the shortcut is the identity and nothing stands after the addition, units l … L-1 give

    x_L = x_l + F_l + … + F_(L-1)                                    (4)
    dE/dx_l = dE/dx_L (1 + d/dx_l (F_l + … + F_(L-1)))               (5)

Both are checked as they stand, on what a network really computes: the F are what the branches put
out, the derivatives are autograd's. Equation 4 holds element by element up to rounding, for which
there is a bound (Higham, *Accuracy and Stability of Numerical Algorithms*, section 4.2): a sum of
n + 1 numbers a in any order is off by at most n u / (1 - n u) times the sum of |a|, u being the
unit of rounding, and two sums are compared here. For equation 5 there is no such bound, so the
difference is set against the size of its terms.

A unit that changes the shape has no identity shortcut (h(x) ≠ x in the paper's terms), so each
ends one chain of units and begins the next after it: three chains in a CIFAR network. In each,
equation 4 is checked from every unit to the chain's end, equation 5 from the first, the middle and
the last unit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit
from resvar.probes.findings import Identity
from resvar.probes.hooks import Look, keeps_shape, looking, mode, units

PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64}


@dataclass
class _Chain:
    """Consecutive units with identity shortcuts: their inputs x_l, their F, and the output x_L."""

    units: list[ResidualUnit]
    inputs: list[Tensor] = field(default_factory=list)
    branches: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def check_identity(network: ResidualNetwork, images: Tensor, labels: Tensor) -> Identity:
    """Put both equations to a network, in fp32 and fp64, BN with the statistics of these images.

    Args:
        images: float [N, 3, H, W], normalised; a few are enough, since the equations hold for
            every single value or do not hold.
        labels: int64 [N].
    """
    forward, relative, backward = {}, {}, {}
    chains: list[_Chain] = []
    for name, dtype in PRECISIONS.items():
        twin = copy.deepcopy(network).to(dtype)
        chains, loss = _run(twin, images.to(dtype), labels)
        found = [_forward(chain) for chain in chains]
        forward[name] = max((by_bound for by_bound, _ in found), default=0.0)
        relative[name] = max((by_norm for _, by_norm in found), default=0.0)
        offs = [_backward(chain, loss) for chain in chains]
        known = [off for off in offs if off is not None]
        backward[name] = max(known) if known else None
    return Identity(
        images=len(labels),
        chains=len(chains),
        longest=max((len(chain.units) for chain in chains), default=0),
        forward=forward,
        forward_relative=relative,
        backward=backward,
    )


def _run(network: ResidualNetwork, images: Tensor, labels: Tensor) -> tuple[list[_Chain], Tensor]:
    """Pass images through; what each chain saw, as part of autograd's graph, and the loss."""
    chains = _chains(network)
    at_inputs: dict[nn.Module, Look] = {}
    at_outputs: dict[nn.Module, Look] = {}
    for chain in chains:
        for unit in chain.units:
            at_inputs[unit] = chain.inputs.append
            at_outputs |= {unit.branch: chain.branches.append, unit: chain.outputs.append}
    with mode(network, training=True), looking(at_inputs, at_outputs):
        logits = network(images.requires_grad_())
    return chains, F.cross_entropy(logits, labels)


def _chains(network: ResidualNetwork) -> list[_Chain]:
    chains: list[_Chain] = []
    open_chain = False
    for _, _, unit in units(network):
        if keeps_shape(unit):
            if not open_chain:
                chains.append(_Chain([]))
            chains[-1].units.append(unit)
        open_chain = keeps_shape(unit)
    return chains


@torch.no_grad()
def _forward(chain: _Chain) -> tuple[float, float]:
    """The largest deviation from equation 4 over all l: by the bound of rounding, and by norm."""
    end = chain.outputs[-1]
    total, size = torch.zeros_like(end), torch.zeros_like(end, dtype=torch.float64)
    unit_of_rounding = torch.finfo(end.dtype).eps / 2
    by_bound = by_norm = 0.0
    # From the last unit to the first: another order than the network's own.
    for terms, (x, branch) in enumerate(
        zip(reversed(chain.inputs), reversed(chain.branches), strict=True), start=1
    ):
        total, size = total + branch, size + branch.abs()
        deviation = (end - (x + total)).double()
        allowed = 2 * terms * unit_of_rounding / (1 - terms * unit_of_rounding) * (size + x.abs())
        by_bound = max(by_bound, float((deviation.abs() / allowed.clamp_min(1e-30)).max()))
        norm = float(torch.linalg.vector_norm(end, dtype=torch.float64))
        by_norm = max(by_norm, float(torch.linalg.vector_norm(deviation)) / max(norm, 1e-30))
    return by_bound, by_norm


def _backward(chain: _Chain, loss: Tensor) -> float | None:
    """The largest deviation from equation 5, by the norms of its two terms; None: no gradient."""
    last = len(chain.inputs) - 1
    starts = sorted({0, last // 2, last})
    *ours, end = torch.autograd.grad(
        loss, [*(chain.inputs[at] for at in starts), chain.outputs[-1]], retain_graph=True
    )
    largest = None
    for at, gradient in zip(starts, ours, strict=True):
        branches = torch.stack(chain.branches[at:]).sum(dim=0)
        (through,) = torch.autograd.grad(
            branches, chain.inputs[at], grad_outputs=end, retain_graph=True
        )
        size = float(end.norm() + through.norm())
        if size:
            off = float((gradient - (end + through)).norm()) / size
            largest = off if largest is None else max(largest, off)
    return largest
