"""State dicts for torchvision: its own networks take them strictly and compute the same."""

from __future__ import annotations

import pytest
import torch

from resvar.errors import UserError
from resvar.export.torchvision_state import to_torchvision, torchvision_constructor
from resvar.models.network import build_model
from resvar.models.ordering import Ordering
from tests.export.networks import quickly, randomise, same_bits

SHIPPED_BY_TORCHVISION = {
    "resnet18": {"depth": 18},
    "resnet34": {"depth": 34},
    "resnet50": {"depth": 50},
    "resnet101": {"depth": 101},
    "resnet152": {"depth": 152},
    "resnext50_32x4d": {"depth": 50, "cardinality": 32, "base_width": 4},
    "resnext101_32x8d": {"depth": 101, "cardinality": 32, "base_width": 8},
}


DEEP = ("resnet101", "resnet152", "resnext101_32x8d")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name
        for name in SHIPPED_BY_TORCHVISION
    ],
)
def test_torchvisions_network_takes_the_weights_and_computes_the_same(name):
    models = pytest.importorskip("torchvision.models")
    options = {"family": "imagenet", "num_classes": 11, **SHIPPED_BY_TORCHVISION[name]}
    ours = randomise(quickly(build_model, variant="original", **options))
    theirs = quickly(getattr(models, name), num_classes=11)

    state = to_torchvision(ours)

    assert torchvision_constructor(ours) == f"{name}(num_classes=11)"
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state, strict=True)
    assert same_bits(theirs.state_dict(), state)
    assert same_bits(dict(zip(ours.state_dict(), state.values(), strict=True)), ours.state_dict())
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(theirs(images), ours(images))


def test_a_network_that_torchvision_does_not_name_is_one_of_its_class():
    resnet = pytest.importorskip("torchvision.models.resnet")
    ours = build_model("original", 50, "imagenet", 3, cardinality=2, base_width=32)
    constructor = torchvision_constructor(ours)
    assert constructor.startswith("resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], num_classes=3")
    theirs = eval(constructor, {"resnet": resnet})
    theirs.load_state_dict(to_torchvision(ours), strict=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"variant": "original", "depth": 8}, "ImageNet family"),
        ({"variant": "full-preact", "depth": 18, "family": "imagenet"}, "'full-preact'"),
        ({"variant": "original", "depth": 18, "family": "imagenet", "stem": "cifar"}, "stem"),
        ({"variant": "original", "depth": 18, "family": "imagenet", "shortcut": "pad"}, "project"),
        ({"variant": "original", "depth": 50, "family": "imagenet", "stride_on": "first"}, "3x3"),
    ],
)
def test_what_torchvision_does_not_have_is_refused_with_the_reason(options, reason):
    network = quickly(build_model, **options)
    with pytest.raises(UserError, match=reason):
        to_torchvision(network)


def test_the_ordering_counts_and_not_its_name():
    own = Ordering("mine", between=("bn", "relu"), trail=("bn",), after_add=("relu",))
    assert "conv1.weight" in to_torchvision(quickly(build_model, variant=own, depth=18,
                                                    family="imagenet"))  # fmt: skip
