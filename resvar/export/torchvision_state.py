"""torchvision's state dicts, for the `original` networks of the ImageNet family that it ships.

torchvision registers modules in the same order, a unit's branch before its projection, so the names
follow a rule. S and U count stages and units from 0; P is a module's index in its part:

    resvar                  torchvision
    stem.P                  conv1, bn1                        for P = 0, 1
    stages.S.U.branch.P     layer<S+1>.U.conv<P/3+1>, bn…     for P = 0, 3, 6 and P = 1, 4, 7
    stages.S.U.shortcut.P   layer<S+1>.U.downsample.P         for P = 0, 1
    classifier              fc

The rest of a name (`weight`, `running_mean`, …) is the same.
"""

from __future__ import annotations

from torch import Tensor

from resvar.errors import UserError
from resvar.export.safetensors_file import cpu_state
from resvar.models.network import ResidualNetwork
from resvar.models.ordering import PLACES, find_ordering

TORCHVISION_NAMES = {
    (18, 1, 64): "resnet18", (34, 1, 64): "resnet34", (50, 1, 64): "resnet50",
    (101, 1, 64): "resnet101", (152, 1, 64): "resnet152",
    (50, 32, 4): "resnext50_32x4d", (101, 32, 8): "resnext101_32x8d",
    (101, 64, 4): "resnext101_64x4d",
    (50, 1, 128): "wide_resnet50_2", (101, 1, 128): "wide_resnet101_2",
}  # fmt: skip
"""By depth, cardinality and base width."""


def to_torchvision(network: ResidualNetwork) -> dict[str, Tensor]:
    """The weights under torchvision's names, in its order, on the CPU.

    `torchvision.models.resnet50(num_classes=…).load_state_dict(…)` accepts them, strictly.

    Raises:
        UserError: torchvision does not have this network; names the reason.
    """
    torchvision_constructor(network)
    return {torchvision_key(key): tensor for key, tensor in cpu_state(network).items()}


def torchvision_constructor(network: ResidualNetwork) -> str:
    """The call in torchvision that builds this network, such as `resnet50(num_classes=10)`.

    Raises:
        UserError: torchvision does not have this network; names the reason.
    """
    ordering, architecture = network.ordering, network.architecture
    original = find_ordering("original")
    same_lists = all(getattr(ordering, place) == getattr(original, place) for place in PLACES)
    # In a basic unit both choices of `stride_on` mean the same convolution.
    stride = "3x3" if architecture.unit == "bottleneck" else architecture.stride_on
    for feature, wanted, found in (
        ("only the ImageNet family", "imagenet", architecture.family),
        ("only the ordering 'original'", ordering.name if same_lists else None, ordering.name),
        ("only the ImageNet stem", "imagenet", architecture.stem),
        ("only 'project' shortcuts", "project", architecture.shortcut),
        ("the stride on the 3x3 convolution", stride, architecture.stride_on),
    ):
        if found != wanted:
            raise UserError(
                f"torchvision's ResNets have {feature}, not '{found}'; a .safetensors file can "
                "contain any."
            )
    groups, width = architecture.cardinality, architecture.base_width
    classes = f"num_classes={network.classifier.out_features}"
    if name := TORCHVISION_NAMES.get((architecture.depth, groups, width)):
        return f"{name}({classes})"
    units = [stage.units for stage in architecture.stages]
    options = f"{units}, {classes}, groups={groups}, width_per_group={width}"
    return f"resnet.ResNet(resnet.Bottleneck, {options})"


def torchvision_key(key: str) -> str:
    """torchvision's name of a tensor in an `original` ImageNet network."""
    module, _, tensor = key.rpartition(".")
    match module.split("."):
        case ["stem", place]:
            theirs = _convolution_or_bn(place)
        case ["stages", stage, unit, "branch", place]:
            theirs = f"layer{int(stage) + 1}.{unit}.{_convolution_or_bn(place)}"
        case ["stages", stage, unit, "shortcut", place]:
            theirs = f"layer{int(stage) + 1}.{unit}.downsample.{place}"
        case _:  # the classifier, the only other module with weights
            theirs = "fc"
    return f"{theirs}.{tensor}"


def _convolution_or_bn(place: str) -> str:
    """A branch is conv, BN, ReLU, conv, …: the index gives the kind of module and its number."""
    number, kind = divmod(int(place), 3)
    return f"{('conv', 'bn')[kind]}{number + 1}"
