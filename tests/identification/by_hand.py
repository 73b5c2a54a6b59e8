"""The five orderings written by hand, in ways unlike resvar's own.

`Modules` has lists of modules, one shared in-place ReLU and a recursive forward; `Functions` has
its weights in a `ParameterDict` and calls `torch.nn.functional`. A unit is one of the five
functions below, read off figure 4 of arXiv:1603.05027. Nothing of `resvar.models` is used.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

EXPANSION = {2: 1, 3: 4}
"""By the number of convolutions in a unit."""

# --- five units: u.conv(i, ·) and u.norm(i, ·) are layers, u.around(x, a) the shortcut ------------


def original(u, x, _first):
    y = x
    for i in range(u.n):
        y = u.norm(i, u.conv(i, y))
        if i < u.n - 1:
            y = u.relu(y)
    y += u.around(x, x)
    return u.relu(y)


def bn_after_add(u, x, _first):
    y = u.conv(0, x)
    for i in range(1, u.n):
        y = u.conv(i, u.relu(u.norm(i - 1, y)))
    return u.relu(u.norm(u.n - 1, y + u.around(x, x)))


def relu_before_add(u, x, _first):
    y = x
    for i in range(u.n):
        y = u.relu(u.norm(i, u.conv(i, y)))
    return u.around(x, x) + y


def relu_only_preact(u, x, first):
    a = x if first else torch.clamp(x, min=0)
    y = a
    for i in range(u.n):
        y = u.norm(i, u.conv(i, y))
        if i < u.n - 1:
            y = u.relu(y)
    return torch.add(y, u.around(x, a))


def full_preact(u, x, first):
    a = x if first else u.relu(u.norm(0, x))
    y = u.conv(0, a)
    for i in range(1, u.n):
        y = u.conv(i, u.relu(u.norm(i, y)))
    return y.add_(u.around(x, a))


UNITS = {
    "original": original,
    "bn-after-add": bn_after_add,
    "relu-before-add": relu_before_add,
    "relu-only-preact": relu_only_preact,
    "full-preact": full_preact,
}
NORMALISED_PROJECTION = ("original", "relu-before-add", "relu-only-preact")


def start(ordering, stem_norm, lead, x):
    """From the stem's convolution to the split of the first unit."""
    if ordering == "full-preact":
        return F.relu(lead(x))
    x = stem_norm(x)
    return F.threshold(x, 0, 0) if ordering == "relu-only-preact" else F.relu_(x)


def end(ordering, norm, x):
    """From the last addition to the pooling."""
    if ordering == "full-preact":
        x = norm(x)
    return torch.relu(x) if ordering.endswith("preact") else x


def shapes(depth, convs, widths=(16, 32, 64)):
    """Channels in, inside and out, and the stride, of each unit of a CIFAR network."""
    count = (depth - 2) // (3 * convs)
    before = widths[0]
    for stage, width in enumerate(widths):
        for number in range(count):
            out = width * EXPANSION[convs]
            yield before, width, out, 2 if stage and not number else 1
            before = out


def kernels(convs):
    return (3, 3) if convs == 2 else (1, 3, 1)


# --- written with modules -------------------------------------------------------------------------


