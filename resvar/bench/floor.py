"""The floor: a lower bound on the time of an iteration, from its arithmetic and memory traffic.

Convolutions count by their multiply-adds (`resvar show`); BN, ReLU and additions by their passes
over memory, which read or write a whole tensor (`PASSES`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resvar.explain.complexity import Complexity
from resvar.models.architecture import Architecture
from resvar.models.layout import Layer, network_layers
from resvar.models.ordering import Ordering

PASSES = {
    "plain": {"bn": (3, 5), "relu": (2, 3), "bn relu": (5, 8), "addition": (3, 3)},
    "fused": {"bn": (3, 5), "relu": (2, 3), "bn relu": (3, 5), "addition": (3, 1)},
    "least": {"bn": (2, 3), "relu": (0, 0), "bn relu": (2, 3), "addition": (1, 0)},
}
"""Passes over a tensor, forward and backward.

* `plain`: each operator by itself. BN reads its input twice (statistics, then normalising) and
  writes once; backward reads input and gradient twice and writes once. ReLU reads and writes;
  backward reads the gradient and its output and writes. An addition reads two tensors and writes
  one; backward the gradients of its two paths are added the same way.
* `fused`: BN and a ReLU after it in one operator, which recomputes the mask; the shortcut's
  gradient is read in BN's last pass.
* `least`: every tensor once. Statistics are taken while the tensor is in the cache, a lone ReLU
  and the addition happen where the tensor is being written anyway, so that an addition reads one
  more tensor. No implementation does this; it is the bound.
"""


@dataclass(frozen=True)
class Floor:
    """One iteration: floating-point operations, and bytes moved for each key of `PASSES`."""

    batch_size: int
    flop: float
    moved: dict[str, float]

    def seconds(self, way: str, flops: float, copy: float) -> float:
        """The convolutions at the speed of a matrix product, the rest at that of a copy.

        Args:
            flops: the measured ceiling of the matrix product, FLOP/s.
            copy: bytes per second of a copy, reads plus writes.
        """
        return self.flop / flops + self.moved[way] / copy


def floor(
    ordering: Ordering, architecture: Architecture, batch_size: int, bytes_each: int = 2
) -> Floor:
    """The floor of an iteration; activations have `bytes_each` bytes (2: bf16)."""
    size = batch_size * bytes_each
    ops = list(memory_ops(ordering, architecture))
    moved = {
        way: float(size * sum(sum(passes[kind]) * elements for kind, elements in ops))
        for way, passes in PASSES.items()
    }
    return Floor(batch_size, batch_size * flop(ordering, architecture), moved)


def flop(ordering: Ordering, architecture: Architecture) -> float:
    """FLOP of training on one image: three times forward (the backward pass computes the gradients
    of inputs and of weights), two per multiply-add."""
    return 3 * 2.0 * Complexity.of(ordering, architecture).multiply_adds


def memory_ops(ordering: Ordering, architecture: Architecture) -> Iterator[tuple[str, int]]:
    """Kind (a key of `PASSES`) and elements per image of every BN, ReLU and addition, in order.

    A BN with a ReLU right after it at the same place is one operator.
    """
    rows = network_layers(ordering, architecture, num_classes=1).values()
    layers = [layer for units in rows for unit in units for layer in unit]
    for before, layer, after in zip(layers, layers[1:], layers[2:], strict=False):
        if layer.op == "add":
            yield "addition", layer.elements
        elif layer.op == "bn":
            yield "bn relu" if _is_pair(layer, after) else "bn", layer.elements
        elif layer.op == "relu" and not _is_pair(before, layer):
            yield "relu", layer.elements


def _is_pair(bn: Layer, relu: Layer) -> bool:
    return (bn.op, relu.op) == ("bn", "relu") and bn.place == relu.place
