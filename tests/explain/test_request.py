"""Names on the command line of `resvar show`: alone, together, with options, with --compare."""

from __future__ import annotations

import json

import pytest

from tests.explain.test_show import refused, shown, tables


def networks(capsys, *arguments):
    """The networks that are shown: title and ordering."""
    found = json.loads(shown(capsys, *arguments, "--format", "json"))
    if isinstance(found, dict):
        found = found.get("networks", [found])
    return [(network["title"], network["variant"]) for network in found]


V1, V2 = "original", "full-preact"


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("resnet50", [("ResNet-50", V1)]),
        ("resnext50_32x4d", [("ResNeXt-50 (32×4d)", V1)]),
        ("full-preact", [("ResNet-164", V2)]),
        ("full-preact-110", [("ResNet-110", V2)]),
        ("v2-164", [("ResNet-164", V2)]),
        ("resnet110", [("ResNet-110", V1)]),
        ("preact_resnet110", [("ResNet-110", V2)]),
        ("original full-preact", [("ResNet-164", V1), ("ResNet-164", V2)]),
        ("original,full-preact", [("ResNet-164", V1), ("ResNet-164", V2)]),
        ("original full-preact --depth 20", [("ResNet-20", V1), ("ResNet-20", V2)]),
        ("original v2 --family imagenet", [("ResNet-50", V1), ("ResNet-50", V2)]),
        ("v2 --family imagenet --cardinality 32 --base-width 4", [("ResNeXt-50 (32×4d)", V2)]),
        ("v2-101 --cardinality 32 --base-width 8", [("ResNeXt-101 (32×8d)", V2)]),
        ("resnet50 resnetv2_50", [("ResNet-50", V1), ("ResNet-50", V2)]),
        ("resnet50 resnet50", [("ResNet-50", V1)]),
        ("resnet50 resnet101 resnet18", [(f"ResNet-{n}", V1) for n in (50, 101, 18)]),
        ("resnet50 --variant v2", [("ResNet-50", V2)]),
        ("resnet50 --variant v1,v2", [("ResNet-50", V1), ("ResNet-50", V2)]),
        ("resnet20 resnet32 --variant v1,v2", [("ResNet-20", V1), ("ResNet-32", V2)]),
        ("resnet50 --depth 50 --family imagenet", [("ResNet-50", V1)]),
        ("v2-164 --variant full-preact", [("ResNet-164", V2)]),
        ("resnet18 --stem cifar", [("ResNet-18 with the cifar stem", V1)]),
        # An ordering without a depth takes the network that is named beside it.
        ("resnet50 full-preact", [("ResNet-50", V1), ("ResNet-50", V2)]),
        ("original v2-20", [("ResNet-20", V1), ("ResNet-20", V2)]),
        ("resnext50_32x4d v2", [("ResNeXt-50 (32×4d)", V1), ("ResNeXt-50 (32×4d)", V2)]),
    ],
)
def test_names_and_options_together(capsys, typed, found):
    assert networks(capsys, *typed.split()) == found


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("--compare original full-preact", [("ResNet-164", V1), ("ResNet-164", V2)]),
        ("--compare full-preact-110 original-164", [("ResNet-110", V2), ("ResNet-164", V1)]),
        ("--compare resnet50 resnet101", [("ResNet-50", V1), ("ResNet-101", V1)]),
        ("resnet50 resnet101 --compare", [("ResNet-50", V1), ("ResNet-101", V1)]),
        ("resnet50 --compare resnet101", [("ResNet-50", V1), ("ResNet-101", V1)]),
        ("--compare resnet50 v2", [("ResNet-50", V1), ("ResNet-50", V2)]),
        ("--variant v2 --compare resnet50 resnet101", [("ResNet-50", V2), ("ResNet-101", V2)]),
        ("--compare --variant v1,v2 --depth 20", [("ResNet-20", V1), ("ResNet-20", V2)]),
        ("--compare resnet50 resnet50", [("ResNet-50", V1), ("ResNet-50", V1)]),
    ],
)
def test_compare_is_a_flag_beside_two_names(capsys, typed, found):
    assert networks(capsys, *typed.split()) == found


