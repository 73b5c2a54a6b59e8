"""Networks that others wrote are named rightly; ours are, in every ordering; wrong ones are not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import resvar
from resvar.identification.answer import as_dict
from resvar.identification.identify import identify
from resvar.models.ordering import PAPER_ORDER, known_variants
from resvar.models.unit import ResidualUnit

slow = pytest.mark.slow


def texts(found):
    return {difference.text: difference.modules for difference in found.differences}


# --- other people's -------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("resnet18", "ResNet-18"),
        pytest.param("resnet34", "ResNet-34", marks=slow),
        ("resnet50", "ResNet-50"),
        pytest.param("resnet101", "ResNet-101", marks=slow),
        pytest.param("resnet152", "ResNet-152", marks=slow),
        ("resnext50_32x4d", "ResNeXt-50 (32×4d)"),
        pytest.param("resnext101_64x4d", "ResNeXt-101 (64×4d)", marks=slow),
    ],
)
def test_torchvisions_networks_are_original(name, network):
    found = identify(getattr(models, name)())
    assert (found.known, found.published, found.ordering.name) == (True, True, "original")
    assert (found.network, found.num_classes, found.input) == (network, 1000, (3, 224, 224))
    assert found.comparison.largest <= 1e-12
    assert found.comparison.training_logits is not None


@pytest.mark.heavy
@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=slow)])
def test_timms_preactivation_is_full_preact_in_evaluation_mode(depth):
    timm = pytest.importorskip("timm")
    found = identify(timm.create_model(f"resnetv2_{depth}"))
    assert (found.known, found.published) == (True, False)
    assert (found.ordering.name, found.network) == ("full-preact", f"ResNet-{depth}")
    assert found.comparison.largest <= 1e-12
    assert found.comparison.training_logits is None
    assert "pools before the first BN" in found.notes[0]


@pytest.mark.heavy
@pytest.mark.parametrize("depth", [18, 34])
def test_the_first_shortcut_of_timms_basic_preactivation_takes_the_raw_signal(depth):
    timm = pytest.importorskip("timm")
    found = identify(timm.create_model(f"resnetv2_{depth}"))
    assert not found.known
    assert texts(found) == {
        "the shortcut takes the raw signal; in full-preact it takes the signal after BN-ReLU": (
            "stages.0.blocks.0",
        )
    }


@pytest.mark.heavy
def test_what_is_no_residual_network_is_refused():
    for network in (models.vgg11_bn(), models.densenet121(), models.alexnet()):
        with pytest.raises(resvar.UserError, match="not a residual network"):
            identify(network)


@pytest.mark.heavy
def test_a_residual_network_of_another_family_is_called_so():
    found = identify(models.mobilenet_v2())
    assert not found.known
    assert any("ReLU6" in text for text in texts(found))
    assert str(found).startswith("the network is a residual network of another family; nearest:")


# --- ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [20, pytest.param(164, marks=slow)])
@pytest.mark.parametrize("variant", known_variants())
def test_every_ordering_is_known(variant, depth):
    found = identify(resvar.build_model(variant, depth))
    assert (found.known, found.ordering.name, found.architecture.depth) == (True, variant, depth)
    assert found.published == (variant in (PAPER_ORDER if depth == 164 else ["original"]))
    assert found.comparison.largest == 0


@pytest.mark.heavy
@pytest.mark.parametrize("variant", PAPER_ORDER)
def test_every_ordering_of_an_imagenet_network_is_known(variant):
    found = identify(resvar.build_model(variant, 18, family="imagenet", num_classes=7))
    assert (found.known, found.ordering.name, found.num_classes) == (True, variant, 7)


@pytest.mark.slow
def test_an_unpublished_depth_and_another_stem_are_known_but_not_published():
    shallow = identify(resvar.build_model("full-preact", 14, unit="basic"))
    stem = identify(resvar.build_model("original", 18, family="imagenet", stem="cifar"))
    wide = identify(models.wide_resnet50_2())
    assert [(found.known, found.published) for found in (shallow, stem, wide)] == [
        (True, False)
    ] * 3
    assert stem.network == "ResNet-18 with the cifar stem"
    assert wide.network == "Wide ResNet-50-2"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"depth": 20, "shortcut": "project"},
            "projections where the papers pad with zero channels",
        ),
        ({"depth": 29, "shortcut": "pad"}, "padding with zero channels where the papers project"),
        (
            {"depth": 110, "unit": "bottleneck"},
            "bottlenecks; the published ResNet-110 has basic units",
        ),
        (
            {"depth": 29, "stride_on": "3x3"},
            "the stride is on the 3×3 convolution, not on the first 1×1",
        ),
    ],
)
def test_choices_that_the_papers_do_not_make_are_differences(options, text):
    found = identify(resvar.build_model("original", **options))
    assert list(texts(found)) == [text]
    assert not found.known
    assert found.comparison.largest == 0  # resvar builds this one as well


@pytest.mark.heavy
def test_the_stride_of_an_imagenet_bottleneck_may_be_on_either_convolution():
    found = identify(resvar.build_model("original", 50, family="imagenet", stride_on="first"))
    assert found.published
    assert "arXiv:1512.03385" in found.notes[0]


def test_an_ordering_without_a_name_is_described():
    twice = resvar.Ordering("mine", lead=("relu", "bn", "relu"), unusual=True)
    found = identify(resvar.build_model(twice, 20))
    assert not found.known
    assert "lead: [relu, bn, relu], between: [bn, relu], trail: [], after_add: []" in found.notes[0]


@pytest.mark.parametrize(
    ("variant", "other"), [("full-preact", "bn-after-add"), ("original", "relu-only-preact")]
)
def test_without_an_identity_shortcut_two_orderings_are_one_network(variant, other):
    found = identify(resvar.build_model(variant, 11))
    assert found.known
    assert found.ordering.name == variant
    assert other in found.notes[0]


@pytest.mark.heavy
def test_a_claimed_depth_is_held_against_the_layers():
    network = resvar.build_model("original", 29)
    assert identify(network, claimed_depth=29).known
    (difference,) = identify(network, claimed_depth=20).differences
    assert "says 20 layers; it has 29: 9 units of 3" in difference.text


@pytest.mark.heavy
def test_the_layers_of_a_deep_stem_are_counted_in_the_sentence_about_the_depth():
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet26d")
    *_, difference = identify(network, claimed_depth=26).differences
    assert difference.text == (
        "its name says 26 layers; it has 28: 8 units of 3 convolutions, 3 convolutions in the stem "
        "and the linear layer"
    )


# --- how it is done -------------------------------------------------------------------------------


class Lanes(nn.Module):
    """ResNeXt's unit with branches side by side (arXiv:1611.05431, figure 3, a and b)."""

    def __init__(self, channels, out, stride, concatenates, width, branches=4):
        super().__init__()
        self.concatenates = concatenates
        self.first, self.second, self.last = (nn.ModuleList() for _ in range(3))
        for _ in range(branches):
            conv, bn = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
            self.first.append(nn.Sequential(conv, bn, nn.ReLU()))
            conv, bn = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.second.append(nn.Sequential(conv, bn, nn.ReLU()))
            self.last.append(nn.Conv2d(width, out, 1, bias=False))
        if concatenates:
            self.last = nn.Conv2d(branches * width, out, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        )

    def forward(self, x):
        lanes = [second(first(x)) for first, second in zip(self.first, self.second, strict=True)]
        if self.concatenates:
            branch = self.last(torch.cat(lanes, 1))
        else:
            branch = sum(last(lane) for last, lane in zip(self.last, lanes, strict=True))
        return F.relu(self.shortcut(x) + self.bn(branch))


