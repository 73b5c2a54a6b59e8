"""Muon: filters step along an orthogonal matrix, all other parameters as in SGD.

The momentum of a filter, a matrix [out, in × k × k], is replaced by the matrix with the same
singular vectors and singular values near one, computed by a few products (K. Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/). No direction then dominates, and a network needs fewer
epochs. `torch.optim.Muon` does this for matrices only, one at a time; here all filters of a shape
share each product, since a deep network has dozens of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PRODUCTS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic a·x + b·x³ + c·x⁵, which takes singular values in (0, 1] to about 0.7 … 1.2."""


class Muon(torch.optim.SGD):
    """SGD, but for parameter groups with `orthogonal`, which contain filters [out, in, k, k].

    Their step is `lr · √max(1, out / (in · k²))` times the orthogonal matrix of the momentum, which
    is always Nesterov's; and weight decay takes `lr · weight_decay` of the weights themselves.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; gradients stay as they are."""
        assert closure is None
        ours = [group for group in self.param_groups if group.get("orthogonal")]
        for group in ours:
            self._orthogonal(group)
        held = [(w, w.grad) for group in ours for w in group["params"]]
        for weights, _ in held:
            weights.grad = None  # SGD passes over these
        super().step()
        for weights, gradient in held:
            weights.grad = gradient

    def _orthogonal(self, group: dict[str, Any]) -> None:
        """The step of a group of filters."""
        weights: list[Tensor] = group["params"]
        gradients = [w.grad for w in weights if w.grad is not None]
        for w in weights:
            if "momentum_buffer" not in self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        momenta = [self.state[w]["momentum_buffer"] for w in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        ahead = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        lr = group["lr"]
        if not isinstance(lr, Tensor):  # so that numbers and tensors give the same bits
            lr = torch.full((), lr, device=weights[0].device)
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        alike: dict[torch.Size, list[int]] = defaultdict(list)
        for number, w in enumerate(weights):
            alike[w.shape].append(number)
        for shape, numbers in alike.items():
            steps = orthogonal(torch.stack([ahead[n] for n in numbers]).flatten(2))
            steps = steps.mul_(-lr * _scale(shape)).view(len(numbers), *shape)
            torch._foreach_add_([weights[n] for n in numbers], list(steps))


def _scale(shape: torch.Size) -> float:
    """Makes the change of a filter's output independent of its shape."""
    return math.sqrt(max(1.0, shape[0] / shape[1:].numel()))


def orthogonal(matrices: Tensor) -> Tensor:
    """float [N, rows, columns] → for each matrix U S Vᵀ a matrix near U Vᵀ."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(PRODUCTS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x if wide else x.mT


def filters(network: nn.Module) -> list[Tensor]:
    """The weights of all convolutions but the stem's, which sees the image."""
    found: list[Tensor] = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    return found[1:]
