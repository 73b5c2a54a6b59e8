"""Networks against the paper's counts, against networks as people write them, and torchvision's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from resvar.errors import UserError
from resvar.models.architecture import plan
from resvar.models.network import build_model
from resvar.models.ordering import Ordering
from resvar.models.unit import Padding

VARIANTS = ("original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact")


def meta_model(variant, depth, **options):
    """A network without memory or numbers."""
    with torch.device("meta"):
        return build_model(variant, depth, **options)


# --- counts ---------------------------------------------------------------------------------------


def published_parameters(variant, depth):
    """As the rules of the orderings give them, worked out on paper."""
    projection_has_bn = variant in ("original", "relu-before-add", "relu-only-preact")
    return {
        20: 269_722,
        110: 1_727_962,
        164: 1_704_154 if projection_has_bn else 1_703_258,
        1001: 10_328_602 if projection_has_bn else 10_327_706,
    }[depth]


@pytest.mark.parametrize("depth", [20, 110, 164, pytest.param(1001, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_layers_are_those_of_the_paper(variant, depth):
    network = meta_model(variant, depth)
    assert sum(p.numel() for p in network.parameters()) == published_parameters(variant, depth)
    assert network.layers == depth == count_layers(network)


def count_layers(network):
    """Convolutions that no shortcut holds, and linear layers."""
    return sum(
        isinstance(part, nn.Conv2d | nn.Linear)
        for name, part in network.named_modules()
        if ".shortcut" not in name
    )


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (8, {}),
        (11, {}),
        (38, {"unit": "basic"}),
        (38, {"unit": "bottleneck"}),
        (29, {"cardinality": 8, "base_width": 64}),
        (20, {"shortcut": "project"}),
        (1202, {}),
        *((depth, {"family": "imagenet"}) for depth in (18, 34, 50, 101, 152)),
    ],
)
def test_the_depth_is_the_number_of_layers(depth, options):
    network = meta_model("full-preact", depth, **options)
    assert network.layers == depth == count_layers(network)


def test_the_classes_change_the_last_layer_only():
    ten, hundred = meta_model("original", 20), meta_model("original", 20, num_classes=100)
    numbers = [sum(p.numel() for p in network.parameters()) for network in (ten, hundred)]
    assert numbers[1] - numbers[0] == 90 * (64 + 1)


# --- which depths there are -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "unit"),
    [(20, "basic"), (32, "basic"), (44, "basic"), (56, "basic"), (110, "basic"), (1202, "basic"),
     (164, "bottleneck"), (1001, "bottleneck"), (8, "basic"), (14, "basic"), (11, "bottleneck"),
     (29, "bottleneck"), (47, "bottleneck")],
)  # fmt: skip
def test_a_depth_takes_the_units_of_the_paper_or_those_that_it_fits(depth, unit):
    assert plan(depth).unit == unit


@pytest.mark.parametrize("depth", [20, 38, 56, 74, 92, 110, 128, 164, 1208])
def test_where_both_units_fit_either_can_be_had(depth):
    assert [stage.units for stage in plan(depth, unit="basic").stages] == [(depth - 2) // 6] * 3
    deep = plan(depth, unit="bottleneck")
    assert [stage.units for stage in deep.stages] == [(depth - 2) // 9] * 3
    assert [stage.out for stage in deep.stages] == [64, 128, 256]


@pytest.mark.parametrize("depth", [38, 74, 92, 128])
def test_a_depth_that_fits_both_units_asks_which(depth):
    with pytest.raises(UserError, match=rf"depth {depth} fits basic.*and bottlenecks.*'unit: bas"):
        plan(depth)


@pytest.mark.parametrize("depth", [*range(9, 60), 100, 111, 1000, 9999])
def test_every_depth_fits_what_arithmetic_says_or_is_refused_with_near_ones(depth):
    fits = [kind for kind, n in (("basic", 6), ("bottleneck", 9)) if depth % n == 2]
    if fits == ["basic"] or depth in (20, 56):
        assert plan(depth).unit == "basic"
    elif fits == ["bottleneck"]:
        assert plan(depth).unit == "bottleneck"
    elif fits:
        with pytest.raises(UserError, match="choose one with"):
            plan(depth)
    else:
        basic = [d for d in range(8, 10_010) if d % 6 == 2]
        deep = [d for d in range(11, 10_020) if d % 9 == 2]
        with pytest.raises(UserError) as caught:
            plan(depth)
        message = str(caught.value)
        assert f"depth {depth} fits no" in message
        for depths in (basic, deep):
            above = next(d for d in depths if d > depth)
            below = max((d for d in depths if d < depth), default=above)
            if below != above:
                assert f"{below} and {above}" in message


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (7, {}, "depth 7 is out of range"),
        (-20, {}, "depth -20 is out of range"),
        (0, {}, "depth 0 is out of range"),
        (10_001, {}, "depth 10001 is out of range"),
        (164, {"unit": "basic", "shortcut": "pad", "stem": "cifar"}, None),
        (110, {"unit": "bottleneck"}, None),
        (21, {"unit": "basic"}, r"depth 21 does not fit basic units \(6n\+2\).* 20 and 26"),
        (32, {"unit": "bottleneck"}, r"depth 32 does not fit bottleneck.* 29 and 38"),
        (8, {"unit": "bottleneck"}, r"depth 8 does not fit bottleneck.* 11 and 20"),
        (20, {"family": "imagenet"}, "depth 20 is not an ImageNet network; choose 18, 34, 50, 101"),
        (50, {"family": "imagenet", "unit": "basic"}, "depth 50 .* bottleneck units, not 'basic'"),
        (18, {"family": "imagenet", "cardinality": 32}, "depth 18 has basic units, but groups"),
        (20, {"base_width": 4}, "depth 20 has basic units, but groups"),
        (20, {"cardinality": 0}, "'cardinality' must be at least 1, not 0"),
        (20, {"base_width": -1}, "'base_width' must be at least 1, not -1"),
        (20, {"num_classes": 0}, "'num_classes' must be at least 1, not 0"),
        (20, {"family": "mnist"}, "'family' must be one of cifar, imagenet, not 'mnist'"),
        (20, {"stem": "patch"}, "'stem' must be one of cifar, imagenet, not 'patch'"),
        (20, {"shortcut": "conv"}, "'shortcut' must be one of pad, project, not 'conv'"),
        (20, {"unit": "wide"}, "'unit' must be one of basic, bottleneck, not 'wide'"),
        (20, {"stride_on": "last"}, "'stride_on' must be one of first, 3x3, not 'last'"),
        (20, {"variant": "V3"}, "unknown variant 'V3'"),
    ],
)
def test_a_network_that_does_not_exist_is_refused_in_words(depth, options, message):
    options = {"variant": "original"} | options
    if message is None:
        assert meta_model(depth=depth, **options).layers == depth
    else:
        with pytest.raises(UserError, match=message):
            meta_model(depth=depth, **options)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_basic_units_pad_and_bottlenecks_project(depth):
    assert (plan(depth).shortcut, plan(depth).stride_on) == ("pad", "first")
    for options in ({"depth": 164}, {"depth": 1001}):
        assert (plan(**options).shortcut, plan(**options).stride_on) == ("project", "first")
    for image_depth in (18, 50):
        imagenet = plan(image_depth, "imagenet")
        assert (imagenet.shortcut, imagenet.stride_on) == ("project", "3x3")


# --- what the signal meets ------------------------------------------------------------------------

# A signal is written as what was done to the image, from the outside in: relu(bn(conv(image))) is
# ("relu", ("bn16", ("3x3 3→16 /1", "image"))). The expectation below is written from figure 4.


def relu(signal):
    return ("relu", signal)


def conv(kernel, before, after, stride=1):
    return lambda signal: (f"{kernel}x{kernel} {before}→{after} /{stride}", signal)


def norm(channels):
    return lambda signal: (f"bn{channels}", signal)


def add(branch, shortcut):
    return ("add", frozenset([branch, shortcut]))


def unit_of(variant, convs, bns, bn_in, bn_out, raw, project, first):
    """One unit of figure 4, (a) to (e), drawn by hand.

    `raw` is identity or padding and None where there is a projection; `project` the other way
    round. In the first unit of a network the lead has been applied to `x` already.
    """

    def branch(signal):
        """conv [bn relu conv]*, without what comes before and after."""
        signal = convs[0](signal)
        for bn, convolution in zip(bns, convs[1:], strict=True):
            signal = convolution(relu(bn(signal)))
        return signal

    def shortcut(x, activated):
        if raw is not None:
            return raw(x)
        with_bn = variant in ("original", "relu-before-add", "relu-only-preact")
        return bn_out(project(activated)) if with_bn else project(activated)

    def unit(x):
        if variant == "original":
            return relu(add(bn_out(branch(x)), shortcut(x, x)))
        if variant == "bn-after-add":
            return relu(bn_out(add(branch(x), shortcut(x, x))))
        if variant == "relu-before-add":
            return add(relu(bn_out(branch(x))), shortcut(x, x))
        if variant == "relu-only-preact":
            activated = x if first else relu(x)
            return add(bn_out(branch(activated)), shortcut(x, activated))
        activated = x if first else relu(bn_in(x))
        return add(branch(activated), shortcut(x, activated))

    return unit


def expected_signal(variant, bottleneck, n, padded, stride_on="first"):
    """The logits of a CIFAR network, as nested operations."""
    signal = conv(3, 3, 16)("image")
    stems = {
        "relu-only-preact": lambda x: relu(norm(16)(x)),  # its BN, then the first unit's lead
        "full-preact": lambda x: relu(norm(16)(x)),  # nothing, then the first unit's lead
    }
    signal = stems.get(variant, lambda x: relu(norm(16)(x)))(signal)
    channels = 16
    for width, first_stride in ((16, 1), (32, 2), (64, 2)):
        out = 4 * width if bottleneck else width
        for index in range(n):
            stride = first_stride if index == 0 else 1
            if bottleneck:
                on_first, on_3x3 = (stride, 1) if stride_on == "first" else (1, stride)
                convs = [
                    conv(1, channels, width, on_first),
                    conv(3, width, width, on_3x3),
                    conv(1, width, out),
                ]
            else:
                convs = [conv(3, channels, width, stride), conv(3, width, width)]
            reshaped = channels != out or stride != 1
            if not reshaped:
                raw = lambda x: x  # noqa: E731
            else:
                raw = (lambda b, a, s: lambda x: (f"pad {b}→{a} /{s}", x))(channels, out, stride)
            unit = unit_of(
                variant,
                convs,
                [norm(width)] * (len(convs) - 1),
                bn_in=norm(channels),
                bn_out=norm(out),
                raw=raw if padded or not reshaped else None,
                project=conv(1, channels, out, stride),
                first=width == 16 and index == 0,
            )
            signal = unit(signal)
            channels = out
    if variant == "relu-only-preact":
        signal = relu(signal)
    if variant == "full-preact":
        signal = relu(norm(channels)(signal))
    return (f"linear {channels}→10", ("mean", signal))


class Signals(fx.Interpreter):
    """Runs a traced network on descriptions of signals."""

    def call_module(self, target, args, kwargs):
        assert not kwargs
        part, (signal,) = self.fetch_attr(target), args
        match part:
            case nn.Conv2d():
                assert part.bias is None
                assert part.padding == (part.kernel_size[0] // 2,) * 2
                kernel, stride = part.kernel_size[0], part.stride[0]
                return conv(kernel, part.in_channels, part.out_channels, stride)(signal)
            case nn.BatchNorm2d():
                assert (part.eps, part.momentum, part.affine) == (1e-5, 0.1, True)
                return norm(part.num_features)(signal)
            case nn.ReLU():
                return relu(signal)
            case nn.Identity():
                return signal
            case nn.MaxPool2d():
                return ("maxpool", signal)
            case nn.Linear():
                return (f"linear {part.in_features}→{part.out_features}", signal)
            case Padding():
                before = 16 if part.before == 8 else 32  # widths double
                return (f"pad {before}→{before + part.before + part.after} /{part.stride}", signal)
        raise AssertionError(f"unexpected module {part}")

    def call_function(self, target, args, kwargs):
        assert (target.__name__, kwargs) == ("add", {})
        return add(*args)

    def call_method(self, target, args, kwargs):
        assert (target, kwargs) == ("mean", {"dim": (2, 3)})
        return ("mean", args[0])


class Tracer(fx.Tracer):
    def is_leaf_module(self, part, qualified_name):
        return isinstance(part, Padding) or super().is_leaf_module(part, qualified_name)


def signal_of(network):
    traced = fx.GraphModule(network, Tracer().trace(network))
    return Signals(traced).run("image")


@pytest.mark.parametrize("shortcut", ["pad", "project"])
@pytest.mark.parametrize("depth", [8, 14])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_signal_of_basic_units_meets_what_figure_4_draws(variant, depth, shortcut):
    network = meta_model(variant, depth, shortcut=shortcut)
    expected = expected_signal(variant, False, (depth - 2) // 6, shortcut == "pad")
    assert signal_of(network) == expected


@pytest.mark.parametrize("stride_on", ["first", "3x3"])
@pytest.mark.parametrize("depth", [11, 20])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_signal_of_bottlenecks_meets_what_figure_4_draws(variant, depth, stride_on):
    network = meta_model(variant, depth, unit="bottleneck", stride_on=stride_on)
    expected = expected_signal(variant, True, (depth - 2) // 9, False, stride_on)
    assert signal_of(network) == expected


# The same once more for one network of each variant, written down in full. Left is the branch with
# its lead; what follows "+" happens after the addition; "|" separates units. "s" is a shortcut that
# takes the raw signal, "p" a projection, "P" one followed by BN.
IN_FULL = {
    "original":
        "c b r | c b r c b r c b + P r | c b r c b r c b + P r | c b r c b r c b + P r | mean fc",
    "bn-after-add":
        "c b r | c b r c b r c + p b r | c b r c b r c + p b r | c b r c b r c + p b r | mean fc",
    "relu-before-add":
        "c b r | c b r c b r c b r + P | c b r c b r c b r + P | c b r c b r c b r + P | mean fc",
    "relu-only-preact":
        "c b | r | c b r c b r c b + P | r c b r c b r c b + P | r c b r c b r c b + P | r mean fc",
    "full-preact":
        "c | b r | c b r c b r c + p | b r c b r c b r c + p | b r c b r c b r c + p | b r mean fc",
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_modules_are_registered_in_the_order_in_which_the_signal_meets_them(variant):
    """Read off the modules: a unit's branch, then its projection, then what follows both."""
    letters = []
    for name, part in meta_model(variant, 11).named_modules():
        letter = {"Conv2d": "c", "BatchNorm2d": "b", "ReLU": "r", "Linear": "fc"}.get(
            type(part).__name__
        )
        if letter and ".shortcut" in name:
            letter = "p" if letter == "c" else "P"
        if letter:
            letters.append(letter)
    expected = IN_FULL[variant].replace("P", "p P").replace("mean", "")
    assert letters == [word for word in expected.split() if word not in "|+"]


