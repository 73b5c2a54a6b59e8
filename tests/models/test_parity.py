"""Every family against networks that others wrote, with the same weights.

Both networks get the same weights, and positive BN scales, shifts and statistics drawn at random.
What they are held to is the logits, the gradients of the image and of every parameter, and the
statistics that BN leaves. Where the same operations meet the same numbers, "the same" means to the
last bit; where another order of sums is to be expected, the bound stands with the reason.
"""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resvar.models.architecture import plan
from resvar.models.layout import unit_layers
from resvar.models.network import build_model
from resvar.models.ordering import find_ordering, known_variants
from resvar.models.unit import ResidualUnit, initialise

ORDERINGS = known_variants()
CLASSES = 7


# --- two networks, one set of weights -------------------------------------------------------------


def meta_model(variant, depth, **options):
    """A network without memory or numbers."""
    with torch.device("meta"):
        return build_model(variant, depth, num_classes=CLASSES, **options)


def randomize(network, dtype=torch.float32):
    """Draw what training would have changed in BN: scales (positive), shifts, statistics."""
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
    return network.to(dtype)


def filled(ours, tensors):
    """Our network with copies of `tensors`, in the order of its state dict."""
    copies = [tensor.detach().clone() for tensor in tensors]
    ours.load_state_dict(dict(zip(ours.state_dict(), copies, strict=True)), assign=True)
    return ours


def in_order(network):
    return list(network.state_dict().values())


def images_for(dtype=torch.float32, count=2, height=64, width=32):
    return torch.randn(count, 3, height, width, dtype=dtype)


def outcome(network, images, training, parameters=None):
    """Everything that a network computes of its images, by name.

    The loss is a random but fixed sum of the logits. `parameters` are the network's own in the
    order in which ours has them.
    """
    network.train(training)
    network.zero_grad()
    given = images.clone().requires_grad_()
    logits = network(given)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits).cos()
    (logits * weights).sum().backward()
    parameters = list(network.parameters()) if parameters is None else parameters
    found = {"logits": logits.detach(), "image": given.grad}
    found |= {f"gradient {index}": p.grad for index, p in enumerate(parameters)}
    return found | {f"statistic {i}": b.clone() for i, b in enumerate(network.buffers())}


def assert_same(theirs, ours, loose=(), bound=0.0):
    """Equal to the last bit, but for `loose`: those within `bound` of their largest number."""
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        found = ours[name].view_as(expected)
        assert expected.isfinite().all(), name
        counter = name.startswith("statistic") and expected.ndim == 0
        assert counter or expected.any(), f"{name} is 0 throughout, which shows nothing"
        if name in loose:
            difference = float((found - expected).abs().max() / expected.abs().max())
            assert difference <= bound, f"{name}: {difference:.1e}"
        else:
            assert torch.equal(found, expected), name


