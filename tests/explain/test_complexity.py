"""Counts against paper and pencil, built networks, torch's counter, torchvision, the papers."""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resvar.errors import UserError
from resvar.explain.complexity import Complexity, network_differences
from resvar.files import configs
from resvar.models.architecture import plan
from resvar.models.names import WELL_KNOWN, named, title
from resvar.models.network import ResidualNetwork, build_model
from resvar.models.ordering import Ordering, find_ordering
from resvar.strict_yaml import read_yaml

VARIANTS = ("original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact")
GOLDEN = read_yaml(configs() / "complexity.yaml")["networks"]
IMAGENET = [name for name in GOLDEN if named(name)["family"] == "imagenet"]


def described(name, variant=None, **changes):
    arguments = named(name) | changes
    ordering = find_ordering(variant or arguments["variant"])
    del arguments["variant"], arguments["num_classes"]
    return Complexity.of(ordering, plan(**arguments))


def built(complexity):
    """The network itself, without memory or numbers."""
    with torch.device("meta"):
        return ResidualNetwork(
            complexity.ordering, complexity.architecture, complexity.num_classes
        ).eval()


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network, shape):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops()


# --- on paper -------------------------------------------------------------------------------------


def test_resnet_8_in_full_preactivation_counted_on_paper():
    network = described("resnet8", "full-preact")
    counts = {row.name: (row.parameters, row.multiply_adds) for row in network.stages}
    assert counts == {
        # 3×3 from 3 to 16 channels; the first lead's BN has 2·16. The image has 32² pixels.
        "conv1": (3 * 9 * 16 + 32, 3 * 9 * 16 * 32**2),
        # Two 3×3 from 16 to 16, BN between them; the first unit's lead is counted above.
        "conv2_x": (2 * (16 * 9 * 16) + 32, 2 * (16 * 9 * 16) * 32**2),
        # Lead on 16 channels, 3×3 from 16 to 32 with stride 2, BN on 32, 3×3 from 32 to 32.
        "conv3_x": (32 + 4_608 + 64 + 9_216, (4_608 + 9_216) * 16**2),
        # The same with twice the channels.
        "conv4_x": (64 + 18_432 + 128 + 36_864, (18_432 + 36_864) * 8**2),
        # The lead once more, on 64 channels; 64 weights and a bias for each of 10 classes.
        "head": (128 + 64 * 10 + 10, 64 * 10),
    }
    assert network.parameters == 464 + 4_640 + 13_920 + 55_488 + 778 == 75_290
    assert network.multiply_adds == 442_368 + 4_718_592 + 2 * 3_538_944 + 640 == 12_239_488
    assert network.layer_sum == "1 + 1·2 + 1·2 + 1·2 + 1 = 8"


def test_a_bottleneck_with_a_projection_counted_on_paper():
    row = described("resnet11", "original").stages[1]
    # 1×1 from 16 to 16, 3×3 from 16 to 16, 1×1 from 16 to 64, and the projection from 16 to 64.
    weights = 16 * 16 + 16 * 9 * 16 + 16 * 64 + 16 * 64
    # BN on 16, 16, 64 channels, and on the 64 of the projection: a scale and a shift each.
    assert row.parameters == weights + 2 * (16 + 16 + 64 + 64)
    assert row.multiply_adds == weights * 32**2
    assert row.layers == 3  # the projection is no layer
    assert row.unit == "[1×1, 16; 3×3, 16; 1×1, 64] × 1"


def test_the_stride_decides_the_resolution_of_the_first_convolution():
    first, middle = (described("resnet50", stride_on=place) for place in ("first", "3x3"))
    # conv3_x, conv4_x, conv5_x: a 1×1 that runs at twice the side, four times the pixels.
    spared = 256 * 128 * 28**2 * 3 + 512 * 256 * 14**2 * 3 + 1024 * 512 * 7**2 * 3
    assert middle.multiply_adds - first.multiply_adds == spared
    assert middle.parameters == first.parameters


# --- against built networks and torch's counter ---------------------------------------------------


DEEP = ("resnet101", "resnet152", "resnext101_32x8d")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name
        for name in GOLDEN
        if name != "resnet1001"
    ],
)
@pytest.mark.parametrize("variant", ["original", "full-preact"])
def test_counts_are_those_of_the_built_network_and_of_torchs_flop_counter(name, variant):
    complexity = described(name, variant)
    network = built(complexity)
    assert complexity.parameters == parameters(network)
    assert 2 * complexity.multiply_adds == flops(network, complexity.input)
    assert complexity.layers == network.layers


