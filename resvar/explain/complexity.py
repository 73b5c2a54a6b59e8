"""What a network is made of and what it costs, as data: stages, layers, parameters, multiply-adds.

Rows and counts follow table 1 of the ResNet paper (arXiv:1512.03385):

* **Layers** are the convolutions of the main path and the linear layer. BN, ReLU, pooling and the
  projections of shortcuts do not count.
* **Multiply-adds** are those of every convolution, projections included, and of the linear layer,
  for one image: half of what `torch.utils.flop_counter.FlopCounterMode` calls FLOPs. So counted,
  ResNet-50 has the 4.09 G and ResNeXt-50 the 4.23 G that torchvision publishes; without
  projections they would have 3.73 G and 3.87 G.

All of it is arithmetic on the numbers of an `Architecture` and the ops of an `Ordering`: no layer
is built, and torch, whose loading alone takes seconds, is not needed. The tests hold every count
against networks that are really built, and against FlopCounterMode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from resvar.models.architecture import KERNELS, Architecture, Stage
from resvar.models.names import CLASSES, INPUT_SIZE
from resvar.models.ordering import PLACES, Ordering


@dataclass(frozen=True)
class Convolution:
    """A convolution of the main path: kernel side, channels that leave it, groups."""

    kernel: int
    channels: int
    groups: int = 1

    def __str__(self) -> str:
        groups = f", C={self.groups}" if self.groups > 1 else ""
        return f"{self.kernel}×{self.kernel}, {self.channels}{groups}"


@dataclass(frozen=True)
class StageRow:
    """A row of the stage table: the stem, the units of one resolution, or the head.

    `convolutions` are those of one unit (of the whole stem); `units` is 0 for stem and head.
    `size` is the side of the square output in pixels, `parameters` and `multiply_adds` are exact.
    """

    name: str
    size: int
    channels: int
    units: int
    convolutions: tuple[Convolution, ...]
    about: str
    """What the unit does not say: a pooling, a stride, the head's two layers."""
    layers: int
    parameters: int
    multiply_adds: int

    @property
    def unit(self) -> str:
        """One line: `[1×1, 64; 3×3, 64, C=32; 1×1, 256] × 3`."""
        inside = "; ".join(map(str, self.convolutions))
        if self.units:
            return f"[{inside}] × {self.units}"
        return ", ".join(filter(None, (inside, self.about)))

    @property
    def layers_worked_out(self) -> str:
        """`3·3`: units times convolutions; `1` for stem and head."""
        return f"{self.units}·{len(self.convolutions)}" if self.units else str(self.layers)


@dataclass(frozen=True)
class Complexity:
    """A network described: its ordering, its architecture, and the stage table."""

    ordering: Ordering
    architecture: Architecture
    num_classes: int
    input: tuple[int, int, int]
    """Channels, height, width of one image."""
    stages: tuple[StageRow, ...]

    @property
    def layers(self) -> int:
        return sum(row.layers for row in self.stages)

    @property
    def layer_sum(self) -> str:
        """The layer count as people work it out: `1 + 3·3 + 4·3 + 6·3 + 3·3 + 1 = 50`."""
        return f"{' + '.join(row.layers_worked_out for row in self.stages)} = {self.layers}"

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.stages)

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.stages)


def describe(
    ordering: Ordering, architecture: Architecture, num_classes: int | None = None
) -> Complexity:
    """The stage table of a network and its exact counts.

    Args:
        num_classes: default 1000 for the `imagenet` stem, 10 for the `cifar` stem. The stem also
            decides the image: 224×224 or 32×32.
    """
    classes = CLASSES[architecture.stem] if num_classes is None else num_classes
    size = INPUT_SIZE[architecture.stem]
    rows = tuple(_rows(ordering, architecture, classes, size))
    return Complexity(ordering, architecture, classes, (3, size, size), rows)


# --- the counting ---------------------------------------------------------------------------------


class Cost(NamedTuple):
    """Parameters and multiply-adds of a part of a network."""

    parameters: int
    multiply_adds: int = 0

    def plus(self, *others: Cost) -> Cost:
        return Cost(*(sum(counts) for counts in zip(self, *others, strict=True)))


def _conv(conv: Convolution, into: int, size: int) -> Cost:
    """A convolution without a bias: each of its weights works once per pixel that it puts out."""
    weights = conv.kernel**2 * into // conv.groups * conv.channels
    return Cost(weights, weights * size**2)


def _ops(ops: Sequence[str], channels: int) -> Cost:
    """BN has a scale and a shift per channel; ReLU has nothing."""
    return Cost(2 * channels * ops.count("bn"))


def _halved(size: int, stride: int) -> int:
    """The side of what a padded convolution with this stride puts out."""
    return (size - 1) // stride + 1


def _rows(
    ordering: Ordering, architecture: Architecture, classes: int, size: int
) -> Iterator[StageRow]:
    """Stem, stages and head, in the order in which the signal meets them."""
    pools = architecture.stem == "imagenet"
    width = architecture.stem_width
    first = Convolution(7 if pools else 3, width)
    size = _halved(size, 2 if pools else 1)
    cost = _conv(first, 3, size).plus(_ops(ordering.stem, width), _ops(ordering.lead, width))
    yield StageRow("conv1", size, width, 0, (first,), "stride 2" if pools else "", 1, *cost)
    size = _halved(size, 2 if pools else 1)
    for number, stage in enumerate(architecture.stages):
        convolutions = _convolutions(architecture, stage)
        cost = _unit(ordering, architecture, convolutions, width, size, stage.stride)
        if number == 0:  # this lead stands before the pooling, and was counted there
            cost = cost.plus(Cost(-_ops(ordering.lead, width).parameters))
        size, width = _halved(size, stage.stride), stage.out
        other = _unit(ordering, architecture, convolutions, width, size, stride=1)
        cost = Cost(
            *(one + (stage.units - 1) * more for one, more in zip(cost, other, strict=True))
        )
        about = "3×3 max pool, stride 2" if pools and number == 0 else ""
        layers = stage.units * len(convolutions)
        name = f"conv{number + 2}_x"
        yield StageRow(name, size, width, stage.units, convolutions, about, layers, *cost)
    linear = Cost(width * classes + classes, width * classes)
    about = f"average pool, {classes}-d linear"
    yield StageRow("head", 1, classes, 0, (), about, 1, *linear.plus(_ops(ordering.lead, width)))


