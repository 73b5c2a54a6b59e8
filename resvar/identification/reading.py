"""The architecture of the units found, as the numbers from which resvar would build it.

The numbers are read, not looked up: a network of unusual widths has an `Architecture` too, and can
be built from it. `nearest_architecture` is a similar one that `models.architecture.plan` builds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from math import ceil, prod
from typing import TypeVar

from resvar.errors import UserError
from resvar.identification.structure import Step, Structure, UnitFound
from resvar.models.architecture import (
    EXPANSION,
    IMAGENET,
    KERNELS,
    Architecture,
    Family,
    Shortcut,
    Stage,
    StrideOn,
    UnitKind,
    plan,
)
from resvar.models.layout import Layer
from resvar.models.ordering import OPS, Ordering

T = TypeVar("T")


def architecture_of(structure: Structure) -> Architecture:
    """The numbers of a network that has at least one unit, each from the majority of its units."""
    units = structure.units
    kind = most_common(kind_of(unit) for unit in units)
    stages = tuple(_stage(list(group), kind) for _, group in groupby(units, key=_output_shape))
    stem = _stem_of(structure)
    family: Family = "imagenet" if len(stages) == 4 else "cifar"
    if len(stages) not in (3, 4):
        family = stem
    cardinality = most_common(_groups(unit) for unit in units)
    width = stages[0].out // EXPANSION[kind] or 1
    base_width = stages[0].inner * 64 // (width * cardinality)
    if kind == "basic":
        cardinality, base_width = 1, 64
    changing = [unit for unit in units if changes_shape(unit)]
    projects = most_common((unit.projects for unit in changing), family == "imagenet")
    shortcut: Shortcut = "project" if projects else "pad"
    stem_convs = [step for step in structure.stem if step.op == "conv"]
    return Architecture(
        family=family,
        depth=len(stem_convs) + sum(len(unit.convs) for unit in units) + 1,
        unit=kind,
        stem=stem,
        stem_width=stem_convs[0].channels_out if stem_convs else stages[0].out,
        stages=stages,
        cardinality=cardinality,
        base_width=base_width,
        shortcut=shortcut,
        stride_on=_stride_on(units, kind, family),
    )


def nearest_architecture(found: Architecture) -> Architecture:
    """The same architecture if `plan` builds it, else the one with the nearest number of units."""
    groups = (found.cardinality, found.base_width)
    tried = [
        (found.depth, groups),
        (_nearest_depth(found), groups),
        (_nearest_depth(found), (1, 64)),
    ]
    for depth, (cardinality, base_width) in tried:
        try:
            return plan(
                depth, found.family, found.unit, found.stem, cardinality, base_width,
                found.shortcut, found.stride_on,
            )  # fmt: skip
        except UserError:
            continue
    raise AssertionError("every family has a network of each unit")


def _nearest_depth(found: Architecture) -> int:
    if found.family == "cifar":
        layers = 3 * len(KERNELS[found.unit])
        each = max(1, round(sum(stage.units for stage in found.stages) / 3))
        return layers * each + 2
    counts = [stage.units for stage in found.stages]

    def distance(depth: int) -> int:
        pairs = zip(counts, IMAGENET[depth][1], strict=False)
        return sum(abs(ours - theirs) for ours, theirs in pairs)

    fitting = [depth for depth, (kind, _) in IMAGENET.items() if kind == found.unit]
    return min(fitting, key=distance)


def ordering_of(structure: Structure) -> Ordering | None:
    """The ordering of the first unit whose shortcut is an identity, as lists of its ops."""
    for unit in structure.units[1:]:
        inside = all(step.op in ("conv", *OPS) for step in unit.branch)
        if not unit.shortcut and inside and all(step.op in OPS for step in unit.before):
            lead, *between, trail = gaps(unit.branch)
            return Ordering(
                "unnamed",
                lead=lead,
                between=between[0] if between else OPS,
                trail=trail,
                after_add=tuple(step.op for step in unit.before),
                unusual=True,
            )
    return None


# --- one unit -------------------------------------------------------------------------------------


def kind_of(unit: UnitFound) -> UnitKind:
    """`basic` for a branch of at most two convolutions, else `bottleneck`."""
    return "basic" if len(unit.convs) <= 2 else "bottleneck"


def kernels_of(unit: UnitFound) -> tuple[int, ...]:
    """Kernel sizes of a unit's branch."""
    return tuple(step.weight_shape[-1] for step in unit.convs)


def changes_shape(unit: UnitFound) -> bool:
    """Whether its output differs from its input in channels or in size."""
    return unit.branch[0].before.shape != unit.branch[-1].after.shape


def stride_of(unit: UnitFound) -> int:
    """Pixels of the input per pixel of the output, along a side."""
    product = prod(stride(step) for step in unit.convs)
    before, after = unit.branch[0].before.shape[2], unit.branch[-1].after.shape[2]
    return product if product > 1 else ceil(before / after)


def _stage(units: list[UnitFound], kind: UnitKind) -> Stage:
    first = units[0]
    convs = first.convs
    inner = convs[min(len(convs) - 1, 1 if kind == "bottleneck" else 0)]
    return Stage(
        units=len(units),
        inner=inner.channels_out,
        out=convs[-1].channels_out,
        stride=stride_of(first),
    )


def _output_shape(unit: UnitFound) -> tuple[int, ...]:
    """Channels and size. A stage ends where they change."""
    return tuple(unit.branch[-1].after.shape[1:])


def _groups(unit: UnitFound) -> int:
    wide = [step for step in unit.convs if step.weight_shape[-1] > 1]
    return wide[0].groups if wide else 1


def _stem_of(structure: Structure) -> Family:
    pools = any(step.op.startswith("max") for step in structure.stem)
    seven = any(step.op == "conv" and step.weight_shape[-1] == 7 for step in structure.stem)
    return "imagenet" if pools or seven else "cifar"


def _stride_on(units: tuple[UnitFound, ...], kind: UnitKind, family: Family) -> StrideOn:
    usual: StrideOn = "first" if family == "cifar" else "3x3"
    if kind == "basic":
        return usual
    strided = [unit for unit in units if stride_of(unit) > 1]
    first = most_common((stride(unit.convs[0]) > 1 for unit in strided), usual == "first")
    return "first" if first else "3x3"


def gaps(path: Sequence[Step] | Sequence[Layer]) -> list[tuple[str, ...]]:
    """The ops before, between and after the convolutions of a path."""
    found: list[list[str]] = [[]]
    for part in path:
        if part.op == "conv":
            found.append([])
        else:
            found[-1].append(part.op)
    return [tuple(gap) for gap in found]


def stride(step: Step) -> int:
    """The stride of a convolution."""
    return int(step.lanes[0].arguments["stride"][0])


def most_common(values: Iterable[T], otherwise: T | None = None) -> T:
    """The most frequent value; of equally frequent ones the first."""
    counted = Counter(values).most_common(1)
    if counted:
        return counted[0][0]
    assert otherwise is not None
    return otherwise