ops = st.lists(st.sampled_from(["bn", "relu"]), max_size=3).map(tuple)


@pytest.mark.heavy
@settings(max_examples=40)
@given(
    orderings=st.builds(
        Ordering, st.just("mine"), ops, ops, ops, ops, unusual=st.just(True)
    ),
    network=st.sampled_from([(8, 1), (11, 1), (14, 1), (20, 1), (29, 4), (20, 4)]),
    stem=st.sampled_from(["cifar", "imagenet"]),
    shortcut=st.sampled_from(["pad", "project"]),
    stride_on=st.sampled_from(["first", "3x3"]),
    classes=st.integers(1, 20),
)  # fmt: skip
def test_any_ordering_in_any_network_has_the_counts_of_the_built_one(
    orderings, network, stem, shortcut, stride_on, classes
):
    depth, groups = network
    architecture = plan(
        depth, unit="bottleneck" if groups > 1 else None, stem=stem, cardinality=groups,
        base_width=64 if groups == 1 else 8, shortcut=shortcut, stride_on=stride_on,
    )  # fmt: skip
    complexity = Complexity.of(orderings, architecture, classes)
    network = built(complexity)
    assert complexity.parameters == parameters(network)
    assert 2 * complexity.multiply_adds == flops(network, complexity.input)