def _convolutions(architecture: Architecture, stage: Stage) -> tuple[Convolution, ...]:
    """The convolutions of a unit's branch; groups are for the 3×3 of a bottleneck."""
    kernels = KERNELS[architecture.unit]
    inner = stage.inner if architecture.unit == "bottleneck" else stage.out
    channels = [*[inner] * (len(kernels) - 1), stage.out]
    groups = [architecture.cardinality if kernel == 3 else 1 for kernel in kernels]
    return tuple(map(Convolution, kernels, channels, groups))


def _unit(
    ordering: Ordering,
    architecture: Architecture,
    convolutions: Sequence[Convolution],
    into: int,
    size: int,
    stride: int,
) -> Cost:
    """A residual unit that takes `into` channels of `size`×`size` pixels, its lead included."""
    kernels = [conv.kernel for conv in convolutions]
    strided = kernels.index(3) if architecture.stride_on == "3x3" else 0
    out, smaller = convolutions[-1].channels, _halved(size, stride)
    parts = [_ops(ordering.trail, out), _ops(ordering.after_add, out)]
    channels = into
    for index, conv in enumerate(convolutions):
        parts.append(_ops(ordering.between if index else ordering.lead, channels))
        parts.append(_conv(conv, channels, smaller if index >= strided else size))
        channels = conv.channels
    if architecture.shortcut == "project" and (into, stride) != (out, 1):
        bn = ["bn"] if ordering.projection_has_bn else []
        parts += [_conv(Convolution(1, out), into, smaller), _ops(bn, out)]
    return Cost(0).plus(*parts)


# --- two networks ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One thing in which two networks differ.

    `stage` is a row of the stage table, or `network`; `text` says it in a few words.
    """

    stage: str
    what: str
    a: Any
    b: Any
    text: str


def differences(a: Complexity, b: Complexity) -> list[Difference]:
    """Everything in which two networks differ but their sums; empty where they are the same."""
    found = list(_choices(a, b))
    rows_a, rows_b = ({row.name: row for row in network.stages} for network in (a, b))
    for name in [row.name for row in max(a.stages, b.stages, key=len)]:
        if name in rows_a and name in rows_b:
            found += _between(name, rows_a[name], rows_b[name])
        else:
            one, other = (rows[name].units if name in rows else 0 for rows in (rows_a, rows_b))
            text = "only the first has it" if name in rows_a else "only the second has it"
            found.append(Difference(name, "units", one, other, text))
    return found


def _choices(a: Complexity, b: Complexity) -> Iterator[Difference]:
    """Settings of the whole network, and the places of the ordering."""
    for what in (
        "depth", "family", "unit", "stem", "cardinality", "base_width", "shortcut", "stride_on",
    ):  # fmt: skip
        one, other = getattr(a.architecture, what), getattr(b.architecture, what)
        if one != other:
            yield Difference("network", what, one, other, f"{what}: {one} → {other}")
    names = a.ordering.name, b.ordering.name
    if names[0] != names[1]:
        yield Difference("network", "variant", *names, f"variant: {names[0]} → {names[1]}")
    for place in PLACES:
        ops, others = list(getattr(a.ordering, place)), list(getattr(b.ordering, place))
        if ops != others:
            text = f"{place}: {' '.join(ops) or '–'} → {' '.join(others) or '–'}"
            yield Difference("network", place, ops, others, text)


def _between(name: str, a: StageRow, b: StageRow) -> Iterator[Difference]:
    """In what two rows of the same name differ."""

    def differ(what: str, one: Any, other: Any, text: str) -> Iterator[Difference]:
        if one != other:
            yield Difference(name, what, one, other, text)

    if name == "head":
        text = f"classes {a.channels} → {b.channels}"
        yield from differ("classes", a.channels, b.channels, text)
        return
    text = f"{a.units} → {b.units} units ({b.units - a.units:+d})"
    yield from differ("units", a.units, b.units, text)
    text = f"output {a.size}×{a.size} → {b.size}×{b.size}"
    yield from differ("size", a.size, b.size, text)
    text = f"channels {a.channels} → {b.channels}"
    yield from differ("channels", a.channels, b.channels, text)
    kernels = [[conv.kernel for conv in row.convolutions] for row in (a, b)]
    words = [" ".join(f"{kernel}×{kernel}" for kernel in row) for row in kernels]
    yield from differ("kernels", kernels[0], kernels[1], f"kernels {words[0]} → {words[1]}")
    if a.units and kernels[0] == kernels[1]:
        inner = [row.convolutions[0].channels for row in (a, b)]
        yield from differ("inner", inner[0], inner[1], f"inner {inner[0]} → {inner[1]}")
    groups = [max(conv.groups for conv in row.convolutions) for row in (a, b)]
    yield from differ("groups", groups[0], groups[1], f"groups {groups[0]} → {groups[1]}")