def test_a_file_is_a_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "lead: [relu]\ntrail: []\nafter_add: [bn]\n", encoding="utf-8"
    )
    assert networks(capsys, "mine.yaml") == [("ResNet-164", "mine")]
    assert networks(capsys, "mine.yaml-20", "resnet20") == [
        ("ResNet-20", "mine"), ("ResNet-20", V1),
    ]  # fmt: skip
    assert "ResNet-50, mine" in shown(capsys, "--compare", "./mine.yaml", "resnet50")


def test_one_network_in_several_orderings_is_one_table(capsys):
    by_name = shown(capsys, "resnet50", "resnetv2_50")
    assert by_name == shown(
        capsys, "--variant", "original,full-preact", "--family", "imagenet", "--depth", "50"
    )
    assert by_name.startswith("ResNet-50 in several orderings\n")


def test_several_networks_stand_side_by_side(capsys):
    text = shown(capsys, "original-110", "full-preact-164")
    assert text.startswith("ResNet-110, original · ResNet-164, full-preact\n")
    (line,) = [line for line in text.splitlines() if line.startswith("parameters")]
    assert line.split()[1:] == ["1,727,962", "1,703,258"]
    assert text.count("⊕") == 3  # two units and the legend


def test_networks_of_different_families_stand_side_by_side(capsys):
    lines = shown(capsys, "resnet34", "resnet110").splitlines()
    assert ["conv5_x", "7×7", "⎡3×3,", "512⎤", "–"] in map(str.split, lines)
    (sizes,) = [line.split() for line in lines if line.startswith("conv2_x")]
    assert sizes == ["conv2_x", "56×56", "32×32"]
    (table,) = tables(shown(capsys, "resnet34", "resnet110", "--format", "markdown"))
    assert table[2][:3] == [
        "conv2_x", "", "56×56, 3×3 max pool, stride 2, [3×3, 64; 3×3, 64] × 3",
    ]  # fmt: skip
    assert table[2][3] == "32×32, [3×3, 16; 3×3, 16] × 18"
    assert table[5] == ["conv5_x", "7×7", "[3×3, 512; 3×3, 512] × 3", "–"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("resnet50 --depth 101", "--depth 101 contradicts the name 'resnet50'; leave out --depth"),
        ("full-preact-110 --depth 164", "--depth 164 contradicts the name 'full-preact-110'"),
        ("resnet50 --family cifar", "--family cifar contradicts the name 'resnet50'"),
        ("resnet50 --cardinality 32 --base-width 4",
         "leave out --cardinality, or name a network such as resnext50_32x4d."),
        ("full-preact --variant original", "--variant original contradicts the name 'full-preact'"),
        ("resnetv2_50 --variant v1", "--variant original contradicts the name 'resnetv2_50'"),
        ("resnet20 resnet32 --variant v1,v2,v1", "or one for each of the 2 names, not 3."),
        ("resnet50 resnet101 v2", "'v2' states no depth, and the other names state different ones; "
         "write it like v2-50."),
        ("resnt50", "there is no network named 'resnt50'; did you mean 'resnet50'"),
        ("full-preakt-110", "did you mean 'full-preact-110'"),
        ("resnet50, ", "there is no network named ''"),
        ("none.yaml", "none.yaml: cannot be read"),
        ("full-preact-21", "depth 21 fits no residual unit"),
        ("full-preact-38", "(--unit …)"),
        ("resnet20 --cardinality 2", "--cardinality 2 contradicts the name 'resnet20'"),
        ("v2-20 --cardinality 2", "groups need bottlenecks"),
        ("--compare", "--compare takes two networks; an example is --compare resnet50 resnet101."),
        ("--compare resnet50", "--compare takes two networks"),
        ("--compare resnet18 resnet34 resnet50", "--compare takes two networks, not 3"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_sentence_and_exit_2(capsys, typed, message):
    assert message in refused(capsys, *typed.split(" "))