@pytest.mark.parametrize("name", ["resnet20", "resnet164", "resnet34", "resnext50_32x4d"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_row_is_a_part_of_the_built_network(name, variant):
    complexity = described(name, variant)
    network = built(complexity)
    parts = [nn.ModuleList([network.stem, network.first_lead]), *network.stages]
    parts.append(nn.ModuleList([network.head_lead, network.classifier]))
    assert [row.parameters for row in complexity.stages] == [parameters(part) for part in parts]
    shapes = {}
    for row, stage in zip(complexity.stages[1:-1], network.stages, strict=True):
        stage.register_forward_hook(
            lambda _module, _inputs, output, name=row.name: shapes.update({name: output.shape[1:]})
        )
        convolutions = [part for part in stage[-1].branch if isinstance(part, nn.Conv2d)]
        assert row.units == len(stage)
        assert [(conv.kernel, conv.channels_out, conv.groups) for conv in row.convolutions] == [
            (conv.kernel_size[0], conv.out_channels, conv.groups) for conv in convolutions
        ]
    network.stem.register_forward_hook(
        lambda _module, _inputs, output: shapes.update({"conv1": output.shape[1:]})
    )
    network(torch.empty(1, *complexity.input, device="meta"))
    for row in complexity.stages[:-1]:
        assert shapes[row.name] == (row.channels, row.size, row.size)


# --- the golden file ------------------------------------------------------------------------------


def test_the_golden_file_has_the_networks_that_people_ask_about():
    assert set(GOLDEN) == {
        "resnet20", "resnet110", "resnet164", "resnet1001", "resnet18", "resnet34", "resnet50",
        "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext29_8x64d",
    }  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", GOLDEN)
def test_counts_are_the_golden_ones(name, variant):
    complexity = described(name, variant)
    assert complexity.parameters == GOLDEN[name]["parameters"][variant]
    assert complexity.multiply_adds == GOLDEN[name]["multiply_adds"]


@pytest.mark.heavy
def test_the_deepest_golden_network_has_them_when_built():
    network = built(described("resnet1001", "full-preact"))
    assert parameters(network) == GOLDEN["resnet1001"]["parameters"]["full-preact"]


def published():
    for name, golden in GOLDEN.items():
        for entry in golden.get("published", []):
            for count in ("parameters", "multiply_adds"):
                if count in entry:
                    yield pytest.param(name, count, entry, id=f"{name} {entry[count]}")


@pytest.mark.parametrize(("name", "count", "entry"), list(published()))
def test_counts_round_to_the_published_ones(name, count, entry):
    number, letter = entry[count].split()
    digit = Decimal(number).as_tuple().exponent
    network = described(name, stride_on=entry.get("stride_on"))
    ours = Decimal(getattr(network, count)).scaleb(-{"M": 6, "G": 9}[letter])
    rounding = ROUND_DOWN if entry.get("cut") else ROUND_HALF_UP
    assert ours.quantize(Decimal(1).scaleb(digit), rounding) == Decimal(number)


def test_a_figure_is_marked_as_cut_only_where_rounding_does_not_give_it():
    marked = [param.values for param in published() if param.values[2].get("cut")]
    assert len(marked) == 3
    for name, count, entry in marked:
        unmarked = {key: value for key, value in entry.items() if key != "cut"}
        with pytest.raises(AssertionError):
            test_counts_round_to_the_published_ones(name, count, unmarked)


@pytest.mark.parametrize(
    ("name", "count", "figure"),
    [
        ("resnet50", "parameters", 25.56e6),
        ("resnet50", "multiply_adds", 4.09e9),
        ("resnext50_32x4d", "parameters", 25.03e6),
        ("resnext50_32x4d", "multiply_adds", 4.23e9),
        ("resnet110", "parameters", 1.73e6),
        ("resnet110", "multiply_adds", 253e6),
        ("resnext29_8x64d", "parameters", 34.4e6),
    ],
)
def test_the_figures_that_people_know(name, count, figure):
    assert getattr(described(name), count) == pytest.approx(figure, rel=2e-3)


@pytest.mark.parametrize("name", IMAGENET)
def test_original_networks_have_the_parameters_of_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    assert described(name, "original").parameters == parameters(theirs)


@pytest.mark.parametrize("name", IMAGENET)
def test_torchvision_publishes_what_the_golden_file_says(name):
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    (entry,) = [e for e in GOLDEN[name]["published"] if "torchvision" in e["source"]]
    assert entry["source"] == f"torchvision, {type(weights).__name__}.IMAGENET1K_V1.meta"
    assert float(entry["multiply_adds"].split()[0]) == weights.meta["_ops"]
    assert GOLDEN[name]["parameters"]["original"] == weights.meta["num_params"]


def test_projections_are_needed_for_the_published_multiply_adds():
    projections = [
        module[0] for module in built(described("resnet50")).modules()
        if type(module).__name__ == "Projection"
    ]  # fmt: skip
    sizes = (56, 28, 14, 7)
    spared = sum(p.weight.numel() * s**2 for p, s in zip(projections, sizes, strict=True))
    assert f"{(described('resnet50').multiply_adds - spared) / 1e9:.2f}" == "3.73"


# --- the stride of a bottleneck -------------------------------------------------------------------


def hooked_multiply_adds(network):
    """Counted from the shapes that pass through torchvision's modules, without our code."""
    total = 0

    def count(module, _inputs, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            per_value = module.in_channels // module.groups * module.kernel_size[0] ** 2
        else:
            per_value = module.in_features
        total += per_value * output.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return total


@pytest.mark.parametrize(
    ("depth", "on_3x3", "on_first", "printed"),
    [
        (50, "4.09", "3.86", "3.8 G"),
        (101, "7.80", "7.57", "7.6 G"),
        (152, "11.51", "11.28", "11.3 G"),
    ],
)
def test_both_strides_are_counted_and_told_apart(depth, on_3x3, on_first, printed):
    network = described(f"resnet{depth}")
    assert network.architecture.stride_on == "3x3"
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")()
    for place, digits in (("3x3", on_3x3), ("first", on_first)):
        counted = hooked_multiply_adds(theirs)
        assert network.multiply_adds_by_stride[place] == counted
        assert described(f"resnet{depth}", stride_on=place).multiply_adds == counted
        assert f"{counted / 1e9:.2f}" == digits
        for block in theirs.modules():  # from torchvision's place to the paper's
            if isinstance(block, torchvision.models.resnet.Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    assert network.published is not None
    assert (network.published["multiply_adds"], network.published["stride_on"]) == (
        printed,
        "first",
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet34", {}),  # basic units: both strides are the same convolution
        ("resnet50", {"stem": "cifar"}),
        ("resnet50", {"shortcut": "pad"}),
        ("resnext50_32x4d", {}),
        ("resnet164", {}),
    ],
)
def test_the_paper_s_figure_is_only_for_the_paper_s_networks(name, changes):
    network = described(name, **changes)
    assert network.published is None
    same = len(set(network.multiply_adds_by_stride.values())) == 1
    assert same == (network.architecture.unit == "basic")


def test_the_paper_s_figure_is_for_a_thousand_classes_and_every_ordering():
    other = described("resnet50")
    assert replace(other, num_classes=10).published is None
    for variant in VARIANTS:
        assert described("resnet50", variant, stride_on="first").published == other.published


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet50", "1 + 3·3 + 4·3 + 6·3 + 3·3 + 1 = 50"),
        ("resnet101", "1 + 3·3 + 4·3 + 23·3 + 3·3 + 1 = 101"),
        ("resnet152", "1 + 3·3 + 8·3 + 36·3 + 3·3 + 1 = 152"),
        ("resnet18", "1 + 2·2 + 2·2 + 2·2 + 2·2 + 1 = 18"),
        ("resnet110", "1 + 18·2 + 18·2 + 18·2 + 1 = 110"),
        ("resnet164", "1 + 18·3 + 18·3 + 18·3 + 1 = 164"),
        ("resnext29_8x64d", "1 + 3·3 + 3·3 + 3·3 + 1 = 29"),
    ],
)
def test_layers_are_worked_out_as_people_do_it(name, text):
    assert described(name).layer_sum == text


@pytest.mark.parametrize("name", [name for name in WELL_KNOWN if "1202" not in name])
def test_a_worked_out_sum_is_right_and_is_the_depth(name):
    complexity = described(name)
    total, _, result = complexity.layer_sum.partition(" = ")
    terms = [[int(factor) for factor in term.split("·")] for term in total.split(" + ")]
    counted = sum(term[0] * (term[1] if len(term) > 1 else 1) for term in terms)
    assert counted == int(result) == complexity.layers == complexity.architecture.depth


# --- names ----------------------------------------------------------------------------------------


def test_names_are_arguments_of_build_model():
    with torch.device("meta"):
        network = build_model(**named("ResNeXt50_32x4d"))
        other = build_model(**named("resnetv2_20"))
    assert parameters(network) == 25_028_904
    assert network.ordering.name == "original"
    assert (other.ordering.name, other.architecture.depth) == ("full-preact", 20)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_imagenet_depths_are_imagenet_networks_and_others_are_not(depth):
    assert named(f"resnet{depth}")["family"] == "imagenet"
    assert named("resnet20")["family"] == named("resnet110")["family"] == "cifar"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt50", "no network named 'resnt50'; did you mean 'resnet50'"),
        ("resnext50", "does not state its groups; write it like resnext50_32x4d"),
        ("vgg", "names look like resnet50"),
        ("resnet", "no network named 'resnet'"),
        ("resnets50", "did you mean 'resnet50'"),
        ("", "no network named ''"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        named(name)


def test_titles_name_the_groups_and_a_stem_from_elsewhere():
    assert title(plan(110)) == "ResNet-110"
    assert title(plan(50, "imagenet", cardinality=32, base_width=4)) == "ResNeXt-50 (32×4d)"
    assert title(plan(18, "imagenet", stem="cifar")) == "ResNet-18 with the cifar stem"


# --- differences ----------------------------------------------------------------------------------


def found(one, other):
    return {(d.stage, d.what): (d.a, d.b) for d in network_differences(one, other)}


def test_resnet_101_has_17_more_units_in_conv4_x_and_differs_in_nothing_else():
    assert found(described("resnet50"), described("resnet101")) == {
        ("network", "depth"): (50, 101),
        ("conv4_x", "units"): (6, 23),
    }
    (units,) = [
        d
        for d in network_differences(described("resnet50"), described("resnet101"))
        if d.what == "units"
    ]
    assert units.text == "6 → 23 units (+17)"


def test_resnext_50_has_wider_insides_in_groups():
    expected = {("network", "cardinality"): (1, 32), ("network", "base_width"): (64, 4)}
    for index, width in enumerate((64, 128, 256, 512)):
        expected[f"conv{index + 2}_x", "inner"] = (width, 2 * width)
        expected[f"conv{index + 2}_x", "groups"] = (1, 32)
    assert found(described("resnet50"), described("resnext50_32x4d")) == expected


def test_orderings_differ_in_their_places_only():
    assert found(described("resnet20", "original"), described("resnet20", "full-preact")) == {
        ("network", "variant"): ("original", "full-preact"),
        ("network", "lead"): ([], ["bn", "relu"]),
        ("network", "trail"): (["bn"], []),
        ("network", "after_add"): (["relu"], []),
    }


def test_a_network_does_not_differ_from_itself():
    assert network_differences(described("resnet50"), described("resnet50")) == []


def test_basic_units_against_bottlenecks_and_four_stages_against_three():
    assert found(described("resnet34"), described("resnet50"))["conv2_x", "kernels"] == (
        [3, 3], [1, 3, 1],
    )  # fmt: skip
    across = found(described("resnet34"), described("resnet110"))
    assert across["conv5_x", "units"] == (3, 0)
    assert across["head", "classes"] == (1000, 10)
    assert across["conv1", "size"] == (112, 32)
    assert found(described("resnet110"), described("resnet34"))["conv5_x", "units"] == (0, 3)
