"""Differences between the network found and the layers that `models.layout` describes.

The description is the one from which resvar builds its own networks, so no rule of the orderings
is repeated here. The places compared are the junctions (what comes between an addition, or the
stem's convolution, and the next convolution, and where the paths part), the rest of each branch,
each shortcut, and the head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from resvar.identification.reading import (
    changes_shape,
    gaps,
    kernels_of,
    stride,
    stride_of,
)
from resvar.identification.structure import Step, Structure, UnitFound
from resvar.identification.trace import EPS, MOMENTUM
from resvar.models.architecture import PUBLISHED_CIFAR, Architecture
from resvar.models.layout import Layer, UnitLayers, network_layers
from resvar.models.names import title
from resvar.models.ordering import Ordering

WORDS = {
    "bn": "BN",
    "relu": "ReLU",
    "max": "max pooling",
    "mean": "average pooling",
    "conv": "convolution",
    "linear": "linear layer",
    "pad": "zero channels, half before and half after",
    "hardtanh": "ReLU6",
    "leaky_relu": "LeakyReLU",
    "silu": "SiLU",
    "gelu": "GELU",
    "elu": "ELU",
    "_prelu_kernel": "PReLU",
    "native_group_norm": "GroupNorm",
    "native_layer_norm": "LayerNorm",
    "_log_softmax": "log_softmax",
    "_softmax": "softmax",
    "mul": "product (such as squeeze-and-excitation)",
    "avg_pool2d": "average pooling",
    "max_pool2d_with_indices": "another max pooling",
}
NOT_OWN = "tensors are not the network's own, but computed from others"
OTHER_MAX = "max_pool2d_with_indices"
MAX_POOLING = ("max", OTHER_MAX)
ORDINALS = ("first", "second", "third", "fourth", "fifth")


@dataclass(frozen=True)
class Deviation:
    """One respect in which a network differs, and the modules in which it does.

    Attributes:
        text: what is found, and what was expected.
        modules: names of modules in the network, in the order of the signal; may be empty.
    """

    text: str
    modules: tuple[str, ...] = ()


Found = Iterator[tuple[str, str]]
"""Texts, each with the module that it is about."""


def structural_differences(
    structure: Structure, ordering: Ordering, architecture: Architecture, num_classes: int
) -> list[Deviation]:
    """How the layers differ from an ordering's, for the widths and counts that were read."""
    return gathered(_layers_differing(structure, ordering, architecture, num_classes))


def gathered(found: Found) -> list[Deviation]:
    """Equal texts as one difference with all of its modules."""
    modules: dict[str, dict[str, None]] = {}
    for text, module in found:
        modules.setdefault(text, {})
        if module:
            modules[text][module] = None
    return [Deviation(text, tuple(names)) for text, names in modules.items()]


def _layers_differing(
    structure: Structure, ordering: Ordering, architecture: Architecture, num_classes: int
) -> Found:
    size = structure.stem[0].before.shape[-1] if structure.stem else None
    (stem,), *stages, (head,) = network_layers(ordering, architecture, num_classes, size).values()
    expected = [unit for stage in stages for unit in stage]
    yield from _compare_stem(structure.stem, stem)
    before: list[Layer] = [layer for layer in stem if layer.op not in ("conv", "max")]
    steps = [step for step in _after_last_conv(structure.stem) if step.op not in MAX_POOLING]
    place = "after the stem's convolution"
    for number, (unit, layers) in enumerate(zip(structure.units, expected, strict=True)):
        found = Junction.found(steps if number == 0 else unit.before, unit.branch)
        wanted = Junction.expected(before, layers)
        earlier = structure.units[number - 1].name if number else ""
        owner = earlier if ordering.after_add and not ordering.lead and number else unit.name
        yield from _compare_junction(found, wanted, place, owner, ordering)
        yield from _compare_branch(unit, layers)
        yield from _compare_shortcut(unit, layers)
        before = [layer for layer in layers if layer.place == "after_add"]
        place = "after the addition" if ordering.after_add else ""
        if ordering.lead or not place:
            place = "before the first convolution"
    yield from _compare_head(structure, [*before, *head])


