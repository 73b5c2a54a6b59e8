"""A network's stage table: layers, parameters, multiply-adds; and the differences between two.

Rows and counts follow table 1 of the ResNet paper (arXiv:1512.03385):

* **Layers** are the convolutions of the main path and the linear layer. BN, ReLU, pooling and the
  projections of shortcuts do not count.
* **Multiply-adds** are those of every convolution, projections included, and of the linear layer,
  for one image: half of the FLOPs of `torch.utils.flop_counter.FlopCounterMode`. By this count
  ResNet-50 has the 4.09 G and ResNeXt-50 the 4.23 G that torchvision publishes; without
  projections they would have 3.73 G and 3.87 G. With the stride of a bottleneck on the first 1×1
  instead of the 3×3, ResNet-50 has 3.86 G; the table prints 3.8 G.

All counts are sums over the layers of `resvar.models.layout`. They do not need torch, which takes
seconds to import. The tests compare them with real networks and with FlopCounterMode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import signature
from itertools import chain
from typing import Any, get_args

from resvar.files import configs
from resvar.models.architecture import CLASSES, IMAGE_SIZE, Architecture, StrideOn, plan
from resvar.models.layout import Layer, UnitLayers, network_layers
from resvar.models.names import title
from resvar.models.ordering import PLACES, Ordering
from resvar.strict_yaml import read_yaml

CHOICES = tuple(signature(plan).parameters)
"""The choices that determine an architecture: `depth`, `family` and so on."""

TABLE_1 = "arXiv:1512.03385, Table 1"
"""Where the paper prints the ImageNet family and its FLOPs, which are multiply-adds."""


class LayerSums(ABC):
    """Layers, parameters and multiply-adds of `all_layers`."""

    @abstractmethod
    def all_layers(self) -> Iterator[Layer]:
        """The layers to sum over."""

    @property
    def layers(self) -> int:
        return sum(layer.is_counted for layer in self.all_layers())

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.all_layers())

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.all_layers())


@dataclass(frozen=True)
class StageRow(LayerSums):
    """A row of the stage table: the stem, the units of one resolution, or the head."""

    name: str
    contents: tuple[UnitLayers, ...]
    """The layers of each unit; the stem and the head count as one."""
    about: str
    """A pooling, a stride, or the two layers of the head."""

    @property
    def units(self) -> int:
        """Residual units: 0 for stem and head."""
        return len(self.contents) if self.name.endswith("_x") else 0

    @property
    def main_path(self) -> UnitLayers:
        """The convolutions and the linear layer of one unit that count as layers."""
        return tuple(layer for layer in self.contents[-1] if layer.is_counted)

    @property
    def convolutions(self) -> UnitLayers:
        """The convolutions on the main path of one unit."""
        return tuple(layer for layer in self.main_path if layer.op == "conv")

    @property
    def size(self) -> int:
        """Side length of the output, in pixels."""
        return self.main_path[-1].size

    @property
    def channels(self) -> int:
        return self.main_path[-1].channels_out

    def all_layers(self) -> Iterator[Layer]:
        return chain.from_iterable(self.contents)

    @property
    def unit(self) -> str:
        """One line: `[1×1, 64; 3×3, 64, C=32; 1×1, 256] × 3`."""
        inside = "; ".join(map(conv_label, self.convolutions))
        if self.units:
            return f"[{inside}] × {self.units}"
        return ", ".join(filter(None, (inside, self.about)))

    @property
    def layer_product(self) -> str:
        """`3·3`: units times convolutions; `1` for stem and head."""
        return f"{self.units}·{len(self.main_path)}" if self.units else str(self.layers)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "output": [self.channels, self.size, self.size],
            "unit": self.unit,
            "units": self.units,
            "convolutions": [
                {"kernel": conv.kernel, "channels": conv.channels_out, "groups": conv.groups}
                for conv in self.convolutions
            ],
            "layers": self.layers,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
        }


def conv_label(conv: Layer) -> str:
    """`3×3, 64`, with groups `3×3, 64, C=32`."""
    groups = f", C={conv.groups}" if conv.groups > 1 else ""
    return f"{conv.kernel}×{conv.kernel}, {conv.channels_out}{groups}"


@dataclass(frozen=True)
class Complexity(LayerSums):
    """A network with its stage table."""

    ordering: Ordering
    architecture: Architecture
    num_classes: int
    stages: tuple[StageRow, ...]

    @classmethod
    def of(
        cls, ordering: Ordering, architecture: Architecture, num_classes: int | None = None
    ) -> Complexity:
        """The stage table of a network.

        Args:
            num_classes: default 1000 for the `imagenet` stem, 10 for the `cifar` stem. The stem
                also determines the image size: 224×224 or 32×32.
        """
        classes = CLASSES[architecture.stem] if num_classes is None else num_classes
        about = {"head": f"average pool, {classes}-d linear"}
        if architecture.stem == "imagenet":
            about |= {"conv1": "stride 2", "conv2_x": "3×3 max pool, stride 2"}
        rows = network_layers(ordering, architecture, classes).items()
        stages = (StageRow(name, contents, about.get(name, "")) for name, contents in rows)
        return cls(ordering, architecture, classes, tuple(stages))

    @property
    def input(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        size = IMAGE_SIZE[self.architecture.stem]
        return 3, size, size

    def all_layers(self) -> Iterator[Layer]:
        return chain.from_iterable(row.all_layers() for row in self.stages)

    @property
    def layer_sum(self) -> str:
        """The layer count as a sum: `1 + 3·3 + 4·3 + 6·3 + 3·3 + 1 = 50`."""
        return f"{' + '.join(row.layer_product for row in self.stages)} = {self.layers}"

    @property
    def multiply_adds_by_stride(self) -> dict[StrideOn, int]:
        """Multiply-adds with the stride on either convolution of a unit; equal for basic units."""
        places: tuple[StrideOn, ...] = get_args(StrideOn)
        choices = {place: replace(self.architecture, stride_on=place) for place in places}
        return {
            place: Complexity.of(self.ordering, choice, self.num_classes).multiply_adds
            for place, choice in choices.items()
        }

    @property
    def printed(self) -> dict[str, Any] | None:
        """The multiply-adds that table 1 of the ResNet paper prints for this network.

        An entry of `configs/complexity.yaml` (`source, multiply_adds`, for bottlenecks `stride_on`,
        and `cut` if they are not rounded); None for a network that the table does not have.
        """
        own = self.architecture
        if own.family != "imagenet" or self.num_classes != CLASSES["imagenet"]:
            return None
        if own != plan(own.depth, "imagenet", stride_on=own.stride_on):
            return None
        known = read_yaml(configs() / "complexity.yaml")["networks"][f"resnet{own.depth}"]
        entries: list[dict[str, Any]] = known["published"]
        return next(entry for entry in entries if entry["source"].endswith(TABLE_1))

    @property
    def published(self) -> dict[str, Any] | None:
        """What is `printed` of a network of bottlenecks: the stride is on their first 1×1."""
        printed = self.printed
        return printed if printed and "stride_on" in printed else None

    def as_dict(self) -> dict[str, Any]:
        """A network as plain values; the names are stable, and more may be added.

        `title, variant, depth, family, unit, stem, cardinality, base_width, shortcut, stride_on,
        num_classes, input` ([channels, height, width]), `layers, layer_sum, parameters,
        multiply_adds, multiply_adds_by_stride` (`first, 3x3`), `published` (see there), `ordering`
        (ops at `lead, between, trail, after_add`), `stem_ops, projection_has_bn`, and `stages`:
        `name, output` ([channels, height, width]), `unit` (one line), `units`, `convolutions` (of
        one unit: `kernel, channels, groups`), `layers, parameters, multiply_adds`.
        """
        architecture, ordering = self.architecture, self.ordering
        projects = architecture.shortcut == "project"
        return {
            "title": title(architecture),
            "variant": ordering.name,
            **{name: getattr(architecture, name) for name in CHOICES},
            "num_classes": self.num_classes,
            "input": list(self.input),
            "layers": self.layers,
            "layer_sum": self.layer_sum,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "multiply_adds_by_stride": self.multiply_adds_by_stride,
            "published": self.published,
            "ordering": {place: list(getattr(ordering, place)) for place in PLACES},
            "stem_ops": list(ordering.stem),
            "projection_has_bn": ordering.projection_has_bn if projects else None,
            "stages": [row.as_dict() for row in self.stages],
        }


# --- two networks ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One property in which two networks differ.

    `stage` is a row of the stage table, or `network`; `text` describes the difference briefly.
    """

    stage: str
    what: str
    a: Any
    b: Any
    text: str


