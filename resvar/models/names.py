"""Networks by their usual names: `resnet50`, `resnext50_32x4d`, `resnet110`.

The names are those of torchvision and, for pre-activation, timm (`resnetv2_50`). A number that is
an ImageNet depth (18, 34, 50, 101, 152) means that network; any other means the CIFAR family.
"""

from __future__ import annotations

import re
from typing import Any

from resvar.errors import UserError, nearest, quoted
from resvar.models.architecture import CLASSES, IMAGENET, Architecture, Family

WELL_KNOWN = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "resnext29_8x64d",
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet164", "resnet1001",
    "resnet1202", "resnetv2_50", "resnetv2_164",
)  # fmt: skip
"""Suggestions for error messages; any other depth works as well."""

_RESNET = re.compile(r"resnet(v2_)?([0-9]{1,9})")
_RESNEXT = re.compile(r"resnext([0-9]{1,9})_([0-9]{1,9})x([0-9]{1,9})d")


def named(name: str) -> dict[str, Any]:
    """The arguments of `build_model` for a network's name.

    `build_model(**named("resnext50_32x4d"))` is torchvision's network of this name: the original
    ordering, 1000 classes. Names are case-insensitive.

    Raises:
        UserError: the name is unknown. The depth is checked by `plan`.
    """
    lower = name.lower()
    cardinality, base_width, variant = 1, 64, "original"
    if found := _RESNET.fullmatch(lower):
        variant = "full-preact" if found[1] else "original"
        depth = int(found[2])
    elif found := _RESNEXT.fullmatch(lower):
        depth, cardinality, base_width = (int(number) for number in found.groups())
    elif lower.startswith("resnext"):
        raise UserError(f"{quoted(name)} does not state its groups; write it like resnext50_32x4d.")
    else:
        hint = nearest(lower, WELL_KNOWN) or (
            "; names look like resnet50, resnet110, resnetv2_50 or resnext50_32x4d."
        )
        raise UserError(f"there is no network named {quoted(name)}{hint}")
    family: Family = "imagenet" if depth in IMAGENET else "cifar"
    return {
        "variant": variant,
        "depth": depth,
        "family": family,
        "num_classes": CLASSES[family],
        "cardinality": cardinality,
        "base_width": base_width,
    }


def title(architecture: Architecture) -> str:
    """The display name of a network: `ResNet-110`, `ResNeXt-50 (32×4d)`."""
    groups = architecture.cardinality, architecture.base_width
    name = (
        f"ResNet-{architecture.depth}"
        if groups == (1, 64)
        else f"ResNeXt-{architecture.depth} ({groups[0]}×{groups[1]}d)"
    )
    other_stem = architecture.stem != architecture.family
    return f"{name} with the {architecture.stem} stem" if other_stem else name