# --- junctions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Junction:
    """The ops before a unit's first convolution, and how many of them come before the split.

    Without the stem's max pooling: `pools_early` judges where it is.
    """

    ops: tuple[str, ...]
    split: int

    @classmethod
    def found(cls, before: Sequence[Step], branch: Sequence[Step]) -> Junction:
        lead = takewhile(lambda step: step.op != "conv", branch)
        return cls(tuple(step.op for step in (*before, *lead)), len(before))

    @classmethod
    def expected(cls, before: Sequence[Layer], layers: UnitLayers) -> Junction:
        """A projection takes the activated signal; identity and padding take the raw one."""
        lead = [layer.op for layer in layers if layer.place == "lead"]
        projects = any(layer.place == "shortcut" and layer.op == "conv" for layer in layers)
        ops = (*(layer.op for layer in before), *lead)
        return cls(ops, len(ops) if projects else len(before))


def _compare_junction(
    found: Junction, wanted: Junction, place: str, module: str, ordering: Ordering
) -> Found:
    if found.ops != wanted.ops:
        yield changed(found.ops, wanted.ops, place), module
    elif found.split != wanted.split:
        took, takes = (_signal_name(junction) for junction in (found, wanted))
        yield f"the shortcut takes {took}; in {ordering.name} it takes {takes}", module


def _signal_name(junction: Junction) -> str:
    ops = junction.ops[: junction.split]
    return f"the signal after {words(ops)}" if ops else "the raw signal"


def pools_early(structure: Structure) -> bool:
    """Whether the stem's max pooling comes before a BN; in resvar's networks it comes last."""
    ops = [step.op for step in (*structure.stem, *structure.units[0].branch)]
    first = ops.index("conv", 1) if "conv" in ops[1:] else len(ops)
    return "max" in ops[:first] and "bn" in ops[ops.index("max") : first]


# --- paths ----------------------------------------------------------------------------------------


def _compare_stem(found: Sequence[Step], expected: UnitLayers) -> Found:
    convs = [step for step in found if step.op == "conv"]
    if len(convs) != 1:
        yield f"the stem has {len(convs)} convolutions instead of one", _place(convs)
    else:
        yield from _compare_conv(convs[0], expected[0])
    if early := list(takewhile(lambda step: step.op != "conv", found)):
        text = changed([step.op for step in early], (), "before the stem's convolution")
        yield text, early[0].place
    pools, pooled = [any(part.op == "max" for part in path) for path in (found, expected)]
    others = [step for step in found if step.op == OTHER_MAX]
    for step in others:
        yield f"max pooling {_windows(step)}", step.place
    if pools != pooled and not others:
        yield ("max pooling" if pools else "no max pooling") + " in the stem", ""
    yield from _compare_bn(found)


def _compare_branch(unit: UnitFound, layers: UnitLayers) -> Found:
    branch = [layer for layer in layers if layer.place in ("conv", "between", "trail")]
    convs = [layer for layer in branch if layer.op == "conv"]
    yield from _compare_bn((*unit.before, *unit.branch))
    kernels = kernels_of(unit)
    wanted = tuple(layer.kernel for layer in convs)
    if kernels != wanted:
        yield (
            f"a branch of {_kernels(kernels)} convolutions instead of {_kernels(wanted)}",
            unit.name,
        )
    if len(kernels) != len(wanted):
        return
    for step, layer in zip(unit.convs, convs, strict=True):
        yield from _compare_conv(step, layer, skip_kernel=True)
    pairs = zip(gaps(unit.branch), gaps(branch), strict=True)
    for number, (found, expected) in enumerate(pairs):
        if number and found != expected:
            last = number == len(convs)
            place = "after the last convolution"
            if not last:
                place = f"between the {ORDINALS[number - 1]} and the {ORDINALS[number]} convolution"
            yield changed(found, expected, place), unit.name


def _compare_shortcut(unit: UnitFound, layers: UnitLayers) -> Found:
    expected = [layer for layer in layers if layer.place == "shortcut"]
    found, wanted = [step.op for step in unit.shortcut], [layer.op for layer in expected]
    place = _place([step for step in unit.shortcut if step.op == "conv"]) or unit.name
    yield from _compare_bn(unit.shortcut)
    if found.count("conv") == wanted.count("conv") == 1:
        step = unit.shortcut[found.index("conv")]
        yield from _compare_conv(step, expected[0])
        if found != wanted:
            (early, late), (_, usual) = gaps(unit.shortcut), gaps(expected)
            if early:
                yield changed(early, (), "before the projection of the shortcut"), place
            if late != usual:
                yield changed(late, usual, "after the projection of the shortcut"), place
    elif found != wanted:
        yield f"{_shortcut(found)} instead of {_shortcut(wanted)}", place