def test_the_imagenet_stem_applies_the_first_lead_and_then_pools():
    def beginning(signal):
        """The operations of the stem, innermost first."""
        words = []
        while signal != "image":
            words.append(signal[0])
            signal = signal[1] if signal[0] != "add" else min(signal[1], key=lambda s: len(str(s)))
        return words[::-1]

    expected = ["7x7 3→64 /2", "bn64", "relu", "maxpool"]
    for variant in VARIANTS:
        network = meta_model(variant, 18, family="imagenet")
        assert beginning(signal_of(network))[:4] == expected
        small = meta_model(variant, 18, family="imagenet", stem="cifar")
        words = beginning(signal_of(small))
        assert words[:3] == ["3x3 3→64 /1", "bn64", "relu"]
        assert "maxpool" not in words


# --- against networks as people write them --------------------------------------------------------


def pad_a(x, planes):
    """Option A as in akamaster/pytorch_resnet_cifar10."""
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)


class BasicBlock(nn.Module):
    def __init__(self, in_planes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.planes, self.changes = planes, stride != 1 or in_planes != planes

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + (pad_a(x, self.planes) if self.changes else x)
        return F.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, in_planes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride != 1 or in_planes != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, 4 * planes, 1, stride=stride, bias=False),
                nn.BatchNorm2d(4 * planes),
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out)


