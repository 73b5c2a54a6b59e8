"""The floor: the least time of an iteration, from what must be computed and what must be moved.

The convolutions' multiply-adds are those of `resvar show`. What BN, ReLU and additions move is
counted in passes: reads and writes of the whole tensor that they work on. `PASSES` states them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from resvar.explain.complexity import describe
from resvar.models.architecture import KERNELS, Architecture
from resvar.models.names import INPUT_SIZE
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
class Part:
    """An operator (`bn`, `relu`, `bn relu`, `addition`) and the elements it works on, per image."""

    kind: str
    elements: int


@dataclass(frozen=True)
class Floor:
    """Of one iteration: floating-point operations, and bytes moved by way of doing it."""

    batch_size: int
    flop: float
    moved: dict[str, float]

    def seconds(self, way: str, flops: float, copy: float) -> float:
        """The least time: the convolutions at the ceiling, then the rest at the speed of a copy.

        Args:
            flops: the ceiling of the matrix product, FLOP/s.
            copy: bytes per second of a copy, what it reads and what it writes added up.
        """
        return self.flop / flops + self.moved[way] / copy


def floor(
    ordering: Ordering, architecture: Architecture, batch_size: int, bytes_each: int = 2
) -> Floor:
    """The work of an iteration; activations of `bytes_each` bytes (2: bf16)."""
    images = batch_size * bytes_each
    parts = list(parts_of(ordering, architecture))
    moved = {
        way: float(images * sum(sum(passes[part.kind]) * part.elements for part in parts))
        for way, passes in PASSES.items()
    }
    return Floor(batch_size, batch_size * flop(ordering, architecture), moved)


def flop(ordering: Ordering, architecture: Architecture) -> float:
    """Of training on one image: forward, and backward as much for the inputs' gradients and as
    much for the weights'. A multiply-add is two."""
    return 3 * 2.0 * describe(ordering, architecture).multiply_adds


def parts_of(ordering: Ordering, architecture: Architecture) -> Iterator[Part]:
    """Every BN, ReLU and addition of a network of the CIFAR stem, in the signal's order."""
    size, width = INPUT_SIZE[architecture.stem], architecture.stem_width
    yield from _ops(ordering.stem, width * size**2)
    yield from _ops(ordering.lead, width * size**2)
    kernels = KERNELS[architecture.unit]
    strided = kernels.index(3) if architecture.stride_on == "3x3" else 0
    for number, stage in enumerate(architecture.stages):
        inner = stage.inner if architecture.unit == "bottleneck" else stage.out
        for index in range(stage.units):
            stride = stage.stride if index == 0 else 1
            smaller = (size - 1) // stride + 1
            if (number, index) != (0, 0):
                yield from _ops(ordering.lead, width * size**2)
            for after in range(len(kernels) - 1):
                side = smaller if after >= strided else size
                yield from _ops(ordering.between, inner * side**2)
            out = stage.out * smaller**2
            yield from _ops(ordering.trail, out)
            changes = (width, stride) != (stage.out, 1)
            if changes and architecture.shortcut == "project" and ordering.projection_has_bn:
                yield Part("bn", out)
            yield Part("addition", out)
            yield from _ops(ordering.after_add, out)
            size, width = smaller, stage.out
    yield from _ops(ordering.lead, width * size**2)


def _ops(names: Sequence[str], elements: int) -> Iterator[Part]:
    """A BN with a ReLU right after it is one part."""
    rest = list(names)
    while rest:
        kind = "bn relu" if rest[:2] == ["bn", "relu"] else rest[0]
        del rest[: len(kind.split())]
        yield Part(kind, elements)