def network_differences(a: Complexity, b: Complexity) -> list[Difference]:
    """All differences except those of the totals; empty for equal networks."""
    found = list(_compare("network", _network_properties(a), _network_properties(b)))
    for name, one, other in paired_rows(a, b):
        if one and other:
            found += _compare(name, _row_properties(one), _row_properties(other))
        else:
            units = one.units if one else 0, other.units if other else 0
            text = f"only the {'first' if one else 'second'} has it"
            found.append(Difference(name, "units", *units, text))
    return found


def comparison_as_dict(a: Complexity, b: Complexity) -> dict[str, Any]:
    """`networks` (two), `differences` (`stage, what, a, b, text`), and `ratios`, second / first.

    `stage` is the name of a stage or `network`.
    """
    sums = ("layers", "parameters", "multiply_adds")
    return {
        "networks": [a.as_dict(), b.as_dict()],
        "differences": [asdict(found) for found in network_differences(a, b)],
        "ratios": {name: round(getattr(b, name) / getattr(a, name), 6) for name in sums},
    }


def paired_rows(
    a: Complexity, b: Complexity
) -> Iterator[tuple[str, StageRow | None, StageRow | None]]:
    """The rows of each name; None for a network without this row."""
    rows_a, rows_b = ({row.name: row for row in network.stages} for network in (a, b))
    for row in max(a.stages, b.stages, key=len):
        yield row.name, rows_a.get(row.name), rows_b.get(row.name)