class PreActBlock(nn.Module):
    def __init__(self, in_planes, planes, stride, first):
        super().__init__()
        self.bn1 = nn.Identity() if first else nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.planes, self.changes = planes, stride != 1 or in_planes != planes

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + (pad_a(x, self.planes) if self.changes else x)


class PreActBottleneck(nn.Module):
    def __init__(self, in_planes, planes, stride, first):
        super().__init__()
        self.bn1 = nn.Identity() if first else nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        if stride != 1 or in_planes != 4 * planes:
            self.shortcut = nn.Conv2d(in_planes, 4 * planes, 1, stride=stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + shortcut


class PlainResNet(nn.Module):
    """Both generations: `preact` blocks do without the first one's BN and end with one."""

    def __init__(self, block, n, expansion, preact):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)  # for pre-activation: what the first block would begin with
        blocks, planes = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(n):
                extra = [not blocks] if preact else []
                blocks.append(block(planes, width, stride if index == 0 else 1, *extra))
                planes = width * expansion
        self.blocks = nn.Sequential(*blocks)
        self.bn2 = nn.BatchNorm2d(planes) if preact else None
        self.linear = nn.Linear(planes, 10)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.blocks(out)
        if self.bn2 is not None:
            out = F.relu(self.bn2(out))
        return self.linear(out.mean((2, 3)))


