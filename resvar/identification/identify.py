"""The answer: which network a module is, and what differs.

import resvar, torchvision
print(resvar.identify(torchvision.models.resnet50()))
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from typing import cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from resvar.console import listed
from resvar.errors import UserError, first_line, kind_and_text
from resvar.identification.answer import Identification, Shape
from resvar.identification.differences import (
    Deviation,
    architectural_differences,
    gathered,
    pools_early,
    structural_differences,
)
from resvar.identification.reading import (
    architecture_of,
    gaps,
    nearest_architecture,
    ordering_of,
)
from resvar.identification.structure import LAYERS, OTHER_LAYERS, Structure, structure_of
from resvar.identification.trace import Trace, logits_of, random_operations, trace
from resvar.identification.twin import (
    WEIGHT_SEED,
    FunctionDistance,
    compare_functions,
    redraw,
    take_statistics,
    weighted_steps,
)
from resvar.models.architecture import IMAGENET, KERNELS, PUBLISHED_CIFAR, Architecture
from resvar.models.network import ResidualNetwork
from resvar.models.ordering import (
    ALIASES,
    PAPER_ORDER,
    PLACES,
    Ordering,
    find_ordering,
    known_variants,
)

PUBLISHED: dict[tuple[str, str], Collection[int]] = {
    **{("cifar", name): (110, 164) for name in PAPER_ORDER},
    ("cifar", "original"): PUBLISHED_CIFAR,
    ("cifar", "full-preact"): (110, 164, 1001),
    ("imagenet", "original"): IMAGENET,
    ("imagenet", "full-preact"): (152,),
}
"""Depths by family and ordering: arXiv:1512.03385, tables 1 and 6; 1603.05027, tables 2 to 5."""

PUBLISHED_GROUPS = {
    (29, 8, 64),
    (29, 16, 64),
    (50, 32, 4),
    (101, 32, 4),
    (101, 64, 4),
    (101, 32, 8),
}
"""Depth, cardinality and base width of the ResNeXts of arXiv:1611.05431 and torchvision."""

WHY_OTHERWISE = {
    "logits": "it computes something else as well",
    "gradients": "some of the signal is detached, or overwritten before the backward pass reads it",
    "logits in training mode": "training differs, such as by frozen statistics of BN",
}
"""Why two networks of the same layers may compute different things."""

NOT_COMPARED = (
    "the same layers, but its outputs could not be compared with those of resvar's network"
)
COMPARED_IMAGES = 4
"""For a comparison."""

SMALLER = 64
"""Side length, in pixels, of the images with which large networks are compared."""


RUNS = 4
"""In training mode, to detect outputs that differ at random."""


def identify(
    network: nn.Module, input: Sequence[int] | None = None, claimed_depth: int | None = None
) -> Identification:
    """Say which residual network a module is, from the operations that it runs.

    A copy of the module is run on random images, with weights drawn anew; the module itself and
    torch's generator are left as they are.

    Args:
        network: a classifier, from images [N, C, H, W] to logits [N, classes].
        input: channels, height and width of an image; default: 3×32×32, or 3×224×224 for a stem
            with a stride.
        claimed_depth: the number of layers in the network's name; another one is a difference.

    Raises:
        UserError: it cannot be run on such images, or is not a residual network.
    """
    network = _unwrapped(network)
    with _undisturbed():
        copy = _copied(network)
        traced, shape = _traced(copy, input)
        structure = structure_of(traced)
        if not structure.units:
            raise UserError(
                "this is not a residual network of the papers' kind: no addition joins one branch "
                "of convolutions with a shortcut around it."
            )
        architecture = architecture_of(structure)
        classes = int(traced.operations[traced.output].value.shape[1])
        (ordering, *same), layers = _nearest_orderings(structure, architecture, classes)
        layers += _shared_weights(structure)
        nearest = nearest_architecture(architecture)
        random = _randomness(copy, shape)
        differences = [
            *layers,
            *architectural_differences(structure, architecture, nearest),
            *_other_depth(claimed_depth, architecture, structure),
            *random,
        ]
        early = pools_early(structure)
        comparison = None
        if not layers:
            ours = ResidualNetwork(ordering, architecture, classes)
            training = not (early or random)
            comparison = _compare_where_possible(copy, structure, ours, shape, training)
        if not layers and comparison is None:
            differences.append(Deviation(NOT_COMPARED))
        if comparison is not None and not comparison.equal:
            what = comparison.differing[0]
            differences.append(
                Deviation(f"the same layers, but other {what}: {WHY_OTHERWISE[what]}")
            )
        notes = [
            *_remarks(copy, traced, architecture, early),
            *_notes_on_orderings(structure, architecture, classes, same, layers),
        ]
    known = not differences
    return Identification(
        known=known,
        published=known and _is_published(ordering, architecture),
        ordering=ordering,
        architecture=architecture,
        nearest=nearest,
        differences=tuple(differences),
        notes=tuple(notes),
        comparison=comparison,
        structure=structure,
        input=shape,
        num_classes=classes,
        parameters=sum(parameter.numel() for parameter in copy.parameters()),
    )


def _nearest_orderings(
    structure: Structure, architecture: Architecture, classes: int
) -> tuple[list[Ordering], list[Deviation]]:
    """The orderings with the fewest differing modules, best first, and the differences of the best.

    Of equals, one whose units begin alike comes first, then V1 and V2.
    """
    begins = [
        any(op in LAYERS | OTHER_LAYERS for op in gaps(unit.branch)[0])
        for unit in structure.units[1:]
        if not unit.shortcut
    ]
    differences = {
        ordering: structural_differences(structure, ordering, architecture, classes)
        for ordering in map(find_ordering, known_variants())
    }

    def modules(ordering: Ordering) -> int:
        return sum(max(1, len(difference.modules)) for difference in differences[ordering])

    least = min(map(modules, differences))
    nearest = [ordering for ordering in differences if modules(ordering) == least]
    nearest.sort(key=lambda o: (begins.count(not o.lead), o.name not in ALIASES.values()))
    return nearest, differences[nearest[0]]


# --- running it -----------------------------------------------------------------------------------


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network inside `DataParallel`, `DistributedDataParallel` or `torch.compile`."""
    if not isinstance(network, nn.Module):
        raise UserError(f"identify takes a torch.nn.Module, not {type(network).__name__}.")
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        else:
            return network


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Run other people's code silently and eagerly, whatever it made the defaults of torch.

    Defaults and torch's generator are as before at the end.
    """
    stance = getattr(torch.compiler, "set_stance", None)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(warnings.catch_warnings())
        if stance is not None:
            stack.enter_context(stance("force_eager"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(WEIGHT_SEED)
        warnings.simplefilter("ignore")
        yield


def _copied(network: nn.Module) -> nn.Module:
    """A copy in fp32 and evaluation mode on the processor."""
    try:
        lazy = [buffer for buffer in network.buffers() if is_lazy(buffer)]
        # torch copies uninitialised parameters, but not uninitialised buffers.
        copy = deepcopy(network, {id(buffer): UninitializedBuffer() for buffer in lazy})
    except Exception as error:
        raise UserError(f"the network cannot be copied: {first_line(error)}.") from error
    if any(tensor.is_meta for tensor in copy.parameters()):
        copy.to_empty(device="cpu")
    return copy.to("cpu", torch.float32).eval()


def _traced(network: nn.Module, input: Sequence[int] | None) -> tuple[Trace, Shape]:
    """The trace on an image of the given shape, or of one that suits the stem."""
    if input is not None:
        return _trace_at(network, _checked(input))
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first is not None and first.in_channels else 3
    failures = []
    for count in dict.fromkeys([channels, 3]):
        try:
            return _traced_on(network, count)
        except UserError as error:
            failures.append(error)
    raise failures[0]


def _traced_on(network: nn.Module, channels: int) -> tuple[Trace, Shape]:
    """The trace on a small image, or on a large one for a stem with a stride."""
    small, failure = None, None
    try:
        small = _trace_at(network, (channels, 32, 32))
        convs = [op for op in small[0].operations if op.kind == "conv"]
        if not convs or convs[0].arguments["stride"][0] == 1:
            return small
    except UserError as error:
        failure = error
    try:
        return _trace_at(network, (channels, 224, 224))
    except UserError:
        if small is not None:
            return small
        raise cast(UserError, failure) from None


def _checked(input: Sequence[int]) -> Shape:
    if len(input) != 3 or not all(isinstance(side, int) and side > 0 for side in input):
        raise UserError("an input has channels, height and width, such as 3x32x32.")
    return cast(Shape, tuple(input))


def _trace_at(network: nn.Module, shape: Shape) -> tuple[Trace, Shape]:
    """The trace on a random image, with the weights drawn anew."""
    by = "×".join(map(str, shape))
    try:
        if any(is_lazy(parameter) for parameter in network.parameters()):
            with torch.no_grad():
                network(torch.randn(1, *shape))
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        redraw(network)
        with suppress(Exception):  # of training mode alone, which `_randomness` reports
            take_statistics(network, torch.randn(2, *shape))
        traced = trace(network.eval(), torch.randn(1, *shape))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the network cannot be run on an image of {by}: {kind_and_text(error)}; "
            "--input CxHxW chooses another shape."
        ) from error
    output = tuple(traced.operations[traced.output].value.shape)
    if len(output) < 2 or output[0] != 1 or output[2:] != (1,) * len(output[2:]):
        raise UserError(f"the network gives values of shape {output}, not logits [N, classes].")
    return traced, shape


def _compare_where_possible(
    network: nn.Module, structure: Structure, ours: nn.Module, shape: Shape, training: bool
) -> FunctionDistance | None:
    """The comparison, on smaller images where the network takes them."""
    sides = [min(SMALLER, shape[1]), min(SMALLER, shape[2])]
    for size in dict.fromkeys([tuple(sides), shape[1:]]):
        try:
            images = torch.randn(COMPARED_IMAGES, shape[0], *size)
            return compare_functions(network, structure, ours, images, training)
        except (RuntimeError, KeyError):
            continue
    return None


# --- what else differs ----------------------------------------------------------------------------


def _shared_weights(structure: Structure) -> list[Deviation]:
    names = [lane.names.get("weight", "") for s in weighted_steps(structure) for lane in s.lanes]
    shared = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    text = "layers share their weights"
    return gathered((text, name.rpartition(".")[0]) for name in shared)


def _other_depth(
    claimed: int | None, architecture: Architecture, structure: Structure
) -> list[Deviation]:
    """A network called ResNet-110 with another number of layers, such as 54 bottlenecks."""
    if claimed in (None, architecture.depth):
        return []
    each = len(KERNELS[architecture.unit])
    units = sum(stage.units for stage in architecture.stages)
    stem = sum(step.op == "conv" for step in structure.stem)
    first = "the stem" if stem == 1 else f"{stem} convolutions in the stem"
    return [
        Deviation(
            f"its name says {claimed} layers; it has {architecture.depth}: {units} units of "
            f"{each} convolutions, {first} and the linear layer"
        )
    ]


def _randomness(network: nn.Module, shape: Shape) -> list[Deviation]:
    """Dropout, stochastic depth and the like, which only training shows."""
    copy = deepcopy(network).train()
    try:
        images = torch.randn(2, *shape)
        modules = random_operations(copy, images)
        with torch.no_grad():
            first, *others = [logits_of(copy(images)) for _ in range(RUNS)]
    except Exception as error:
        return [Deviation(f"it cannot be run in training mode: {first_line(error)}")]
    if not modules and any(not torch.equal(first, other) for other in others):
        modules = [""]  # of Python or NumPy
    return gathered(("random numbers in training, such as dropout", name) for name in modules)


def _is_published(ordering: Ordering, architecture: Architecture) -> bool:
    if architecture.stem != architecture.family:
        return False
    groups = (architecture.depth, architecture.cardinality, architecture.base_width)
    if groups[1:] != (1, 64):
        return ordering.name == "original" and groups in PUBLISHED_GROUPS
    return architecture.depth in PUBLISHED.get((architecture.family, ordering.name), ())


def _remarks(
    network: nn.Module, traced: Trace, architecture: Architecture, early: bool
) -> Iterator[str]:
    if early:
        yield (
            "the stem pools before the first BN, resvar after it: the same function in evaluation "
            "mode where the scales of that BN are positive, but other statistics in training"
        )
    if architecture.unit == "bottleneck":
        first = "the stride is on the first 1×1 of a unit, as in arXiv:1512.03385"
        if (architecture.family, architecture.stride_on) == ("imagenet", "first"):
            yield f"{first}; torchvision has it on the 3×3"
    unused = [name for name, _ in network.named_parameters() if name not in traced.met]
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in unused))
    if modules:
        more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
        yield f"the signal never meets the parameters of {', '.join(modules[:3])}{more}"


def _notes_on_orderings(
    structure: Structure,
    architecture: Architecture,
    classes: int,
    same: Sequence[Ordering],
    layers: Sequence[Deviation],
) -> Iterator[str]:
    """Other orderings that are the same network, and its own ordering if that has no name."""
    if same and not layers:
        names = listed([ordering.name for ordering in same])
        yield f"none of its shortcuts is an identity, which makes it the same network in {names}"
    own = ordering_of(structure) if layers else None
    if own and not structural_differences(structure, own, architecture, classes):
        lists = (f"{place}: [{', '.join(getattr(own, place))}]" for place in PLACES)
        yield f"a variant file describes its ordering: {', '.join(lists)}"
