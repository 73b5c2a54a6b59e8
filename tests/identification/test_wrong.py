"""Each mistake in `wrong.py` is named, with its modules, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from torch import nn

import resvar
from resvar.identification.identify import identify
from tests.identification import wrong


@dataclass(frozen=True)
class Answer:
    """The nearest ordering and network, and each difference: part of its text, and its modules."""

    ordering: str
    network: str
    differences: Sequence[tuple[str, Sequence[str]]]


FIRSTS = ("layer1.0", "layer2.0", "layer3.0")
UNITS = tuple(f"layer{stage}.{number}" for stage in (1, 2, 3) for number in range(3))


def answer(ordering, network, *differences):
    return Answer(ordering, network, differences)


def _each(names, suffix):
    return tuple(name + suffix for name in names)


WRONG: dict[Callable[[], nn.Module], Answer] = {
    wrong.no_bn_relu_at_the_end: answer(
        "full-preact", "ResNet-20", ("no BN-ReLU after the last addition", ["layer3.2"])
    ),
    wrong.no_relu_at_the_end: answer(
        "full-preact", "ResNet-20", ("no ReLU after the last addition", ["layer3.2"])
    ),
    wrong.first_lead_after_the_split: answer(
        "full-preact",
        "ResNet-20",
        (
            "the shortcut takes the raw signal; in full-preact it takes the signal after BN-ReLU",
            ["layer1.0"],
        ),
    ),
    wrong.no_first_lead: answer(
        "full-preact", "ResNet-20", ("no BN-ReLU after the stem's convolution", ["layer1.0"])
    ),
    wrong.activated_stem: answer(
        "full-preact", "ResNet-20", ("an extra BN-ReLU after the stem's convolution", ["layer1.0"])
    ),
    wrong.maximum_at_the_end: answer(
        "original", "ResNet-20", ("global maximum instead of average pooling in the head", [])
    ),
    wrong.softmax_at_the_end: answer(
        "original", "ResNet-20", ("softmax besides the linear layer in the head", ["after"])
    ),
    wrong.two_linear_layers: answer(
        "original",
        "ResNet-20",
        ("2 linear layers in the head instead of one", ["fc.0"]),
        ("ReLU besides the linear layer in the head", ["fc.1"]),
    ),
    wrong.projections_without_bn: answer(
        "original",
        "ResNet-29",
        ("no BN after the projection of the shortcut", _each(FIRSTS, ".shortcut.0")),
    ),
    wrong.normalised_projections: answer(
        "full-preact",
        "ResNet-29",
        ("an extra BN after the projection of the shortcut", _each(FIRSTS, ".shortcut.0")),
    ),
    wrong.raw_projections: answer(
        "full-preact",
        "ResNet-29",
        (
            "the shortcut takes the raw signal; in full-preact it takes the signal after BN-ReLU",
            FIRSTS,
        ),
    ),
    wrong.projections_for_padding: answer(
        "original",
        "ResNet-20",
        ("projections where the papers pad with zero channels", _each(FIRSTS[1:], ".shortcut.0")),
    ),
    wrong.needless_projection: answer(
        "original",
        "ResNet-20",
        ("a projection shortcut instead of an identity shortcut", ["layer1.0.shortcut.0"]),
    ),
    wrong.zeros_all_after: answer(
        "original",
        "ResNet-20",
        ("takes every second pixel and pads with zero channels, all after instead of", FIRSTS[1:]),
    ),
    wrong.averaging_shortcuts: answer(
        "original",
        "ResNet-20",
        (
            "averages pixels and pads with zero channels, half before and half after instead of",
            FIRSTS[1:],
        ),
    ),
    wrong.no_gradient_through_shortcuts: answer(
        "original", "ResNet-20", ("the same layers, but other gradients", [])
    ),
    wrong.one_unit_too_few: answer(
        "original", "ResNet-20", ("units per stage 3, 3, 2; ResNet-20 has 3, 3, 3", [])
    ),
    wrong.wide: answer(
        "original",
        "ResNet-20",
        ("channels per stage 32, 64, 128; ResNet-20 has 16, 32, 64", []),
        ("32 channels in the stem; ResNet-20 has 16", []),
    ),
    wrong.stride_on_the_3x3: answer(
        "full-preact",
        "ResNet-29",
        ("the stride is on the 3×3 convolution, not on the first 1×1", FIRSTS[1:]),
    ),
    wrong.shared_unit: answer(
        "original",
        "ResNet-20",
        ("layers share their weights", [f"layer3.1.{n}" for n in ("conv1", "bn1", "conv2", "bn2")]),
    ),
    wrong.no_relu_in_one_unit: answer(
        "full-preact",
        "ResNet-20",
        ("no ReLU between the first and the second convolution", ["layer2.1"]),
    ),
    wrong.biases: answer(
        "original", "ResNet-20", ("a convolution with a bias", _each(UNITS[:3], ".conv1"))
    ),
    wrong.large_eps: answer(
        "full-preact", "ResNet-20", ("BN with eps 0.001 instead of 1e-05", _each(UNITS, ".bn2"))
    ),
    wrong.relu6: answer(
        "full-preact",
        "ResNet-20",
        ("BN, ReLU6 after the stem's convolution instead of BN-ReLU", ["layer1.0"]),
        ("BN, ReLU6 between the first and the second convolution instead of BN-ReLU", UNITS),
        ("BN, ReLU6 before the first convolution instead of BN-ReLU", UNITS[1:]),
        ("BN, ReLU6 after the last addition instead of BN-ReLU", ["layer3.2"]),
    ),
    wrong.leaky: answer(
        "original",
        "ResNet-20",
        ("BN, LeakyReLU between the first and the second convolution instead of BN-ReLU", UNITS),
        ("LeakyReLU after the addition instead of ReLU", UNITS[:-1]),
        ("LeakyReLU after the last addition instead of ReLU", ["layer3.2"]),
    ),
    wrong.dropout: answer(
        "original",
        "ResNet-20",
        ("random numbers in training, such as dropout", _each(UNITS[6:], ".drop")),
    ),
    wrong.scaled_branch: answer(
        "original", "ResNet-20", ("an extra multiplication by a constant", ["layer1.1"])
    ),
    wrong.scaled_images: answer(
        "original", "ResNet-20", ("before the stem's convolution", ["before"])
    ),
    wrong.frozen_statistics: answer(
        "original", "ResNet-20", ("the same layers, but other logits in training mode", [])
    ),
}


@pytest.mark.heavy
@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_the_mistake_is_named(make):
    answer = WRONG[make]
    found = resvar.identify(make())
    assert not found.known, str(found)
    assert (found.ordering.name, found.network) == (answer.ordering, answer.network)
    said = [(difference.text, difference.modules) for difference in found.differences]
    assert len(said) == len(answer.differences), said
    for text, modules in answer.differences:
        assert any(text in each and tuple(modules) == names for each, names in said), said


@pytest.mark.heavy
def test_bottlenecks_are_not_taken_for_resnet_110():
    found = identify(wrong.bottlenecks_for_110(), claimed_depth=110)
    assert (found.architecture.depth, found.network) == (164, "ResNet-164")
    (difference,) = found.differences
    assert "110 layers; it has 164: 54 units of 3 convolutions" in difference.text


def test_an_in_place_relu_makes_the_original_of_relu_only_preact():
    found = resvar.identify(wrong.relu_only_in_place())
    assert (found.known, found.ordering.name, found.network) == (True, "original", "ResNet-20")


def test_a_sentence_that_says_equal_is_only_said_of_equal_networks():
    assert "gives the same" not in str(resvar.identify(wrong.frozen_statistics()))