def copy_weights(source, target):
    """By order of registration, after BN got random scales, shifts and statistics."""
    with torch.no_grad():
        for part in source.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
    theirs, ours = source.state_dict(), target.state_dict()
    assert [v.shape for v in theirs.values()] == [v.shape for v in ours.values()]
    target.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))


def assert_same_bits(theirs, ours, images):
    """Logits, gradients of weights and image, and BN's statistics afterwards; in both modes."""
    weights = torch.randn(len(images), ours.classifier.out_features, dtype=images.dtype)
    for training in (False, True):
        results = []
        for network in (theirs, ours):
            network.train(training)
            network.zero_grad()
            x = images.clone().requires_grad_()
            logits = network(x)
            (logits * weights).sum().backward()
            gradients = [p.grad for p in network.parameters()]
            statistics = [b.double() for b in network.buffers()]
            results.append([logits.detach(), x.grad, *gradients, *statistics])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
            assert a.any() or a.numel() == 1


@pytest.mark.parametrize(
    ("variant", "depth", "unit", "block"),
    [
        ("original", 20, "basic", BasicBlock),
        ("full-preact", 20, "basic", PreActBlock),
        ("original", 11, "bottleneck", Bottleneck),
        ("full-preact", 11, "bottleneck", PreActBottleneck),
        ("original", 20, "bottleneck", Bottleneck),
        ("full-preact", 20, "bottleneck", PreActBottleneck),
    ],
)
def test_the_network_is_the_one_that_people_write(variant, depth, unit, block):
    torch.manual_seed(depth)
    bottleneck = unit == "bottleneck"
    n = (depth - 2) // (9 if bottleneck else 6)
    theirs = PlainResNet(block, n, 4 if bottleneck else 1, variant == "full-preact")
    ours = build_model(variant, depth, unit=unit)
    copy_weights(theirs, ours)
    # fp32, and equal to the last bit: the same operations on the same numbers. A sum of two
    # gradients has no order.
    assert_same_bits(theirs, ours, torch.randn(4, 3, 16, 16))


