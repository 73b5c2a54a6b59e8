"""Networks by the names that people type: `resnet50`, `resnext50_32x4d`, `full-preact-110`.

A name consists of an ordering, a network, or both. Networks are named as in torchvision and, for
pre-activation, as in timm (`resnetv2_50`) or Keras (`resnet50v2`). A number that is an ImageNet
depth (18, 34, 50, 101, 152) means that network; any other means the CIFAR family.
"""

from __future__ import annotations

import re
from typing import Any

from resvar.errors import UserError, nearest, quoted
from resvar.models.architecture import CLASSES, IMAGENET, Architecture, Family
from resvar.models.ordering import ALIASES, find_ordering, known_variants, shipped_as

WELL_KNOWN = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "resnext29_8x64d", "wide_resnet50_2",
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet164", "resnet1001",
    "resnet1202", "resnetv2_50", "resnetv2_164",
)  # fmt: skip
"""Suggestions for error messages and for the shell; any other depth works as well."""

_NAME = re.compile(
    r"""
    (?P<ordering> .+? )??
    (?: [-_]? (?P<kind> (?:wide[-_]?)? resnet | resnext ) [-_]?
        (?: v (?P<before> [12] ) [-_]? )? | [-_] )
    (?P<depth> [0-9]{1,9} )
    (?: [-_] (?P<cardinality> [0-9]{1,9} ) x (?P<base_width> [0-9]{1,9} ) d
        | [-_] (?P<times> [0-9]{1,3} ) )?
    (?: [-_]? v (?P<after> [12] ) )?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_UNGROUPED = re.compile(r".*resnext[^x]*", re.IGNORECASE)

_SUFFIXES = {"": None, "resnet": None, "resnext": "cardinality", "wideresnet": "times"}
"""What follows the depth in the name of each kind of network."""

_PREACT = ("pre", "preact", "pre-act")
"""What the names of other people's networks begin with: `preact_resnet18`, `preresnet110`."""


def named(name: str) -> dict[str, Any]:
    """The arguments of `build_model` for a network's name.

    `build_model(**named("resnext50_32x4d"))` is torchvision's network of this name: the original
    ordering, 1000 classes. Names are case-insensitive, and `-` and `_` are the same.

    Raises:
        UserError: the name is unknown or states no depth. The depth is checked by `plan`.
    """
    given = stated(name)
    if "depth" not in given:
        raise UserError(f"{quoted(name)} states no depth; write it like full-preact-110.")
    family = usual_family(given["depth"])
    usual = {"variant": "original", "depth": given["depth"], "family": family}
    return {**usual, "num_classes": CLASSES[family], "cardinality": 1, "base_width": 64, **given}


def stated(name: str) -> dict[str, Any]:
    """What a name says, as arguments of `build_model`.

    An ordering (`full-preact`, `v2`, a YAML file) states `variant`; with a number
    (`full-preact-110`) also `depth`. A network (`resnet50`) states `depth`, `family`, `cardinality`
    and `base_width`; its `variant` only if the name has it (`resnetv2_50`, `original-resnet50`).

    Raises:
        UserError: the name is unknown, or states two orderings.
    """
    if (ordering := _ordering(name)) is not None:
        return {"variant": ordering}
    found = _NAME.fullmatch(name)
    if found is None or not (found["kind"] or found["ordering"]):
        raise _unknown(name)
    kind = re.sub("[-_]", "", found["kind"] or "").lower()
    suffix = next((part for part in ("cardinality", "times") if found[part]), None)
    if suffix != _SUFFIXES[kind] and (kind, suffix) != ("", "cardinality"):
        raise _unknown(name)
    arguments: dict[str, Any] = {"depth": int(found["depth"])}
    if kind:
        family = usual_family(arguments["depth"])
        width = 64 * int(found["times"] or 1)
        arguments |= {"family": family, "cardinality": 1, "base_width": width}
    if found["cardinality"]:
        arguments |= {place: int(found[place]) for place in ("cardinality", "base_width")}
    return arguments | _stated_variant(name, found)


def usual_family(depth: int) -> Family:
    """The family that a name means by a depth."""
    return "imagenet" if depth in IMAGENET else "cifar"


def title(architecture: Architecture) -> str:
    """The display name of a network: `ResNet-110`, `ResNeXt-50 (32×4d)`, `Wide ResNet-50-2`."""
    groups = architecture.cardinality, architecture.base_width
    name = f"ResNet-{architecture.depth}"
    if groups[0] == 1 and groups[1] != 64:
        name = f"Wide ResNet-{architecture.depth}-{groups[1] / 64:g}"
    elif groups != (1, 64):
        name = f"ResNeXt-{architecture.depth} ({groups[0]}×{groups[1]}d)"
    other_stem = architecture.stem != architecture.family
    return f"{name} with the {architecture.stem} stem" if other_stem else name


def kind_title(architecture: Architecture) -> str:
    """The name of the networks of all depths: `ResNet`, `ResNeXt (32×4d)`, `Wide ResNet (×2)`."""
    groups = architecture.cardinality, architecture.base_width
    if groups == (1, 64):
        return "ResNet"
    if groups[0] == 1:
        return f"Wide ResNet (×{groups[1] / 64:g})"
    return f"ResNeXt ({groups[0]}×{groups[1]}d)"


def _stated_variant(name: str, found: re.Match[str]) -> dict[str, str]:
    """The ordering that a matched name states, before the network or as `v1` or `v2`."""
    variants = [ALIASES[f"v{number}"] for number in found.group("before", "after") if number]
    if (before := found["ordering"]) is not None:
        preact = found["kind"] and _as_file_name(before) in _PREACT
        ordering = "full-preact" if preact else _ordering(before)
        if ordering is None:
            raise _unknown(name, found["depth"])
        variants.insert(0, ordering)
    if len(set(variants)) > 1:
        raise UserError(f"{quoted(name)} states two orderings, {' and '.join(variants)}.")
    return {"variant": variants[0]} if variants else {}


def _ordering(name: str) -> str | None:
    """The shipped name, or the path of a YAML file, that a name means; None for no ordering."""
    if name.endswith((".yaml", ".yml")):
        return name
    known = shipped_as(ALIASES.get(_as_file_name(name), _as_file_name(name))) is not None
    return find_ordering(_as_file_name(name)).name if known else None


def _as_file_name(name: str) -> str:
    return name.lower().replace("_", "-")


def _unknown(name: str, depth: str = "") -> UserError:
    """The error for an unknown name; a `depth` that it states is in the suggestion too."""
    if _UNGROUPED.fullmatch(name):
        example = "write it like resnext50_32x4d"
        return UserError(f"{quoted(name)} does not state its groups; {example}.")
    orderings = [f"{ordering}-{depth}" if depth else ordering for ordering in known_variants()]
    hint = nearest(name.lower(), [*WELL_KNOWN, *orderings]) or (
        "; names look like resnet50, resnetv2_50, resnext50_32x4d, full-preact or full-preact-110."
    )
    return UserError(f"there is no network named {quoted(name)}{hint}")