@pytest.mark.heavy
@pytest.mark.parametrize("concatenates", [False, True])
def test_branches_side_by_side_are_groups(concatenates):
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        Lanes(64, 256, 1, concatenates, width=8),
        Lanes(256, 512, 2, concatenates, width=16),
        Lanes(512, 1024, 2, concatenates, width=32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
    found = identify(network)
    assert (found.known, found.network) == (True, "ResNeXt-11 (4×8d)")
    assert found.comparison.largest <= 1e-12


def test_the_network_and_the_generator_are_left_as_they_are():
    network = resvar.build_model("original", 8).train()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    assert identify(network).known
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_zero_scales_hide_nothing(factor):
    """The usual initialisation of the last BN makes every unit an identity."""
    network = resvar.build_model("original", 8)
    for stage in network.stages:
        nn.init.zeros_(stage[0].branch[-1].weight)
        stage[0].branch.register_forward_hook(lambda *found: found[-1] * factor)
    assert identify(network).known == (factor == 1.0)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "wrapped",
    [
        nn.DataParallel,
        lambda network: network.half(),
        lambda network: network.double(),
        lambda network: network.to("meta"),
        lambda network: torch.compile(network),
        lambda network: network.requires_grad_(False),
        lambda network: nn.Sequential(network, nn.Identity()),
        lambda network: network.to(memory_format=torch.channels_last),
    ],
)
def test_wrappers_precision_and_device_do_not_matter(wrapped):
    assert identify(wrapped(resvar.build_model("full-preact", 20))).known


