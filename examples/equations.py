"""Equations 3 to 8 of "Identity Mappings in Deep Residual Networks", on a chain of small units.

    python examples/equations.py

He et al. (arXiv:1603.05027) write a residual unit as y_l = h(x_l) + F(x_l) and x_{l+1} = f(y_l)
(equations 1 and 2). This file builds a chain of 54 such units, as many as ResNet-110 has, with
F(x) = B tanh(A x) instead of convolutions, h(x) = λx, and f the identity or ReLU. It evaluates both
sides of each equation in float64; autograd gives the derivatives. Read `run_chain` first.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

UNITS, WIDTH = 54, 16
Activation = Callable[[Tensor], Tensor]
Weights = list[tuple[Tensor, Tensor]]


class Chain(NamedTuple):
    """What ran through the units l … L-1."""

    signals: list[Tensor]  # x_l … x_L, one more than there are units
    branches: list[Tensor]  # F(x_l) … F(x_{L-1})


def identity(x: Tensor) -> Tensor:
    return x


def run_chain(x: Tensor, weights: Weights, scale: float = 1.0, f: Activation = identity) -> Chain:
    """Equations 1 and 2 for every unit: y = λ x + F(x), then f(y)."""
    signals, branches = [x], []
    for a, b in weights:
        branches.append(b @ torch.tanh(a @ signals[-1]))
        signals.append(f(scale * signals[-1] + branches[-1]))
    return Chain(signals, branches)


def scaled_sum(chain: Chain, scale: float) -> Tensor:
    """Σ F̂ of equation 7: each F, multiplied by the λ of the units after its own."""
    last = len(chain.branches) - 1
    return torch.stack([scale ** (last - i) * F for i, F in enumerate(chain.branches)]).sum(dim=0)


def forward_sides(chain: Chain, scale: float) -> tuple[Tensor, Tensor]:
    """Both sides of equation 7; with λ = 1 it is equation 4, and for one unit 6 and 3."""
    direct = scale ** len(chain.branches) * chain.signals[0]
    return chain.signals[-1], direct + scaled_sum(chain, scale)


def backward_sides(chain: Chain, scale: float) -> tuple[Tensor, Tensor]:
    """Both sides of equation 8; with λ = 1 it is equation 5. The loss E is a sum of squares."""
    start, end = chain.signals[0], chain.signals[-1]
    loss = end.square().sum() / 2
    at_start, at_end = torch.autograd.grad(loss, [start, end], retain_graph=True)
    (through,) = torch.autograd.grad(
        scaled_sum(chain, scale), start, grad_outputs=at_end, retain_graph=True
    )
    return at_start, scale ** len(chain.branches) * at_end + through


def difference(sides: tuple[Tensor, Tensor]) -> float:
    """Relative to the left side."""
    left, right = sides
    return float((left - right).detach().norm() / left.detach().norm())


def make_chain() -> tuple[Tensor, Weights]:
    """A signal that needs a gradient, and the weights of all units."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64) / math.sqrt(WIDTH)

    weights = [(draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)) for _ in range(UNITS)]
    return draw(WIDTH).requires_grad_(), weights


def main() -> None:
    torch.manual_seed(0)
    x, weights = make_chain()
    print("both sides of an equation differ by, relative to the left one:")
    for name, f, scale in (
        ("h = x,    f = x    (pre-activation)", identity, 1.0),
        ("h = x,    f = ReLU (original)", torch.relu, 1.0),
        ("h = 0.9x, f = x", identity, 0.9),
        ("h = 1.1x, f = x", identity, 1.1),
    ):
        chain = run_chain(x, weights, scale, f)
        forward, backward = ("(4)", "(5)") if scale == 1 else ("(7)", "(8)")
        print(
            f"{name:36} {forward} {difference(forward_sides(chain, scale)):.0e}"
            f"   {backward} {difference(backward_sides(chain, scale)):.0e}"
            f"   Πλ = {scale**UNITS:.3g}"
        )


if __name__ == "__main__":
    main()