def ops_label(ops: Sequence[str]) -> str:
    """`bn relu`; a dash if there are none."""
    return " ".join(ops) or "–"


def _compare(stage: str, a: dict[str, Any], b: dict[str, Any]) -> Iterator[Difference]:
    for what, one in a.items():
        other = b[what]
        if one == other or (what == "inner" and a["kernels"] != b["kernels"]):
            continue
        label = {"size": "output"}.get(what, f"{what}:" if stage == "network" else what)
        text = f"{label} {_value_text(what, one)} → {_value_text(what, other)}"
        if what == "units":
            text = f"{one} → {other} units ({other - one:+d})"
        yield Difference(stage, what, one, other, text)


def _value_text(what: str, value: Any) -> str:
    if what == "size":
        return f"{value}×{value}"
    if what == "kernels":
        return " ".join(f"{kernel}×{kernel}" for kernel in value)
    return ops_label(value) if isinstance(value, list) else str(value)


def _network_properties(network: Complexity) -> dict[str, Any]:
    """The choices for the whole network, and the places of its ordering."""
    return {
        **{name: getattr(network.architecture, name) for name in CHOICES},
        "variant": network.ordering.name,
        **{place: list(getattr(network.ordering, place)) for place in PLACES},
    }


def _row_properties(row: StageRow) -> dict[str, Any]:
    if row.name == "head":
        return {"classes": row.channels}
    convs = row.convolutions
    return {
        "units": row.units,
        "size": row.size,
        "channels": row.channels,
        "kernels": [conv.kernel for conv in convs],
        "inner": convs[0].channels_out if row.units else None,
        "groups": max(conv.groups for conv in convs),
    }