# --- original: torchvision ------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"depth": 18}),
        ("resnet34", {"depth": 34}),
        ("resnet50", {"depth": 50}),
        pytest.param("resnet101", {"depth": 101}, marks=pytest.mark.slow),
        pytest.param("resnet152", {"depth": 152}, marks=pytest.mark.slow),
        ("resnext50_32x4d", {"depth": 50, "cardinality": 32, "base_width": 4}),
        pytest.param(
            "resnext101_32x8d",
            {"depth": 101, "cardinality": 32, "base_width": 8},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_original_is_torchvisions_network_to_the_last_bit(name, options):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = randomize(getattr(models, name)(num_classes=CLASSES))
    ours = filled(meta_model("original", family="imagenet", **options), in_order(theirs))
    images = images_for()
    for training in (False, True):
        assert_same(outcome(theirs, images, training), outcome(ours, images, training))


def test_original_is_torchvisions_network_at_the_size_of_imagenet_too():
    """The last average is over 7 × 7 numbers, enough for the order of a sum to show."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = randomize(models.resnet18(num_classes=CLASSES))
    ours = filled(meta_model("original", 18, family="imagenet"), in_order(theirs))
    images = images_for(height=224, width=224, count=1)
    assert_same(outcome(theirs, images, False), outcome(ours, images, False))


# --- full-preact: timm ----------------------------------------------------------------------------

# What had to be known, or set, for timm's `resnetv2_*` (plain convolutions and BatchNorm; those
# with "bit" in their names have weight standardisation and GroupNorm instead):
#
# - A block registers its projection first, and has `norm1` before the split in every block, where
#   ours has the first unit's lead in the network itself.
# - The stride is on the 3×3, as in ours. The head is a 1×1 convolution, not a linear layer, so the
#   logits and the gradient of its weight are added up in another order.
# - The stem pools the raw signal and the first block normalises it afterwards. A positive scale and
#   ReLU keep the largest of nine the largest, so the function is the same where BN's statistics
#   are given, and its gradient passes the same pixels; only what lies below the pooling is added up
#   in another order. In training BN would see other pixels.
# - resnetv2_18 and _34 have no projection in their first block, and its shortcut takes the raw
#   signal. The paper splits after the first activation (arXiv:1603.05027, appendix), and so do
#   we; with `norm1` moved to the end of timm's stem they do the same.


TIMM_DEPTHS = [18, 34, 50, *(pytest.param(n, marks=pytest.mark.slow) for n in (101, 152))]


def timms(depth, dtype, norm1="in the block"):
    """timm's network; `norm1` of its first block may stand in the stem, around the pooling."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = randomize(timm.create_model(f"resnetv2_{depth}", num_classes=CLASSES), dtype)
    stem, first = network.stem, network.stages[0].blocks[0]
    orders = {
        "in the block": ("conv", "pool"),
        "behind the pooling": ("conv", "pool", "norm1"),
        "before the pooling": ("conv", "norm1", "pool"),
    }
    parts = {"conv": stem.conv, "norm1": first.norm1, "pool": stem.pool}
    network.stem = nn.Sequential(OrderedDict((part, parts[part]) for part in orders[norm1]))
    if norm1 != "in the block":
        first.norm1 = nn.Identity()
    return network


def in_our_order(network):
    """The layers of timm's network as the signal meets them, a block's projection last."""
    blocks = [block for stage in network.stages for block in stage.blocks]
    moved = hasattr(network.stem, "norm1")
    layers = [network.stem.conv, network.stem.norm1 if moved else blocks[0].norm1]
    for block in blocks:
        names = ["norm1"] * (block is not blocks[0]) + ["conv1", "norm2", "conv2", "norm3", "conv3"]
        layers += [getattr(block, name) for name in names if hasattr(block, name)]
        layers += [block.downsample.conv] if block.downsample is not None else []
    return [*layers, network.norm, network.head.fc]


def ours_like(theirs, depth):
    tensors = [tensor for layer in in_our_order(theirs) for tensor in in_order(layer)]
    tensors[-2] = tensors[-2].flatten(1)  # a 1×1 convolution as the matrix that it is
    return filled(meta_model("full-preact", depth, family="imagenet"), tensors)


def outcomes(theirs, ours, images, training):
    """Of both; timm's statistics are registered in another order and left out."""
    parameters = [p for layer in in_our_order(theirs) for p in layer.parameters()]
    both = outcome(theirs, images, training, parameters), outcome(ours, images, training)
    return [{k: v for k, v in found.items() if "statistic" not in k} for found in both]


@pytest.mark.heavy
@pytest.mark.parametrize("depth", TIMM_DEPTHS)
def test_full_preact_is_timms_network_in_evaluation(depth):
    norm1 = "in the block" if depth >= 50 else "behind the pooling"
    theirs = timms(depth, torch.float64, norm1)
    ours = ours_like(theirs, depth)
    both = outcomes(theirs, ours, images_for(torch.float64, height=32), training=False)
    head = [f"gradient {len(list(ours.parameters())) - 2}"]
    stem = [f"gradient {index}" for index in range(3)]  # the convolution and the first lead
    assert_same(*both, loose=["logits", "image", *stem, *head], bound=1e-13)


@pytest.mark.heavy
@pytest.mark.parametrize("depth", TIMM_DEPTHS)
def test_full_preact_is_timms_network_where_that_pools_behind_the_first_lead(depth):
    """In fp32, in both modes, and to the last bit below the head."""
    theirs = timms(depth, torch.float32, "before the pooling")
    ours = ours_like(theirs, depth)
    images, head = images_for(), f"gradient {len(list(ours.parameters())) - 2}"
    for training in (False, True):
        both = outcomes(theirs, ours, images, training)
        assert_same(*both, loose=["logits", head], bound=5e-6)


@pytest.mark.parametrize("depth", [18, 34])
def test_timms_basic_networks_differ_in_the_shortcut_of_the_first_block_alone(depth):
    theirs = timms(depth, torch.float64).eval()
    ours = ours_like(theirs, depth).eval()
    images = images_for(torch.float64)
    with torch.no_grad():
        assert not torch.allclose(theirs(images), ours(images), rtol=1e-2)
        signal, block = theirs.stem(images), theirs.stages[0].blocks[0]
        split = ours.pool(ours.first_lead(ours.stem(images)))
        torch.testing.assert_close(block.norm1(signal), split)
        branch = ours.stages[0][0].branch(split)
        torch.testing.assert_close(block(signal), signal + branch)  # the raw signal
        torch.testing.assert_close(ours.stages[0][0](split), split + branch)  # the activated one


# --- CIFAR: the papers ----------------------------------------------------------------------------


def plain_resnet(images, tensors, n, bottleneck, preact, training):
    """A CIFAR ResNet with n units a stage, written down from the papers without any module.

    arXiv:1512.03385, section 4.2, and for `preact` arXiv:1603.05027. The layers take what they
    need from `tensors` as they come.
    """
    take = iter(tensors).__next__

    def conv(x, stride=1):
        weight = take()
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def bn(x):
        weight, bias, mean, variance, count = (take() for _ in range(5))
        count += training
        return F.batch_norm(x, mean, variance, weight, bias, training, momentum=0.1, eps=1e-5)

    def option_a(x, stride):
        """No parameters: zeros for the channels that are new, half of them on each side."""
        if stride == 1:
            return x
        x = x[:, :, ::2, ::2]
        half = torch.zeros_like(x[:, : x.shape[1] // 2])
        return torch.cat([half, x, half], dim=1)

    def original(x, stride):
        out = F.relu(bn(conv(x, stride)))
        if bottleneck:
            out = F.relu(bn(conv(out)))
        out = bn(conv(out))
        if bottleneck:
            x = x if out.shape == x.shape else bn(conv(x, stride))
        else:
            x = option_a(x, stride)
        return F.relu(out + x)

    def full_preact(x, stride, first):
        activated = x if first else F.relu(bn(x))
        out = conv(activated, stride)
        if bottleneck:
            out = conv(F.relu(bn(out)))
        out = conv(F.relu(bn(out)))
        if bottleneck:
            return out + (x if out.shape == x.shape else conv(activated, stride))
        return out + option_a(x, stride)

    x = F.relu(bn(conv(images)))
    for stage in range(3):
        for index in range(n):
            stride = 2 if stage > 0 and index == 0 else 1
            first = stage == index == 0
            x = full_preact(x, stride, first) if preact else original(x, stride)
    if preact:
        x = F.relu(bn(x))
    logits = F.linear(x.mean((2, 3)), take(), take())
    with pytest.raises(StopIteration):  # every tensor was used
        take()
    return logits


class Plain(nn.Module):
    """`plain_resnet` with tensors of its own, copies of those of another network."""

    def __init__(self, network, **options):
        super().__init__()
        self.options, self.names = options, []
        trained = dict(network.named_parameters())
        for name, tensor in network.state_dict().items():
            self.names.append(name.replace(".", "_"))
            if name in trained:
                self.register_parameter(self.names[-1], nn.Parameter(tensor.clone()))
            else:
                self.register_buffer(self.names[-1], tensor.clone())

    def forward(self, images):
        tensors = [getattr(self, name) for name in self.names]
        return plain_resnet(images, tensors, training=self.training, **self.options)


@pytest.mark.parametrize("variant", ["original", "full-preact"])
@pytest.mark.parametrize(("depth", "layers"), [(20, 6), (110, 6), (164, 9)])
def test_cifar_networks_are_those_of_the_papers_to_the_last_bit(depth, layers, variant):
    torch.manual_seed(depth)
    ours = randomize(build_model(variant, depth, num_classes=CLASSES))
    theirs = Plain(
        ours, n=(depth - 2) // layers, bottleneck=layers == 9, preact=variant == "full-preact"
    )
    images = images_for(height=16, width=16)
    for training in (False, True):
        assert_same(outcome(theirs, images, training), outcome(ours, images, training))


# --- ResNeXt: groups ------------------------------------------------------------------------------


def sum_of_paths(unit, activated, paths):
    """Figure 3(a) of arXiv:1611.05431: so many thin bottlenecks, one by one, and their sum."""
    first, norm1, _, second, norm2, _, third, *trail = unit.branch
    width = first.out_channels // paths

    def bn(norm, x, own):
        mean, variance = norm.running_mean[own].clone(), norm.running_var[own].clone()
        weight, bias = norm.weight[own], norm.bias[own]
        return F.batch_norm(x, mean, variance, weight, bias, norm.training, norm.momentum, norm.eps)

    total = 0
    for path in range(paths):
        own = slice(path * width, (path + 1) * width)
        signal = F.relu(bn(norm1, F.conv2d(activated, first.weight[own]), own))
        signal = F.conv2d(signal, second.weight[own], stride=second.stride, padding=1)
        total = total + F.conv2d(F.relu(bn(norm2, signal, own)), third.weight[:, own])
    for op in trail:
        total = op(total)
    return total


class Paths(nn.Module):
    """A unit whose branch is computed path by path."""

    def __init__(self, unit, paths):
        super().__init__()
        self.unit, self.paths = unit, paths

    def forward(self, x):
        unit, activated = self.unit, self.unit.lead(x)
        carried = x if isinstance(unit.shortcut, nn.Identity) else unit.shortcut(activated)
        return unit.after_add(sum_of_paths(unit, activated, self.paths) + carried)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(("before", "stride"), [(256, 1), (128, 2)], ids=["identity", "projection"])
@pytest.mark.parametrize("variant", ["original", "full-preact"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_a_grouped_unit_is_the_sum_of_its_32_paths(variant, before, stride, training, dtype, bound):
    """Not to the last bit: here 32 sums over 4 channels are added, there one over 128."""
    torch.manual_seed(1)
    architecture = plan(50, "imagenet", cardinality=32, base_width=4)
    layers = unit_layers(
        find_ordering(variant), architecture, architecture.stages[0], before, size=8, stride=stride
    )
    unit = ResidualUnit(layers)
    assert unit.branch[3].groups == 32
    initialise(unit)
    randomize(unit, dtype)
    with torch.no_grad():  # like the weights of a trained network, and not larger than the signal
        unit.branch[6].weight.mul_(0.5)
    x = torch.randn(2, before, 8, 8, dtype=dtype)
    explicit, grouped = outcome(Paths(unit, 32), x, training), outcome(unit, x, training)
    assert unit(x).shape == (2, 256, 8 // stride, 8 // stride)
    for found in explicit, grouped:  # the paths' BN does not write down what it saw
        for name in [name for name in found if "statistic" in name]:
            del found[name]
    assert_same(explicit, grouped, loose=list(explicit), bound=bound)


@pytest.mark.parametrize(("base_width", "cardinality", "millions"), [(64, 8, 34.4), (64, 16, 68.1)])
def test_cifar_resnext_29_has_the_papers_parameters(base_width, cardinality, millions):
    """arXiv:1611.05431, table 7, which cuts 68.155 off rather than rounding it."""
    with torch.device("meta"):
        network = build_model("original", 29, cardinality=cardinality, base_width=base_width)
    parameters = sum(p.numel() for p in network.parameters())
    assert int(parameters / 1e5) / 10 == millions
    assert [stage[0].branch[3].groups for stage in network.stages] == [cardinality] * 3
    assert [stage.inner for stage in network.architecture.stages] == [
        cardinality * base_width * 2**k for k in range(3)
    ]
    assert [stage.out for stage in network.architecture.stages] == [256, 512, 1024]


# --- every ordering in every family ---------------------------------------------------------------

FAMILIES = {
    "cifar-20": ({"depth": 20}, 16),
    "cifar-29": ({"depth": 29}, 16),
    "imagenet-18": ({"depth": 18, "family": "imagenet"}, 64),
    "imagenet-50": ({"depth": 50, "family": "imagenet"}, 64),
    "resnext-50": ({"depth": 50, "family": "imagenet", "cardinality": 32, "base_width": 4}, 64),
    "cifar-stem-18": ({"depth": 18, "family": "imagenet", "stem": "cifar"}, 16),
}


LARGE = ("imagenet-50", "resnext-50")
"""Their units, in every ordering, are those of cifar-29, their stem that of imagenet-18."""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("variant", "name"),
    [
        pytest.param(variant, name, marks=pytest.mark.slow)
        if name in LARGE and variant not in ("original", "full-preact")
        else (variant, name)
        for variant in ORDERINGS
        for name in FAMILIES
    ],
)
def test_every_ordering_computes_and_learns_in_every_family(variant, name):
    options, side = FAMILIES[name]
    network = build_model(variant, num_classes=CLASSES, seed=0, **options)
    logits = network(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()
    F.cross_entropy(logits, torch.tensor([1, 4])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def ops_of(parts):
    return tuple({nn.BatchNorm2d: "bn", nn.ReLU: "relu"}[type(part)] for part in parts)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("variant", ORDERINGS)
def test_the_stem_has_what_the_lead_leaves_and_the_head_repeats_the_lead(variant, name):
    options, _ = FAMILIES[name]
    network, lead = meta_model(variant, **options), find_ordering(variant).lead
    left = tuple(op for op in ("bn", "relu") if op not in lead)
    assert (ops_of(network.stem[1:]), ops_of(network.first_lead)) == (left, lead)
    assert sorted(left + lead) == ["bn", "relu"]
    units = [unit for stage in network.stages for unit in stage]
    assert [ops_of(unit.lead) for unit in units] == [(), *[lead] * (len(units) - 1)]
    assert ops_of(network.head_lead) == lead
    imagenet = options.get("stem", options.get("family", "cifar")) == "imagenet"
    assert isinstance(network.pool, nn.MaxPool2d if imagenet else nn.Identity)
    assert network.stem[0].kernel_size == ((7, 7) if imagenet else (3, 3))
