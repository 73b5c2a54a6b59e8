"""The layers of a unit and of a network, in the order in which the signal meets them. No torch.

This is the only description of the structure: `unit` and `network` build modules from it,
`resvar show` counts and draws it, `resvar bench --floor` adds up its memory traffic.

A layer's place is one of an ordering's four lists (`lead`, `between`, `trail`, `after_add`), or
`conv`, `shortcut`, `addition`; outside the units it is `stem`, `first_lead`, `pool`, `head_lead`,
`average_pool`, `classifier`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from resvar.models.architecture import IMAGE_SIZE, KERNELS, Architecture, Stage
from resvar.models.ordering import Ordering

BRANCH = ("conv", "between", "trail")
"""The places of a unit's branch."""


class Layer(NamedTuple):
    """One operation on a signal [N, channels_in, H, W] → [N, channels_out, size, size].

    An addition has the channels of its sum; `pad` is option A of the ResNet paper.
    """

    place: str
    op: str
    """`conv`, `bn`, `relu`, `add`, `pad`, `max`, `mean` or `linear`."""
    channels_in: int
    channels_out: int
    size: int
    """Side length of the output, in pixels."""
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    @property
    def is_counted(self) -> bool:
        """Whether the papers count it as a layer: on the main path, with weights."""
        return self.op in ("conv", "linear") and self.place != "shortcut"

    @property
    def parameters(self) -> int:
        """Weights; scale and shift of BN; the bias of the linear layer."""
        if self.op == "bn":
            return 2 * self.channels_out
        return self._weights + (self.channels_out if self.op == "linear" else 0)

    @property
    def multiply_adds(self) -> int:
        """Each weight is used once per pixel of the output."""
        return self._weights * self.size**2

    @property
    def elements(self) -> int:
        """Elements of the output, per image."""
        return self.channels_out * self.size**2

    @property
    def _weights(self) -> int:
        if self.op not in ("conv", "linear"):
            return 0
        return self.kernel**2 * self.channels_in // self.groups * self.channels_out


UnitLayers = tuple[Layer, ...]


def network_layers(
    ordering: Ordering,
    architecture: Architecture,
    num_classes: int,
    image_size: int | None = None,
) -> dict[str, tuple[UnitLayers, ...]]:
    """The rows of a network's stage table (arXiv:1512.03385, table 1), each with its units.

    `conv1` (stem, first lead, pooling) and `head` are rows of one unit; `conv2_x` and so on are
    the stages. The first lead comes before the split of the first unit (arXiv:1603.05027,
    appendix) and, in the ImageNet stem, before the pooling.

    Args:
        image_size: side length in pixels; default: the size that the stem is designed for.
    """
    stem = tuple(_stem(ordering, architecture, image_size or IMAGE_SIZE[architecture.stem]))
    rows: dict[str, tuple[UnitLayers, ...]] = {"conv1": (stem,)}
    before = stem[-1]
    for number, stage in enumerate(architecture.stages):
        units = []
        for index in range(stage.units):
            stride = stage.stride if index == 0 else 1
            unit = unit_layers(
                ordering, architecture, stage, before.channels_out, before.size, stride
            )
            if (number, index) == (0, 0):
                unit = tuple(layer for layer in unit if layer.place != "lead")
            units.append(unit)
            before = unit[-1]
        rows[f"conv{number + 2}_x"] = tuple(units)
    width = before.channels_out
    rows["head"] = (
        (
            *_ops("head_lead", ordering.lead, width, before.size),
            Layer("average_pool", "mean", width, width, 1, before.size),
            Layer("classifier", "linear", width, num_classes, 1),
        ),
    )
    return rows


def unit_layers(
    ordering: Ordering,
    architecture: Architecture,
    stage: Stage,
    channels_in: int,
    size: int,
    stride: int = 1,
) -> UnitLayers:
    """A residual unit: lead, branch, shortcut where the shape changes, addition, `after_add`.

    Args:
        channels_in, size: channels of the input, and its side length in pixels.
    """
    branch = tuple(_branch(ordering, architecture, stage, channels_in, size, stride))
    out, smaller = stage.out, branch[-1].size
    shortcut: list[Layer] = []
    if (channels_in, stride) != (out, 1):
        projects = architecture.shortcut == "project"
        op = "conv" if projects else "pad"
        shortcut = [Layer("shortcut", op, channels_in, out, smaller, 1, stride)]
        if projects and ordering.projection_has_bn:
            shortcut.append(Layer("shortcut", "bn", out, out, smaller))
    return (
        *_ops("lead", ordering.lead, channels_in, size),
        *branch,
        *shortcut,
        Layer("addition", "add", out, out, smaller),
        *_ops("after_add", ordering.after_add, out, smaller),
    )


def _branch(
    ordering: Ordering,
    architecture: Architecture,
    stage: Stage,
    channels: int,
    size: int,
    stride: int,
) -> Iterator[Layer]:
    """The convolutions, `between` them, and `trail` after the last; only the 3×3 has groups."""
    kernels = KERNELS[architecture.unit]
    strided = kernels.index(3) if architecture.stride_on == "3x3" else 0
    widths = [stage.inner] * (len(kernels) - 1) + [stage.out]
    for index, (kernel, width) in enumerate(zip(kernels, widths, strict=True)):
        if index:
            yield from _ops("between", ordering.between, channels, size)
        groups = architecture.cardinality if kernel == 3 else 1
        step = stride if index == strided else 1
        conv = _conv("conv", channels, width, size, kernel, step, groups)
        yield conv
        channels, size = width, conv.size
    yield from _ops("trail", ordering.trail, channels, size)


def _stem(ordering: Ordering, architecture: Architecture, size: int) -> Iterator[Layer]:
    """The first convolution, the ops that the lead leaves over, the first lead, pooling."""
    imagenet = architecture.stem == "imagenet"
    width = architecture.stem_width
    conv = _conv("stem", 3, width, size, 7 if imagenet else 3, 2 if imagenet else 1)
    yield conv
    yield from _ops("stem", ordering.stem, width, conv.size)
    yield from _ops("first_lead", ordering.lead, width, conv.size)
    if imagenet:
        yield Layer("pool", "max", width, width, _reduced(conv.size, 2), 3, 2)


def _conv(
    place: str, channels: int, out: int, size: int, kernel: int, stride: int = 1, groups: int = 1
) -> Layer:
    return Layer(place, "conv", channels, out, _reduced(size, stride), kernel, stride, groups)


def _reduced(size: int, stride: int) -> int:
    """Side length after a padded convolution or pooling with this stride."""
    return (size - 1) // stride + 1


def _ops(place: str, ops: Sequence[str], channels: int, size: int) -> Iterator[Layer]:
    return (Layer(place, op, channels, channels, size) for op in ops)