def _compare_head(structure: Structure, expected: Sequence[Layer]) -> Found:
    linear = ("linear", "conv")
    last = structure.units[-1].name
    found = [step.op for step in structure.head]
    wanted = [layer.op for layer in expected]
    yield from _compare_bn(structure.head)
    classifiers = [i for i, op in enumerate(found) if op in linear]
    pooled = found.index("mean") if "mean" in found else None
    if pooled is None:
        pools = [op for op in found if op not in (*linear, "bn", "relu")]
        yield f"{words(pools[:1]) or 'nothing'} instead of average pooling in the head", ""
        pooled = next((i for i, op in enumerate(found) if op not in ("bn", "relu")), len(found))
    lead, activated = found[:pooled], wanted[: wanted.index("mean")]
    if lead != activated:
        yield changed(lead, activated, "after the last addition"), last
    if len(classifiers) != 1:
        places = [structure.head[i] for i in classifiers]
        count = f"{len(classifiers)} linear layers" if classifiers else "no linear layer"
        yield f"{count} in the head instead of one", _place(places)
    for index in classifiers[:1]:
        if "bias" not in structure.head[index].lanes[0].tensors:
            yield "the linear layer has no bias", structure.head[index].place
        if "weight" not in structure.head[index].lanes[0].names:
            yield f"a linear layer whose {NOT_OWN}", structure.head[index].place
    rest = [step for step in structure.head[pooled + 1 :] if step.op not in linear]
    if rest:
        text = f"{words([step.op for step in rest])} besides the linear layer in the head"
        yield text, rest[0].place


# --- layers ---------------------------------------------------------------------------------------


def _compare_conv(step: Step, layer: Layer, skip_kernel: bool = False) -> Found:
    operation = step.lanes[0]
    kernel = step.weight_shape[2:]
    same = kernel[0] // 2 * operation.arguments["dilation"][0]
    compared = [
        ("kernel", _square(kernel), _square((layer.kernel, layer.kernel))),
        ("stride", stride(step), layer.stride),
        ("padding", tuple(operation.arguments["padding"]), (same, same)),
        ("dilation", operation.arguments["dilation"][0], 1),
        ("groups", step.groups, layer.groups),
        ("input channels", step.channels_in, layer.channels_in),
        ("output channels", step.channels_out, layer.channels_out),
    ]
    for what, found, expected in compared[int(skip_kernel) :]:
        if found != expected:
            yield f"{what} {_plainly(found)} instead of {_plainly(expected)}", step.place
    if "bias" in operation.tensors:
        yield "a convolution with a bias", step.place
    if "weight" not in operation.names:
        yield f"a convolution whose {NOT_OWN}", step.place


def _compare_bn(steps: Sequence[Step]) -> Found:
    for step in steps:
        if step.op == "bn":
            operation = step.lanes[0]
            if abs((eps := operation.arguments["eps"]) - EPS) > 1e-3 * EPS:
                yield f"BN with eps {eps:g} instead of {EPS:g}", step.place
            if abs((momentum := operation.arguments["momentum"]) - MOMENTUM) > 1e-9:
                yield f"BN with momentum {momentum:g} instead of {MOMENTUM:g}", step.place
            if "weight" not in operation.tensors:
                yield "BN without scale and shift", operation.module
            if "running_mean" not in operation.tensors:
                yield "BN (or InstanceNorm) without running statistics", step.place
            if operation.tensors.keys() - operation.names.keys():
                yield f"BN whose {NOT_OWN}", step.place


# --- the architecture -----------------------------------------------------------------------------


def architectural_differences(
    structure: Structure, found: Architecture, nearest: Architecture
) -> list[Deviation]:
    """How counts and widths differ from the nearest network, and its choices from the papers'."""
    return gathered(_architecture_differing(structure, found, nearest))


