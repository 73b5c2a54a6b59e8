"""Networks that are not what their authors took them for, each wrong in one respect.

Most of the mistakes are from public reports: KaimingHe/resnet-1k-layers#3,
raghakot/keras-resnet#26, kuangliu/pytorch-cifar#18, bearpaw/pytorch-classification#36 and #37.
`test_wrong.py` has a table of what must be said of each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class Zeros(nn.Module):
    """Option A: sample pixels, add channels of zeros."""

    def __init__(self, channels: int, sample: Callable[[Tensor], Tensor], before: int):
        super().__init__()
        self.channels, self.sample, self.before = channels, sample, before

    def forward(self, x):
        return F.pad(self.sample(x), (0, 0, 0, 0, self.before, self.channels - self.before))


def every_second(x):
    return x[:, :, ::2, ::2]


def averages(x):
    return F.avg_pool2d(x, 2)


def way(before, out, stride, norm=True):
    conv = nn.Conv2d(before, out, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out)) if norm else nn.Sequential(conv)


class V1(nn.Module):
    """conv-BN-ReLU-conv-BN, add, ReLU; or three convolutions."""

    def __init__(self, before, width, stride, bottleneck=False, stride_at=0):
        super().__init__()
        out = width * 4 if bottleneck else width
        channels = [before, width, width, out] if bottleneck else [before, width, width]
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        self.count = len(kernels)
        for i, k in enumerate(kernels):
            conv = nn.Conv2d(
                *channels[i : i + 2], k, stride if i == stride_at else 1, k // 2, bias=False
            )
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(self.norm_width(channels, i)))
        self.relu = nn.ReLU()
        self.drop = nn.Identity()
        self.shortcut = nn.Identity()
        if before != out:
            missing = out - before
            self.shortcut = (
                way(before, out, stride, self.normalised)
                if bottleneck
                else Zeros(missing, every_second, missing // 2)
            )

    normalised = True

    def norm_width(self, channels, i):
        return channels[i + 1]

    def layer(self, i):
        return getattr(self, f"conv{i}"), getattr(self, f"bn{i}")

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            conv, bn = self.layer(i)
            y = bn(conv(y))
            if i < self.count:
                y = self.drop(self.relu(y))
        return self.relu(y + self.shortcut(x))


class V2(V1):
    """BN-ReLU-conv-BN-ReLU-conv, add."""

    normalised = False
    first = False
    raw = False

    def norm_width(self, channels, i):
        return channels[i]

    def forward(self, x):
        a = self.relu(self.bn1(x))
        y = a
        for i in range(1, self.count + 1):
            conv, bn = self.layer(i)
            y = conv(y if i == 1 else self.relu(bn(y)))
        projects = isinstance(self.shortcut, nn.Sequential)
        activated = (projects or self.first) and not self.raw
        return y + self.shortcut(a if activated else x)


class InPlace(V1):
    """ReLU-conv-BN-ReLU-conv-BN, add; the first ReLU in place."""

    def forward(self, x):
        y = F.relu_(x)
        y = self.relu(self.bn1(self.conv1(y)))
        return self.bn2(self.conv2(y)) + self.shortcut(x)


class Network(nn.Module):
    """For CIFAR."""

    def __init__(self, unit=V1, counts=(3, 3, 3), widths=(16, 32, 64), **options):
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.begin = nn.Sequential(nn.BatchNorm2d(widths[0]), nn.ReLU())
        before = widths[0]
        for stage, (width, count) in enumerate(zip(widths, counts, strict=True), 1):
            units = []
            for number in range(count):
                stride = 2 if stage > 1 and not number else 1
                units.append(unit(before, width, stride, **options))
                before = units[-1].layer(units[-1].count)[0].out_channels
            setattr(self, f"layer{stage}", nn.Sequential(*units))
        self.end = nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, 10)
        if issubclass(unit, V2):
            self.begin = nn.Identity()
            self.layer1[0].first = True
            self.end = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        if issubclass(unit, InPlace):
            self.begin = nn.BatchNorm2d(widths[0])
            self.end = nn.ReLU()

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.begin(self.conv(x)))))
        return self.fc(self.pool(self.end(x)).flatten(1))

    @property
    def units(self):
        return [*self.layer1, *self.layer2, *self.layer3]


class Wrapped(nn.Module):
    """A network with something before or after it."""

    def __init__(self, network, before=nn.Identity, after=nn.Identity):
        super().__init__()
        self.before, self.network, self.after = before(), network, after()

    def forward(self, x):
        return self.after(self.network(self.before(x)))


# --- head and first unit --------------------------------------------------------------------------


def no_bn_relu_at_the_end():
    network = Network(V2)
    network.end = nn.Identity()
    return network


def no_relu_at_the_end():
    network = Network(V2)
    network.end = nn.BatchNorm2d(64)
    return network


def first_lead_after_the_split():
    network = Network(V2)
    network.layer1[0].raw = True
    return network


def no_first_lead():
    network = Network(V2)
    network.layer1[0].bn1 = nn.Identity()
    network.layer1[0].relu = nn.Identity()
    network.layer1[0].bn2 = nn.Sequential(network.layer1[0].bn2, nn.ReLU())
    return network


def activated_stem():
    network = Network(V2)
    network.begin = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
    return network


def maximum_at_the_end():
    network = Network(V1)
    network.pool = nn.AdaptiveMaxPool2d(1)
    return network


def softmax_at_the_end():
    return Wrapped(Network(V1), after=lambda: nn.Softmax(dim=1))


def two_linear_layers():
    network = Network(V1)
    network.fc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return network


# --- shortcuts ------------------------------------------------------------------------------------


def projections_without_bn():
    network = Network(V1, bottleneck=True)
    for layer in (network.layer1, network.layer2, network.layer3):
        layer[0].shortcut = layer[0].shortcut[:1]
    return network


def normalised_projections():
    network = Network(V2, bottleneck=True)
    for layer in (network.layer1, network.layer2, network.layer3):
        layer[0].shortcut.append(nn.BatchNorm2d(layer[0].conv3.out_channels))
    return network


def raw_projections():
    network = Network(V2, bottleneck=True)
    for layer in (network.layer1, network.layer2, network.layer3):
        layer[0].raw = True
    return network


def projections_for_padding():
    network = Network(V1)
    network.layer2[0].shortcut, network.layer3[0].shortcut = way(16, 32, 2), way(32, 64, 2)
    return network


def needless_projection():
    network = Network(V1)
    network.layer1[0].shortcut = way(16, 16, 1)
    return network


def zeros_all_after():
    network = Network(V1)
    network.layer2[0].shortcut = Zeros(16, every_second, 0)
    network.layer3[0].shortcut = Zeros(32, every_second, 0)
    return network


def averaging_shortcuts():
    network = Network(V1)
    network.layer2[0].shortcut = Zeros(16, averages, 8)
    network.layer3[0].shortcut = Zeros(32, averages, 16)
    return network


def no_gradient_through_shortcuts():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach()

    network = Network(V1)
    network.layer2[1].shortcut = Detached()
    return network


# --- counts and widths ----------------------------------------------------------------------------


def bottlenecks_for_110():
    """18 units in each stage, as in ResNet-110, but of three convolutions."""
    return Network(V2, (18, 18, 18), bottleneck=True)


def one_unit_too_few():
    return Network(V1, (3, 3, 2))


def wide():
    return Network(V1, widths=(32, 64, 128))


def stride_on_the_3x3():
    return Network(V2, bottleneck=True, stride_at=1)


def shared_unit():
    network = Network(V1)
    network.layer3[2] = network.layer3[1]
    return network


# --- layers ---------------------------------------------------------------------------------------


def no_relu_in_one_unit():
    network = Network(V2)
    network.layer2[1].bn2 = nn.Sequential(network.layer2[1].bn2)
    unit = network.layer2[1]
    unit.relu = nn.Identity()
    unit.bn1 = nn.Sequential(unit.bn1, nn.ReLU())
    return network


def biases():
    network = Network(V1)
    for unit in network.layer1:
        unit.conv1 = nn.Conv2d(16, 16, 3, padding=1)
    return network


def large_eps():
    network = Network(V2)
    for unit in network.units:
        unit.bn2.eps = 1e-3
    return network


def relu6():
    network = Network(V2)
    for unit in network.units:
        unit.relu = nn.ReLU6()
    network.end[1] = nn.ReLU6()
    return network


def leaky():
    network = Network(V1)
    for unit in network.units:
        unit.relu = nn.LeakyReLU(0.1)
    return network


def dropout():
    network = Network(V1)
    for unit in network.layer3:
        unit.drop = nn.Dropout(0.3)
    return network


def scaled_branch():
    class Tenth(nn.Module):
        def forward(self, x):
            return 0.1 * x

    network = Network(V1)
    network.layer1[1].bn2 = nn.Sequential(network.layer1[1].bn2, Tenth())
    return network


def scaled_images():
    class Normalise(nn.Module):
        def forward(self, x):
            return (x - 0.5) / 0.25

    return Wrapped(Network(V1), before=Normalise)


def frozen_statistics():
    class Frozen(Network):
        def train(self, mode=True):
            super().train(mode)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            return self

    return Frozen(V1)


def relu_only_in_place():
    """Meant as relu-only-preact: its in-place ReLU changes the shortcut's signal too."""
    return Network(InPlace)
