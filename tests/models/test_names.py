"""Networks by the names that people type: what each states, and what is refused."""

from __future__ import annotations

import pytest

import resvar
from resvar.errors import UserError
from resvar.models.names import named, stated

RESNET_50 = {"depth": 50, "family": "imagenet", "cardinality": 1, "base_width": 64}
RESNET_110 = {"depth": 110, "family": "cifar", "cardinality": 1, "base_width": 64}
RESNEXT_50 = RESNET_50 | {"cardinality": 32, "base_width": 4}


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("resnet50 ResNet50 ResNet-50 resnet_50", RESNET_50),
        ("resnet110 resnet-110 RESNET110", RESNET_110),
        ("resnext50_32x4d ResNeXt50_32x4d resnext-50-32x4d", RESNEXT_50),
        ("wide_resnet50_2 WideResNet50-2 wide-resnet-50-2", RESNET_50 | {"base_width": 128}),
        ("resnetv2_50 resnetv2-50 resnet_v2_50 resnet50v2 ResNet50V2 resnet50_v2",
         RESNET_50 | {"variant": "full-preact"}),
        ("resnet50v1 resnet50_v1 resnetv1_50 v1-resnet50 original-resnet50 Original_ResNet50",
         RESNET_50 | {"variant": "original"}),
        ("preact_resnet110 preact-resnet-110 PreActResNet110 preresnet110 pre_act_resnet110 "
         "full-preact-resnet110 v2_resnet110 preact_resnet110_v2",
         RESNET_110 | {"variant": "full-preact"}),
        ("full-preact-resnext50_32x4d", RESNEXT_50 | {"variant": "full-preact"}),
        ("full-preact v2 V2 Full-PreAct full_preact", {"variant": "full-preact"}),
        ("original v1 bn-trail-relu-after-add", {"variant": "original"}),
        ("relu-only-preact", {"variant": "relu-only-preact"}),
        ("full-preact-110 v2-110 V2_110 full_preact_110", {"variant": "full-preact", "depth": 110}),
        ("bn-trail-relu-after-add-20 v1-20", {"variant": "original", "depth": 20}),
        ("bn-after-add-50_32x4d", {"variant": "bn-after-add", "depth": 50, "cardinality": 32,
                                   "base_width": 4}),
        ("mine.yaml", {"variant": "mine.yaml"}),
        ("Some_Dir/my-2.yml", {"variant": "Some_Dir/my-2.yml"}),
        ("My_2.yaml-110", {"variant": "My_2.yaml", "depth": 110}),
        ("mine.yaml-resnet50", RESNET_50 | {"variant": "mine.yaml"}),
    ],
)  # fmt: skip
def test_a_name_states_what_people_mean_by_it(names, parts):
    for name in names.split():
        assert stated(name) == parts, name


def test_the_package_offers_the_names():
    assert resvar.named is named


def test_the_rest_of_a_network_is_the_usual():
    assert named("full-preact-110") == {
        "variant": "full-preact", "depth": 110, "family": "cifar", "num_classes": 10,
        "cardinality": 1, "base_width": 64,
    }  # fmt: skip
    assert named("original-50") == named("resnet50")
    assert named("resnet50")["num_classes"] == 1000


def test_a_network_needs_a_depth():
    with pytest.raises(UserError, match="'full-preact' states no depth; write it like full-preact"):
        named("full-preact")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("full-preakt", "there is no network named 'full-preakt'; did you mean 'full-preact'"),
        ("full-preakt-110", "did you mean 'full-preact-110'"),
        ("orignal-20", "did you mean 'original-20'"),
        ("110", "did you mean 'resnet110'"),
        ("resnet50_32x4d", "did you mean 'resnext50_32x4d'"),
        ("wide_resnet50", "did you mean 'wide_resnet50_2'"),
        ("resnet50_2", "did you mean 'resnet50'"),
        ("full-preact-50-2", "did you mean 'full-preact"),
        ("xresnet50", "did you mean 'resnet50'"),
        ("full-preact-resnext50", "does not state its groups"),
        ("full-preact-", "did you mean 'full-preact'"),
        ("vgg-16", "names look like resnet50"),
        ("-110", "names look like resnet50"),
        ("preact_resnet50_v1", "states two orderings, full-preact and original."),
        ("v2-resnet50v1", "states two orderings"),
    ],
)
def test_a_wrong_name_is_one_sentence_with_the_nearest(name, message):
    with pytest.raises(UserError) as caught:
        stated(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_very_long_name_is_refused_at_once():
    for name in ("resnet" + "9" * 100_000, "-" * 100_000, "a-" * 50_000 + "110", "v2-" * 30_000):
        with pytest.raises(UserError, match="there is no network named"):
            stated(name)
