"""The numbers that define a network of a family, depth and group count. No layers, no torch.

The families differ only in data: units per stage, widths, stem. CIFAR networks follow
arXiv:1512.03385 section 4.2 and arXiv:1603.05027; ImageNet networks arXiv:1512.03385 table 1;
ResNeXt arXiv:1611.05431.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from resvar.errors import UserError

Family = Literal["cifar", "imagenet"]
UnitKind = Literal["basic", "bottleneck"]
Shortcut = Literal["pad", "project"]
StrideOn = Literal["first", "3x3"]

KERNELS: dict[UnitKind, tuple[int, ...]] = {"basic": (3, 3), "bottleneck": (1, 3, 1)}
"""Kernel sizes of the convolutions of a unit's branch."""

EXPANSION: dict[UnitKind, int] = {"basic": 1, "bottleneck": 4}
"""Output channels of a unit per channel of the stage's width."""

PUBLISHED_CIFAR: dict[int, UnitKind] = {
    20: "basic", 32: "basic", 44: "basic", 56: "basic", 110: "basic", 1202: "basic",
    164: "bottleneck", 1001: "bottleneck",
}  # fmt: skip

IMAGENET: dict[int, tuple[UnitKind, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}

CLASSES: dict[Family, int] = {"cifar": 10, "imagenet": 1000}
"""Number of classes in the dataset that a stem is designed for."""

IMAGE_SIZE: dict[Family, int] = {"cifar": 32, "imagenet": 224}
"""Side length, in pixels, of the images that a stem is designed for."""

DEEPEST = 10_000
"""A larger depth is taken for a typo."""


@dataclass(frozen=True)
class Stage:
    """The units of one resolution: number, inner and output channels, stride of the first."""

    units: int
    inner: int
    out: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """The numbers that define a network, with every choice made."""

    family: Family
    depth: int
    unit: UnitKind
    stem: Family
    stem_width: int
    stages: tuple[Stage, ...]
    cardinality: int
    base_width: int
    shortcut: Shortcut
    stride_on: StrideOn


def plan(
    depth: int,
    family: str = "cifar",
    unit: str | None = None,
    stem: str | None = None,
    cardinality: int = 1,
    base_width: int = 64,
    shortcut: str | None = None,
    stride_on: str | None = None,
) -> Architecture:
    """The architecture for a depth, with defaults for all open choices.

    Args:
        unit: `basic` or `bottleneck`; needed only for CIFAR depths that fit both.
        stem: `cifar` (3×3) or `imagenet` (7×7 stride 2, pooling); default: the family's.
        cardinality: groups of the 3×3 convolution of a bottleneck (ResNeXt).
        base_width: channels per group in the first stage, whose width is 64.
        shortcut: `pad` or `project` where the shape changes; default: `pad` for CIFAR basic
            units, else `project`.
        stride_on: `first` convolution of the branch or the `3x3`; default: `first` for CIFAR,
            `3x3` for ImageNet.

    Raises:
        UserError: no such network exists.
    """
    for name, value in (("cardinality", cardinality), ("base_width", base_width)):
        if value < 1:
            raise UserError(f"'{name}' must be at least 1, not {value}.")
    widths: tuple[int, ...]
    if family == "cifar":
        kind, units = _cifar_units(depth, unit)
        # With groups, CIFAR networks have the widths of ResNeXt-29 (arXiv:1611.05431, section 5.3).
        widths = (16, 32, 64) if cardinality == 1 and base_width == 64 else (64, 128, 256)
        stem_width = widths[0]
    else:
        kind, units = _imagenet_units(depth, unit)
        widths, stem_width = (64, 128, 256, 512), 64
    if kind == "basic" and (cardinality, base_width) != (1, 64):
        raise UserError(
            f"depth {depth} has basic units, but groups need bottlenecks: leave 'cardinality' at 1 "
            "and 'base_width' at 64."
        )
    stages = tuple(
        Stage(
            units=count,
            inner=width * base_width // 64 * cardinality,
            out=width * EXPANSION[kind],
            stride=1 if index == 0 else 2,
        )
        for index, (count, width) in enumerate(zip(units, widths, strict=True))
    )
    default_shortcut = "pad" if family == "cifar" and kind == "basic" else "project"
    return Architecture(
        family=cast(Family, family),
        depth=depth,
        unit=kind,
        stem=cast(Family, stem or family),
        stem_width=stem_width,
        stages=stages,
        cardinality=cardinality,
        base_width=base_width,
        shortcut=cast(Shortcut, shortcut or default_shortcut),
        stride_on=cast(StrideOn, stride_on or ("first" if family == "cifar" else "3x3")),
    )


def _cifar_units(depth: int, unit: str | None) -> tuple[UnitKind, tuple[int, ...]]:
    """Unit and units per stage of a CIFAR depth: 6n+2 basic, 9n+2 bottleneck."""
    if not 8 <= depth <= DEEPEST:
        raise UserError(
            f"depth {depth} is out of range: a CIFAR network has 8 to {DEEPEST} layers."
        )
    layers: dict[UnitKind, int] = {"basic": 6, "bottleneck": 9}
    fitting: list[UnitKind] = [kind for kind, n in layers.items() if (depth - 2) % n == 0]
    if unit is not None:
        kind = cast(UnitKind, unit)
        if kind not in fitting:
            near = _nearest_depths(depth, layers[kind])
            raise UserError(
                f"depth {depth} does not fit {kind} units ({layers[kind]}n+2); nearest: {near}."
            )
    elif depth in PUBLISHED_CIFAR:
        kind = PUBLISHED_CIFAR[depth]
    elif len(fitting) == 1:
        kind = fitting[0]
    elif fitting:
        raise UserError(
            f"depth {depth} fits basic units (6n+2) and bottlenecks (9n+2): choose one with "
            "'unit: basic' or 'unit: bottleneck' (--set unit=…)."
        )
    else:
        raise UserError(
            f"depth {depth} fits no residual unit: basic units give 6n+2 layers "
            f"(nearest: {_nearest_depths(depth, 6)}), bottlenecks 9n+2 "
            f"(nearest: {_nearest_depths(depth, 9)})."
        )
    return kind, ((depth - 2) // layers[kind],) * 3


def _nearest_depths(depth: int, layers: int) -> str:
    below = max(1, (depth - 2) // layers)
    return f"{layers * below + 2} and {layers * (below + 1) + 2}"


def _imagenet_units(depth: int, unit: str | None) -> tuple[UnitKind, tuple[int, ...]]:
    if depth not in IMAGENET:
        raise UserError(
            f"depth {depth} is not an ImageNet network; choose {', '.join(map(str, IMAGENET))}."
        )
    kind, units = IMAGENET[depth]
    if unit not in (None, kind):
        raise UserError(f"depth {depth} of the ImageNet family has {kind} units, not '{unit}'.")
    return kind, units