def test_a_network_that_cannot_be_trained_is_not_known():
    """ReLU's backward pass needs its output, which the addition in place overwrites."""

    class Overwriting(ResidualUnit):
        def forward(self, x):
            return self.branch(x).add_(self.shortcut(x))

    network = resvar.build_model("relu-before-add", 8)
    for stage in network.stages:
        stage[0].__class__ = Overwriting
    found = identify(network)
    (text,) = texts(found)
    assert text.startswith("the same layers, but other gradients: ")
    assert as_dict(found, "mine")["comparison"]["gradients"] is None


def test_parameters_that_the_signal_never_meets_are_noted():
    network = resvar.build_model("original", 8)
    network.forgotten = nn.BatchNorm2d(16)
    found = identify(network)
    assert found.known
    assert found.notes == ("the signal never meets the parameters of forgotten",)


def test_shared_weights_are_a_difference():
    network = resvar.build_model("original", 20)
    units = network.stages[0]
    units[1].branch[0].weight = units[2].branch[0].weight
    (text,) = texts(identify(network))
    assert text == "layers share their weights"


def test_json_and_text_say_the_same():
    found = identify(resvar.build_model("original", 20, shortcut="project"))
    values = as_dict(found, "mine")
    assert values["known"] is False
    assert (values["ordering"], values["depth"], values["units"]) == ("original", 20, [3, 3, 3])
    assert values["differences"][0]["modules"] == ["stages.1.0.shortcut.0", "stages.2.0.shortcut.0"]
    assert len(values["layers"]["units"]) == 9
    assert values["layers"]["units"][1]["before_split"] == ["relu"]
    for difference in values["differences"]:
        assert difference["text"] in str(found)


@pytest.mark.parametrize("shape", [(3, 32), (3, 0, 32), (3, 32.0, 32), ("3", "32", "32")])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(resvar.UserError, match="channels, height and width"):
        resvar.identify(resvar.build_model("original", 8), shape)


def test_an_image_that_does_not_fit_is_named():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 10))
    with pytest.raises(resvar.UserError, match=r"image of 3×28×28: RuntimeError: .*--input CxHxW"):
        identify(network, (3, 28, 28))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("resnet50", "takes a torch.nn.Module, not str"),
        (nn.Conv2d(3, 3, 3), r"values of shape \(1, 3, 30, 30\), not logits"),
    ],
)
def test_other_objects_are_refused(network, words):
    with pytest.raises(resvar.UserError, match=words):
        resvar.identify(network)
