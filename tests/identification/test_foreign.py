"""What other people's networks do and ours never do: fail half-way, draw numbers, return `None`."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import checkpoint

import resvar
from resvar.errors import UserError
from resvar.identification.twin import take_statistics
from tests.identification.by_hand import Functions


class Unit(nn.Module):
    """x + conv(relu(bn(conv(x)))), and whatever `inside` does to the branch."""

    def __init__(self, width=16, inside=nn.Identity):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.inside = inside()

    def forward(self, x):
        return x + self.inside(self.conv2(F.relu(self.bn1(self.conv1(x)))))


def network(*units, first=3):
    stem = nn.Conv2d(first, 16, 3, padding=1)
    return nn.Sequential(stem, *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def texts(module):
    return [difference.text for difference in resvar.identify(module).differences]


def test_a_run_that_fails_half_way_leaves_the_momentum_of_bn():
    bn = nn.BatchNorm2d(3)
    with pytest.raises(RuntimeError):
        take_statistics(nn.Sequential(bn, nn.Linear(7, 1)), torch.zeros(2, 3, 4, 4))
    assert bn.momentum == 0.1


def test_dropout_is_one_difference():
    plain = resvar.build_model("original", 20)
    plain.classifier = nn.Sequential(nn.Dropout(0.5), plain.classifier)
    (difference,) = resvar.identify(plain).differences
    assert difference.text == "random numbers in training, such as dropout"
    assert difference.modules == ("classifier.0",)


def test_units_without_convolutions_are_not_residual_units():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(16), nn.Linear(16, 16)

        def forward(self, x):
            return x + self.linear(self.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    with pytest.raises(UserError, match="not a residual network"):
        resvar.identify(network(Mixer(), Mixer()))


def test_two_unequal_branches_are_not_called_no_residual_network():
    class Shake(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Unit(), Unit()

        def forward(self, x):
            a, b = (unit.conv2(F.relu(unit.conv1(F.relu(x)))) for unit in (self.a, self.b))
            return x + (0.5 * a + 0.5 * b)

    with pytest.raises(UserError, match="of the papers' kind: no addition joins one branch"):
        resvar.identify(network(Shake(), Shake()))


def test_convolutions_between_units_are_differences():
    found = texts(network(Unit(), nn.Conv2d(16, 16, 1), Unit()))
    assert any(text.startswith("convolution after the addition") for text in found), found
    assert not any(" a a" in text or "extra a " in text for text in found)


def test_no_logits_is_said_without_a_word_about_the_shape():
    class Forgetful(nn.Module):
        def forward(self, x):
            x.mean()

    with pytest.raises(UserError) as error:
        resvar.identify(Forgetful())
    assert str(error.value) == "the network returns NoneType, not a tensor of logits."


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_scripted_units_are_seen():
    scripted = [torch.jit.script(Unit()) for _ in range(2)]
    assert texts(network(*scripted)) == texts(network(Unit(), Unit()))


def test_a_stem_that_makes_channels_of_pixels_is_run_on_an_image():
    class Blocks(nn.Module):
        def forward(self, x):
            return F.pixel_unshuffle(x, 2)

    found = resvar.identify(nn.Sequential(Blocks(), network(Unit(), Unit(), first=12)))
    assert found.input == (3, 32, 32)


def test_a_product_in_the_branch_is_named():
    class Squeeze(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x.mean((2, 3), keepdim=True))

    found = texts(network(Unit(inside=Squeeze), Unit(inside=Squeeze)))
    assert any("product (such as squeeze-and-excitation) after the last" in t for t in found), found


class Around(nn.Module):
    """ResNet-20, original, and what `forward` does with it."""

    def __init__(self, forward):
        super().__init__()
        self.network = resvar.build_model("original", 20)
        self.does = forward

    def forward(self, x):
        return self.does(self, x)


def known(forward):
    found = resvar.identify(Around(forward))
    return found.known and found.network == "ResNet-20"


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: (x, self.network(x)),
        lambda self, x: {"features": x, "out": {"logits": self.network(x)}},
        lambda self, x: {"pooled": x.mean((2, 3)), "logits": self.network(x)},
        lambda self, x: self.network(x * 1.0),
    ],
)
def test_the_logits_are_found(forward):
    assert known(forward)


def test_a_network_that_never_gets_a_gradient_is_not_known():
    def forward(self, x):
        with torch.no_grad():
            return self.network(x)

    (difference,) = resvar.identify(Around(forward)).differences
    assert "the same layers, but other gradients" in difference.text


def test_random_numbers_of_python_are_noticed():
    def forward(self, x):
        return self.network(x) * (1 + random.random() if self.training else 1)

    (difference,) = resvar.identify(Around(forward)).differences
    assert difference.text == "random numbers in training, such as dropout"


class Mask(nn.Module):
    def forward(self, x):
        return x * (x > 0)


class Where(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, x, torch.zeros_like(x))


@pytest.mark.heavy
@pytest.mark.parametrize("spelling", [Mask, Where])
def test_other_spellings_of_relu(spelling):
    plain = resvar.build_model("original", 20)
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, spelling())
    assert resvar.identify(plain).known


def test_a_transposed_weight_of_the_linear_layer():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(64, 10))
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, x):
            return torch.addmm(self.bias, x, self.weights)

    plain = resvar.build_model("original", 20)
    plain.classifier = Linear()
    assert resvar.identify(plain).known


@pytest.mark.parametrize("input", [(3, 31, 33), (3, 5, 5), (3, 2, 2), (3, 1, 1)])
@pytest.mark.parametrize("ordering", ["original", "full-preact"])
def test_any_size_of_image_gives_the_same_answer(ordering, input):
    assert resvar.identify(resvar.build_model(ordering, 20), input).known


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_a_network_traced_in_evaluation_mode_differs_in_training_mode_alone():
    network = torch.jit.trace(resvar.build_model("original", 20).eval(), torch.zeros(1, 3, 32, 32))
    found = resvar.identify(network)
    assert found.network == "ResNet-20"
    (difference,) = found.differences
    assert "the same layers, but other logits in training mode" in difference.text


def test_a_sum_of_logits_is_not_a_residual_unit():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.linear = resvar.build_model("original", 20), nn.Linear(3, 10)

        def forward(self, x):
            return self.network(x) + self.linear(x.mean((2, 3)))

    with pytest.raises(UserError, match="not a residual network"):
        resvar.identify(Sum())


@pytest.mark.parametrize("defaults", ["float64", "meta"])
def test_defaults_that_other_code_sets_do_not_matter(defaults):
    plain = resvar.build_model("original", 20)
    try:
        if defaults == "float64":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        assert resvar.identify(plain).known
        assert torch.get_default_dtype() == getattr(torch, defaults, torch.float32)
        assert torch.get_default_device().type == ("meta" if defaults == "meta" else "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_another_max_pooling_is_described():
    """As in the ResNets that were converted from Caffe."""
    network = resvar.build_model("original", 18, "imagenet", num_classes=10)
    network.pool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
    (difference,) = resvar.identify(network, (3, 64, 64)).differences
    assert difference.text == "max pooling with padding 0 instead of 1, ceil mode"
    assert difference.modules == ("pool",)


def test_max_pooling_between_units_is_named():
    network = resvar.build_model("original", 20)
    network.stages[1].insert(1, nn.MaxPool2d(3, 2, 1))
    texts = [difference.text for difference in resvar.identify(network).differences]
    assert any("max pooling" in text and "after the addition" in text for text in texts), texts


def test_layers_of_a_network_of_functions_have_the_names_of_their_weights():
    class Coarse(Functions):
        def normalise(self, name, x):
            eps = 1e-3 if name == "u4_norm1" else 1e-5
            buffers = [getattr(self, f"{name}_running_{part}") for part in ("mean", "var")]
            affine = [self.weights[f"{name}_{part}"] for part in ("scale", "shift")]
            return F.batch_norm(x, *buffers, *affine, training=self.training, eps=eps)

    found = resvar.identify(Coarse("original", 20))
    (difference,) = found.differences
    assert difference.modules == ("weights.u4_norm1_scale",)
    assert [unit.name for unit in found.structure.units][:2] == ["unit 1", "unit 2"]


def test_a_bias_that_is_added_to_a_product_is_the_bias_of_the_linear_layer():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = (
                nn.Parameter(torch.zeros(64, 10)),
                nn.Parameter(torch.zeros(10)),
            )

        def forward(self, x):
            return x @ self.weight + self.bias

    plain = resvar.build_model("original", 20)
    plain.classifier = Linear()
    assert resvar.identify(plain).known


@pytest.mark.heavy
def test_a_scalar_before_the_first_convolution_does_not_make_pre_activation():
    """As in Fixup (arXiv:1901.09321): no BN, but scalar shifts."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + self.bias

    network = resvar.build_model("original", 20)
    for stage in network.stages:
        for unit in stage:
            first, last = unit.branch[0], unit.branch[3]
            unit.branch = nn.Sequential(Shift(), first, nn.ReLU(), Shift(), last, Shift())
    assert resvar.identify(network).ordering.name == "original"