# --- option A -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(16, 32), (32, 64), (3, 8), (2, 5)])
@pytest.mark.parametrize("side", [8, 7])
def test_option_a_takes_every_second_pixel_and_adds_zero_channels(before, after, side):
    x = np.random.default_rng(0).normal(size=(2, before, side, side)).astype(np.float32)
    half = (side + 1) // 2
    expected = np.zeros((2, after, half, half), np.float32)
    for image in range(2):
        for channel in range(before):
            for row in range(half):
                for column in range(half):
                    value = x[image, channel, 2 * row, 2 * column]
                    expected[image, (after - before) // 2 + channel, row, column] = value
    got = Padding(before, after, stride=2)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_shortcut_has_no_parameters_and_a_projection_has(variant):
    for shortcut, count in (("pad", 0), ("project", 2)):
        names = [n for n, _ in meta_model(variant, 8, shortcut=shortcut).named_parameters()]
        assert sum(n.endswith("shortcut.0.weight") for n in names) == count


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"depth": 8}, (16, 8, 8)),
        ({"depth": 11}, (64, 8, 8)),
        ({"depth": 18, "family": "imagenet", "stem": "cifar"}, (64, 32, 32)),
    ],
)
def test_stages_halve_the_resolution_and_double_the_channels(variant, options, shape):
    channels, side, _ = shape
    seen = []
    network = build_model(variant, num_classes=100, **options).eval()
    for stage in network.stages:
        stage.register_forward_hook(lambda _m, _i, output: seen.append(tuple(output.shape[1:])))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, side, side)).shape == (1, 100)
    assert seen == [
        (channels * 2**k, side // 2**k, side // 2**k) for k in range(len(network.stages))
    ]


# --- initialisation -------------------------------------------------------------------------------


def test_convolutions_begin_as_he_normal_by_fan_out_and_bn_as_identity():
    network = build_model("original", 50, "imagenet", cardinality=32, base_width=4, seed=0)
    checked = 0
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            # Each input pixel feeds so many numbers: with groups, those of its own group only.
            fan_out = part.kernel_size[0] ** 2 * part.out_channels
            count = part.weight.numel()
            deviation, mean = part.weight.std().item(), part.weight.mean().item()
            expected = math.sqrt(2 / fan_out)
            assert abs(deviation / expected - 1) < 5 / math.sqrt(2 * count)
            assert abs(mean) < 5 * expected / math.sqrt(count)
            kurtosis = ((part.weight - mean) / deviation).pow(4).mean().item()
            assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(24 / count))  # normal
            checked += 1
        elif isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all()
            assert (part.bias == 0).all()
    assert checked == 53


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (build_model("original", 8, seed=1).state_dict() for _ in range(2))
    other = build_model("original", 8, seed=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("stem.0.weight", "stages.2.0.branch.3.weight", "classifier.weight"):
        assert not torch.equal(first[name], other[name])


def test_without_a_seed_the_weights_come_from_torchs_generator():
    torch.manual_seed(5)
    first, second = (build_model("original", 8).stem[0].weight for _ in range(2))
    torch.manual_seed(5)
    again = build_model("original", 8).stem[0].weight
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_the_variants_begin_with_the_same_convolutions_where_nothing_else_is_drawn():
    """BN draws nothing, so a seed means the same convolutions in every ordering of a depth."""
    weights = [
        [p for p in build_model(variant, 8, seed=3).parameters() if p.ndim == 4]
        for variant in VARIANTS
    ]
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))


def test_an_ordering_object_is_as_good_as_its_name():
    mine = Ordering("mine", lead=("bn", "relu"))
    assert signal_of(meta_model(mine, 8)) == signal_of(meta_model("full-preact", 8))