def _architecture_differing(
    structure: Structure, found: Architecture, nearest: Architecture
) -> Found:
    name = title(nearest)
    for what, value in (
        ("units per stage", "units"),
        ("channels per stage", "out"),
        ("channels inside the units", "inner"),
        ("strides of the stages", "stride"),
    ):
        here, there = [
            ", ".join(str(getattr(stage, value)) for stage in network.stages)
            for network in (found, nearest)
        ]
        if here != there and not (what.endswith("inside the units") and found.unit == "basic"):
            yield f"{what} {here}; {name} has {there}", ""
    if found.stem_width != nearest.stem_width:
        yield f"{found.stem_width} channels in the stem; {name} has {nearest.stem_width}", ""
    if found.cardinality != nearest.cardinality:
        yield f"{found.cardinality} groups; {name} has {nearest.cardinality}", ""
    published = PUBLISHED_CIFAR.get(found.depth) if found.family == "cifar" else None
    if published not in (None, found.unit) and found.cardinality == 1:
        kinds = {"basic": "basic units", "bottleneck": "bottlenecks"}
        text = (
            f"{kinds[found.unit]}; the published ResNet-{found.depth} has {kinds[str(published)]}"
        )
        yield text, ""
    yield from _choices_differing(structure, found)


def _choices_differing(structure: Structure, found: Architecture) -> Found:
    units = structure.units
    usual = "pad" if (found.family, found.unit) == ("cifar", "basic") else "project"
    if found.shortcut != usual:
        text = {
            "pad": "projections where the papers pad with zero channels",
            "project": "padding with zero channels where the papers project",
        }[usual]
        for unit in units:
            if changes_shape(unit) and unit.projects == (found.shortcut == "project"):
                yield text, _place([s for s in unit.shortcut if s.op == "conv"]) or unit.name
    strided = found.family == "cifar" and found.unit == "bottleneck" and found.cardinality == 1
    if strided and found.stride_on == "3x3":
        for unit in units:
            if stride_of(unit) > 1:
                yield "the stride is on the 3×3 convolution, not on the first 1×1", unit.name


# --- words ----------------------------------------------------------------------------------------


def changed(found: Sequence[str], expected: Sequence[str], place: str) -> str:
    """`no ReLU after the addition`, `an extra BN …`, `ReLU-BN … instead of BN-ReLU`."""
    missing = list((Counter(expected) - Counter(found)).elements())
    extra = list((Counter(found) - Counter(expected)).elements())
    if missing and not extra:
        return f"no {words(missing)} {place}"
    if extra and not missing:
        return f"an extra {words(extra)} {place}"
    return f"{words(found) or 'nothing'} {place} instead of {words(expected) or 'nothing'}"


def words(ops: Sequence[str]) -> str:
    """`BN-ReLU`, `BN`, `BN, LeakyReLU`."""
    names = [WORDS.get(op, op) for op in ops]
    plain = all(op in ("bn", "relu") for op in ops)
    return ("-" if plain else ", ").join(names)


def _after_last_conv(steps: Sequence[Step]) -> list[Step]:
    convs = [index for index, step in enumerate(steps) if step.op == "conv"]
    return list(steps[convs[-1] + 1 if convs else 0 :])


def _shortcut(ops: Sequence[str]) -> str:
    if not ops:
        return "an identity shortcut"
    if "conv" in ops:
        return "a projection shortcut"
    if list(ops) == ["pad"]:
        return (
            "a shortcut that takes every second pixel and pads with zero channels, half before and "
            "half after"
        )
    does = ops[0].startswith(("takes ", "averages "))
    return f"a shortcut that {ops[0]}" if does else f"a shortcut of {words(ops)}"


def _windows(step: Step) -> str:
    """Where another max pooling differs from that of the ImageNet stem."""
    given = step.lanes[0].arguments
    parts = []
    for key, usual in (("kernel_size", 3), ("stride", 2), ("padding", 1)):
        sides = given.get(key) or [0]
        if set(sides) != {usual}:
            parts.append(f"{key.replace('_', ' ')} {_plainly(tuple(sides))} instead of {usual}")
    if given.get("ceil_mode"):
        parts.append("ceil mode")
    return f"with {', '.join(parts)}"


def _place(steps: Sequence[Step]) -> str:
    return steps[0].place if steps else ""


def _kernels(kernels: Sequence[int]) -> str:
    return ", ".join(_square((kernel, kernel)) for kernel in kernels)


def _square(kernel: Sequence[int]) -> str:
    return "×".join(str(side) for side in kernel)


def _plainly(value: object) -> str:
    if isinstance(value, tuple) and len(set(value)) == 1:
        return str(value[0])
    return str(value)