def normalised_by(layer):
    """ResNet-20 with another layer for each BN."""
    network = resvar.build_model("original", 20)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, layer(child.num_features))
    return network


class Exponential(nn.BatchNorm2d):
    def forward(self, x):
        statistics, affine = (self.running_mean, self.running_var), (self.weight.exp(), self.bias)
        return F.batch_norm(x, *statistics, *affine, self.training, self.momentum, self.eps)


class Loose(nn.Module):
    """Its running statistics are not buffers."""

    def __init__(self, width):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.statistics = torch.zeros(width), torch.ones(width)

    def forward(self, x):
        return F.batch_norm(x, *self.statistics, self.scale, self.shift, self.training)


def tracking(width):
    return nn.InstanceNorm2d(width, affine=True, track_running_stats=True)


@pytest.mark.parametrize("layer", [Exponential, Loose, tracking])
def test_bn_with_tensors_that_are_not_the_networks_own_differs(layer):
    (difference,) = resvar.identify(normalised_by(layer)).differences
    assert "BN whose tensors are not the network's own" in difference.text
    assert len(difference.modules) == 19


def test_a_normalised_linear_layer_differs():
    class Cosine(nn.Linear):
        def forward(self, x):
            return F.linear(x, F.normalize(self.weight), self.bias)

    network = resvar.build_model("original", 20)
    network.classifier = Cosine(64, 10)
    (difference,) = resvar.identify(network).differences
    assert "a linear layer whose tensors are not the network's own" in difference.text


def test_a_network_that_takes_one_image_only_is_not_called_equal():
    def forward(self, x):
        return self.network(x.view(1, 3, 32, 32))

    found = resvar.identify(Around(forward))
    assert not found.known
    assert any("could not be compared" in difference.text for difference in found.differences)


@pytest.mark.heavy
def test_lazy_layers_are_initialised():
    def conv(*arguments, **options):
        return nn.LazyConv2d(*arguments, **options, bias=False)

    plain = resvar.build_model("original", 18, "imagenet", num_classes=10)
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.LazyBatchNorm2d())
            elif isinstance(child, nn.Conv2d):
                layer = conv(child.out_channels, child.kernel_size, child.stride, child.padding)
                setattr(module, name, layer)
    assert resvar.identify(plain, (3, 64, 64)).known
    assert is_lazy(plain.stem[0].weight)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_units_are_known(reentrant):
    class Recomputed(nn.Module):
        def __init__(self, unit):
            super().__init__()
            self.unit = unit

        def forward(self, x):
            return checkpoint(self.unit, x, use_reentrant=reentrant)

    network = resvar.build_model("original", 20)
    for stage in network.stages:
        for number, unit in enumerate(stage):
            stage[number] = Recomputed(unit)
    assert resvar.identify(network).known
