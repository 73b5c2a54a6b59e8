"""The layout against the modules of built networks, and against a unit written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resvar.models.architecture import IMAGE_SIZE, plan
from resvar.models.layout import Layer, network_layers, unit_layers
from resvar.models.network import ResidualNetwork
from resvar.models.ordering import Ordering, find_ordering

PLACES = {"conv": "branch", "between": "branch", "trail": "branch"}
"""Places in a layout → names of modules, where they differ."""

OPS = {
    "Conv2d": "conv", "BatchNorm2d": "bn", "ReLU": "relu", "MaxPool2d": "max", "Linear": "linear",
    "Padding": "pad",
}  # fmt: skip

CASES = {
    "cifar": plan(20),
    "projected": plan(38, unit="basic", shortcut="project", stride_on="3x3"),
    "bottleneck": plan(29),
    "padded bottleneck": plan(29, shortcut="pad"),
    "grouped": plan(29, cardinality=8),
    "imagenet": plan(18, "imagenet"),
    "resnext": plan(50, "imagenet", cardinality=32, base_width=4),
    "cifar stem": plan(50, "imagenet", stem="cifar"),
}
ODD = Ordering("odd", ("relu", "bn"), ("relu",), ("bn", "relu"), ("bn",), unusual=True)


def traced(network, size):
    """Place, op, channels and side of the output of each module, in the order of the forward."""
    found = []

    def note(name):
        def hook(module, inputs, output):
            names = [part for part in name.split(".") if not part.isdecimal()]
            place = next(part for part in reversed(names) if part != "stages")
            found.append((place, module, inputs[0].shape, output.shape))

        return hook

    for name, module in network.named_modules():
        if type(module).__name__ in OPS:
            module.register_forward_hook(note(name))
    network(torch.empty(1, 3, size, size, device="meta"))
    return found


def as_layer(place, module, before, after):
    size = after[-1] if len(after) == 4 else 1
    return Layer(
        place,
        OPS[type(module).__name__],
        before[1],
        after[1],
        size,
        int(np.max(getattr(module, "kernel_size", 1))),
        int(np.max(getattr(module, "stride", 1))),
        getattr(module, "groups", 1),
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["original", "relu-only-preact", "full-preact", ODD], ids=str)
def test_layers_are_the_modules_that_a_signal_meets(variant, case):
    architecture, ordering = CASES[case], find_ordering(variant)
    with torch.device("meta"):
        network = ResidualNetwork(ordering, architecture, 7).eval()
    rows = network_layers(ordering, architecture, 7)
    layers = [layer for units in rows.values() for unit in units for layer in unit]
    described = [
        layer._replace(place=PLACES.get(layer.place, layer.place))
        for layer in layers
        if layer.op not in ("add", "mean")
    ]
    forward = [as_layer(*each) for each in traced(network, IMAGE_SIZE[architecture.stem])]
    # Branch and shortcut are parallel: a forward may compute either first.
    assert sorted(described) == sorted(forward)
    assert sum(layer.op == "add" for layer in layers) == sum(s.units for s in architecture.stages)
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in network.parameters())


def test_a_bottleneck_with_a_change_of_shape_by_hand():
    architecture = plan(29, stride_on="3x3")
    stage = architecture.stages[1]
    assert unit_layers(find_ordering("original"), architecture, stage, 64, 32, stride=2) == (
        Layer("conv", "conv", 64, 32, 32, 1),
        Layer("between", "bn", 32, 32, 32),
        Layer("between", "relu", 32, 32, 32),
        Layer("conv", "conv", 32, 32, 16, 3, 2),
        Layer("between", "bn", 32, 32, 16),
        Layer("between", "relu", 32, 32, 16),
        Layer("conv", "conv", 32, 128, 16, 1),
        Layer("trail", "bn", 128, 128, 16),
        Layer("shortcut", "conv", 64, 128, 16, 1, 2),
        Layer("shortcut", "bn", 128, 128, 16),
        Layer("addition", "add", 128, 128, 16),
        Layer("after_add", "relu", 128, 128, 16),
    )
