"""What a network is made of and what it costs, as data: stages, layers, parameters, multiply-adds.

Rows and counts follow table 1 of the ResNet paper (arXiv:1512.03385):

* **Layers** are the convolutions of the main path and the linear layer. BN, ReLU, pooling and the
  projections of shortcuts do not count.
* **Multiply-adds** are those of every convolution, projections included, and of the linear layer,
  for one image: half of what `torch.utils.flop_counter.FlopCounterMode` calls FLOPs. So counted,
  ResNet-50 has the 4.09 G and ResNeXt-50 the 4.23 G that torchvision publishes; without
  projections they would have 3.73 G and 3.87 G.

Nothing is computed: what goes through the network is a batch of no images, which has a shape and no
numbers. The tests hold the counts against FlopCounterMode; here it would cost more than a second,
since it loads torch's compiler (and so does the meta device).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resvar.models.architecture import Architecture
from resvar.models.names import CLASSES, INPUT_SIZE
from resvar.models.network import ResidualNetwork
from resvar.models.ordering import PLACES, Ordering
from resvar.models.unit import ResidualUnit


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
    """The stage table of a network and its exact counts; any depth takes a moment.

    Args:
        num_classes: default 1000 for the `imagenet` stem, 10 for the `cifar` stem. The stem also
            decides the image: 224×224 or 32×32.
    """
    classes = CLASSES[architecture.stem] if num_classes is None else num_classes
    size = INPUT_SIZE[architecture.stem]
    # All units of a stage but its first are alike, so two of them say everything about a thousand.
    short = tuple(replace(stage, units=min(stage.units, 2)) for stage in architecture.stages)
    with _NothingDrawn():
        network = ResidualNetwork(ordering, replace(architecture, stages=short), classes).eval()
    with torch.no_grad():
        rows = tuple(_rows(network, architecture, torch.empty(0, 3, size, size)))
    return Complexity(ordering, architecture, classes, (3, size, size), rows)


def _rows(
    network: ResidualNetwork, architecture: Architecture, images: Tensor
) -> Iterator[StageRow]:
    """Stem, stages and head of the shortened `network`, each measured on what the last put out."""
    stem = nn.Sequential(network.stem, network.first_lead)
    pools = isinstance(network.pool, nn.MaxPool2d)
    signal, cost = _run(stem, images)
    yield StageRow(
        "conv1", signal.shape[-1], signal.shape[1], 0, _convolutions(network.stem),
        "stride 2" if pools else "", 1, _parameters(stem), cost,
    )  # fmt: skip
    signal = network.pool(signal)
    for number, (stage, units) in enumerate(zip(architecture.stages, network.stages, strict=True)):
        parameters = multiply_adds = 0
        convolutions: tuple[Convolution, ...] = ()
        for index, unit in enumerate(units.children()):
            assert isinstance(unit, ResidualUnit)
            convolutions = _convolutions(unit.branch)
            signal, cost = _run(unit, signal)
            alike = stage.units - 1 if index else 1
            parameters += alike * _parameters(unit)
            multiply_adds += alike * cost
        yield StageRow(
            f"conv{number + 2}_x", signal.shape[-1], signal.shape[1], stage.units, convolutions,
            "3×3 max pool, stride 2" if pools and number == 0 else "",
            stage.units * len(convolutions), parameters, multiply_adds,
        )  # fmt: skip
    head = nn.Sequential(network.head_lead, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head.append(network.classifier)
    logits, cost = _run(head, signal)
    classes = logits.shape[1]
    about = f"average pool, {classes}-d linear"
    yield StageRow("head", 1, classes, 0, (), about, 1, _parameters(head), cost)


def _run(part: nn.Module, signal: Tensor) -> tuple[Tensor, int]:
    """What a part puts out, and its multiply-adds."""
    costs: list[int] = []

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        # Each number put out is a sum over one row of the weights: in/groups × kernel², or in.
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        costs.append(output.shape[1:].numel() * layer.weight[0].numel())

    layers = [layer for layer in part.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    output: Tensor = part(signal)
    for hook in hooks:
        hook.remove()
    return output, sum(costs)


def _parameters(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _convolutions(branch: nn.Sequential) -> tuple[Convolution, ...]:
    """The convolutions that stand in a branch, or in the stem."""
    return tuple(
        Convolution(part.kernel_size[0], part.out_channels, part.groups)
        for part in branch
        if isinstance(part, nn.Conv2d)
    )


class _NothingDrawn(TorchFunctionMode):
    """Leaves weights as the memory holds them: who only asks for shapes need not wait for them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


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