class Unit(nn.Module):
    def __init__(self, ordering, convs, shape, relu):
        super().__init__()
        before, width, out, stride = shape
        self.n, self.ordering, self.stride = convs, ordering, stride
        channels = [before, *[width] * (convs - 1), out]
        self.kernels = nn.ModuleList(
            nn.Conv2d(a, b, k, stride if i == 0 else 1, k // 2, bias=False)
            for i, (a, b, k) in enumerate(
                zip(channels[:-1], channels[1:], kernels(convs), strict=True)
            )
        )
        scales = channels[:-1] if ordering == "full-preact" else channels[1:]
        self.scales = nn.ModuleList(map(nn.BatchNorm2d, scales))
        self.missing = out - before
        self.way = None
        if before != out and convs == 3:
            self.way = nn.Conv2d(before, out, 1, stride, bias=False)
            if ordering in NORMALISED_PROJECTION:
                self.way = nn.Sequential(self.way, nn.BatchNorm2d(out))
        self.relu = relu

    def conv(self, i, x):
        return self.kernels[i](x)

    def norm(self, i, x):
        return self.scales[i](x)

    def around(self, x, activated):
        if self.way is not None:
            return self.way(activated)
        if not self.missing:
            return x
        x = F.avg_pool2d(x, 1, self.stride)
        none = torch.zeros_like(x[:, : self.missing // 2])
        return torch.cat([none, x, none], 1)

    def forward(self, x, first):
        return UNITS[self.ordering](self, x, first)


class Modules(nn.Module):
    """Units in a list, visited by recursion; one ReLU module for all of them."""

    def __init__(self, ordering, depth, convs=2, classes=10):
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.ordering = ordering
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.first_norm = nn.Identity() if ordering == "full-preact" else nn.BatchNorm2d(16)
        self.units = nn.ModuleList(Unit(ordering, convs, s, relu) for s in shapes(depth, convs))
        width = 64 * EXPANSION[convs]
        self.last_norm = nn.BatchNorm2d(width) if ordering == "full-preact" else nn.Identity()
        self.pool = nn.AvgPool2d(8)
        self.out = nn.Linear(width, classes)

    def through(self, x, number):
        if number < 0:
            lead = self.units[0].scales[0]
            return start(self.ordering, self.first_norm, lead, self.first(x))
        return self.units[number](self.through(x, number - 1), number == 0)

    def forward(self, x):
        x = self.through(x, len(self.units) - 1)
        x = self.pool(end(self.ordering, self.last_norm, x))
        return self.out(x.view(len(x), -1))


# --- written with functions -----------------------------------------------------------------------


class Layers:
    """The layers of a unit, by the names of their tensors."""

    relu = staticmethod(F.relu)

    def __init__(self, network, name, convs, stride):
        self.network, self.name, self.n, self.stride = network, name, convs, stride

    def conv(self, i, x):
        weight = self.network.weights[f"{self.name}_conv{i}"]
        stride = self.stride if i == 0 else 1
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, i, x):
        return self.network.normalise(f"{self.name}_norm{i}", x)

    def around(self, x, activated):
        weights = self.network.weights
        if f"{self.name}_way" in weights:
            x = F.conv2d(activated, weights[f"{self.name}_way"], stride=self.stride)
            name = f"{self.name}_waynorm"
            return self.network.normalise(name, x) if f"{name}_scale" in weights else x
        missing = weights[f"{self.name}_conv{self.n - 1}"].shape[0] - x.shape[1]
        if not missing:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, missing // 2, missing // 2))


class Functions(nn.Module):
    """Weights in one dictionary; everything else is a function."""

    def __init__(self, ordering, depth, convs=2, classes=10):
        super().__init__()
        self.ordering, self.convs = ordering, convs
        self.shapes = list(shapes(depth, convs))
        self.weights = nn.ParameterDict()
        self._conv("first", 3, 16, 3)
        if ordering != "full-preact":
            self._norm("first", 16)
        for number, (before, width, out, _) in enumerate(self.shapes):
            channels = [before, *[width] * (convs - 1), out]
            for i, kernel in enumerate(kernels(convs)):
                self._conv(f"u{number}_conv{i}", channels[i], channels[i + 1], kernel)
                shift = 0 if ordering == "full-preact" else 1
                self._norm(f"u{number}_norm{i}", channels[i + shift])
            if before != out and convs == 3:
                self._conv(f"u{number}_way", before, out, 1)
                if ordering in NORMALISED_PROJECTION:
                    self._norm(f"u{number}_waynorm", out)
        if ordering == "full-preact":
            self._norm("last", out)
        self.weights["linear"] = nn.Parameter(torch.randn(classes, out) * 0.1)
        self.weights["bias"] = nn.Parameter(torch.zeros(classes))

    def _conv(self, name, before, out, kernel):
        scale = (2 / (before * kernel**2)) ** 0.5
        self.weights[name] = nn.Parameter(torch.randn(out, before, kernel, kernel) * scale)

    def _norm(self, name, width):
        self.weights[f"{name}_scale"] = nn.Parameter(torch.ones(width))
        self.weights[f"{name}_shift"] = nn.Parameter(torch.zeros(width))
        self.register_buffer(f"{name}_running_mean", torch.zeros(width))
        self.register_buffer(f"{name}_running_var", torch.ones(width))

    def normalise(self, name, x):
        return F.batch_norm(
            x,
            getattr(self, f"{name}_running_mean"),
            getattr(self, f"{name}_running_var"),
            self.weights[f"{name}_scale"],
            self.weights[f"{name}_shift"],
            training=self.training,
        )

    def forward(self, x):
        units = [
            Layers(self, f"u{number}", self.convs, shape[3])
            for number, shape in enumerate(self.shapes)
        ]
        x = F.conv2d(x, self.weights["first"], padding=1)
        x = start(
            self.ordering, lambda y: self.normalise("first", y), lambda y: units[0].norm(0, y), x
        )
        for number, unit in enumerate(units):
            x = UNITS[self.ordering](unit, x, number == 0)
        x = end(self.ordering, lambda y: self.normalise("last", y), x)
        return F.linear(x.flatten(2).mean(-1), self.weights["linear"], self.weights["bias"])


# --- written with nn.Sequential only --------------------------------------------------------------


class Plus(nn.Sequential):
    """Adds what it computes to its input."""

    def forward(self, x):
        return super().forward(x) + x


class PlusWay(nn.Sequential):
    """Adds what all of it but the last computes to what the last computes."""

    def forward(self, x):
        y = x
        for part in self[:-1]:
            y = part(y)
        return y + self[-1](x)


def _unit_of_v1(before, width, out, stride):
    """A bottleneck of the original ordering, without the ReLU after the addition."""
    branch = [
        *(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)),
        *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)),
        *(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)),
    ]
    if before == out and stride == 1:
        return Plus(*branch)
    way = nn.Sequential(nn.Conv2d(before, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return PlusWay(*branch, way)


def sequential_resnet50(classes=1000):
    """ResNet-50 (original), the stride on the 3×3."""
    layers = [
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    before = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for number in range(count):
            stride = 2 if stage and not number else 1
            layers += [_unit_of_v1(before, width, 4 * width, stride), nn.ReLU()]
            before = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes))


# --- ResNet-18 in one forward ---------------------------------------------------------------------


class FlatResNet18(nn.Module):
    """Full pre-activation; every layer is an attribute of the network itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        before = 64
        for number in range(8):
            width = 64 << number // 2
            stride = 2 if number in (2, 4, 6) else 1
            self.add_module(f"bn{number}a", nn.BatchNorm2d(before))
            self.add_module(f"conv{number}a", nn.Conv2d(before, width, 3, stride, 1, bias=False))
            self.add_module(f"bn{number}b", nn.BatchNorm2d(width))
            self.add_module(f"conv{number}b", nn.Conv2d(width, width, 3, 1, 1, bias=False))
            if stride > 1:
                self.add_module(f"way{number}", nn.Conv2d(before, width, 1, stride, bias=False))
            before = width
        self.bn = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn0a(self.conv(x))), 3, 2, 1)
        for number in range(8):
            layer = {
                name: getattr(self, f"{name[:-1]}{number}{name[-1]}")
                for name in ("bna", "bnb", "conva", "convb")
            }
            way = getattr(self, f"way{number}", None)
            a = F.relu(layer["bna"](x)) if number else x
            y = layer["convb"](F.relu(layer["bnb"](layer["conva"](a))))
            x = y + (x if way is None else way(a))
        return self.fc(F.relu(self.bn(x)).sum((2, 3)) / (x.shape[2] * x.shape[3]))


# --- the three forms of ResNeXt's unit (arXiv:1611.05431, figure 3) -------------------------------


class Form(nn.Module):
    """A unit with `paths` equal paths of `width` channels, in form `a`, `b` or `c`."""

    def __init__(self, form, before, paths, width, out, stride):
        super().__init__()
        self.form = form
        if form == "c":
            self.path = _path(before, paths * width, stride, paths)
            self.last = nn.Conv2d(paths * width, out, 1, bias=False)
        else:
            self.paths = nn.ModuleList(_path(before, width, stride, 1) for _ in range(paths))
            if form == "b":
                self.last = nn.Conv2d(paths * width, out, 1, bias=False)
            else:
                self.lasts = nn.ModuleList(
                    nn.Conv2d(width, out, 1, bias=False) for _ in range(paths)
                )
        self.norm = nn.BatchNorm2d(out)
        self.way = None
        if before != out or stride > 1:
            self.way = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(before, out, 1, stride, bias=False), norm=nn.BatchNorm2d(out)
                )
            )

    def forward(self, x):
        if self.form == "c":
            y = self.last(self.path(x))
        elif self.form == "b":
            y = self.last(torch.cat([path(x) for path in self.paths], 1))
        else:
            y = sum(last(path(x)) for path, last in zip(self.paths, self.lasts, strict=True))
        return F.relu(self.norm(y) + (x if self.way is None else self.way(x)))


def _path(before, width, stride, groups):
    return nn.Sequential(
        *(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False),
        *(nn.BatchNorm2d(width), nn.ReLU()),
    )


def resnext29(form, paths=8, width=64):
    """ResNeXt-29 for CIFAR."""
    layers = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return _resnext(layers, form, (3, 3, 3), paths, width, 10)


def resnext50(form, paths=32, width=4):
    """ResNeXt-50 for ImageNet."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    return _resnext(layers, form, (3, 4, 6, 3), paths, width, 1000)


def _resnext(layers, form, counts, paths, width, classes):
    before = 64
    for stage, count in enumerate(counts):
        out = 256 << stage
        for number in range(count):
            stride = 2 if stage and not number else 1
            layers.append(Form(form, before, paths, width << stage, out, stride))
            before = out
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(before, classes))
