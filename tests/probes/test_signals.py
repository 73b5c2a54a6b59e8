"""Signals and gradients, against a second way of computing each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resvar.errors import RunError
from resvar.models.ordering import PAPER_ORDER
from resvar.probes.signals import measure_signals
from tests.probes.networks import make_images, make_network, trained


def by_hand(network, images, labels, bn_images):
    """Unit by unit with the modules themselves, gradients by `retain_grad`; micro-batch lists."""
    network.train()
    parts = math.ceil(len(labels) / bn_images)
    rows = [[] for stage in network.stages for _ in stage]
    loss = 0.0
    for some, theirs in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
        signal = network.first_lead(network.stem(some))
        inputs, sums = [], []
        for stage in network.stages:
            for unit in stage:
                signal.retain_grad()
                inputs.append(signal)
                activated = unit.lead(signal)
                branch = unit.branch(activated)
                projects = hasattr(unit.shortcut, "append")
                shortcut = unit.shortcut(activated if projects else signal)
                sums.append((shortcut.detach().numpy(), branch.detach().numpy()))
                signal = unit.after_add(branch + shortcut)
        signal.retain_grad()
        inputs.append(signal)
        logits = network.classifier(network.head_lead(signal).mean(dim=(2, 3)))
        part = F.cross_entropy(logits, theirs, reduction="sum") / len(labels)
        part.backward()
        loss += part.item()
        for row, pair, x in zip(rows, sums, inputs, strict=False):
            row.append((*pair, x.grad.numpy()))
        end = inputs[-1].grad.numpy()
        rows.append([*(rows.pop() if len(rows) > 6 else []), (end, end, end)])
    *units, last = rows
    return units, float(np.sqrt(sum((e[0].astype(float) ** 2).sum() for e in last))), loss


@pytest.mark.parametrize("variant", PAPER_ORDER)
@pytest.mark.parametrize("bn_images", [12, 5])
def test_forward_and_backward_are_those_of_a_second_way(variant, bn_images):
    network = trained(make_network(variant))
    images, labels = make_images()
    found = measure_signals(network, images, labels, bn_images)
    wanted, end, loss = by_hand(network, images, labels, bn_images)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.end_gradient == pytest.approx(end, rel=1e-4)
    assert [unit.name for unit in found.units] == [
        f"stages.{s}.{u}" for s in range(3) for u in range(2)
    ]
    assert [unit.keeps_shape for unit in found.units] == [True, True, False, True, False, True]
    for unit, parts in zip(found.units, wanted, strict=True):
        for at, signal in enumerate((unit.shortcut, unit.branch)):
            values = np.concatenate([part[at].ravel() for part in parts]).astype(float)
            assert signal.mean == pytest.approx(values.mean(), rel=1e-4, abs=1e-6)
            assert signal.std == pytest.approx(values.std(), rel=1e-4)
            assert signal.negative == pytest.approx((values < 0).mean(), abs=1e-4)
            assert signal.norm == pytest.approx(np.linalg.norm(values), rel=1e-5)
        assert unit.ratio == pytest.approx(unit.branch.norm / unit.shortcut.norm)
        gradient = math.sqrt(sum((part[2].astype(float) ** 2).sum() for part in parts))
        assert unit.gradient == pytest.approx(gradient, rel=1e-3)
        assert unit.gradient_ratio == pytest.approx(gradient / end, rel=1e-3)


def test_the_gain_of_bn_after_the_addition_is_its_scale_over_the_deviation():
    network = trained(make_network("bn-after-add"))
    images, labels = make_images()
    found = measure_signals(network, images, labels, bn_images=6)
    units, _, _ = by_hand(network, images, labels, 6)
    modules = [unit for stage in network.stages for unit in stage]
    for unit, module, parts in zip(found.units, modules, units, strict=True):
        scale = module.after_add[0].weight.detach().numpy().astype(float)
        logs = [
            np.log(scale / np.sqrt((s + b).astype(float).var(axis=(0, 2, 3)) + 1e-5)).mean()
            for s, b, _ in parts
        ]
        assert unit.gain == pytest.approx(math.exp(np.mean(logs)), rel=1e-4)


def test_the_share_that_relu_lets_pass_and_that_all_in_a_stage_do():
    network = trained(make_network("original"))
    images, labels = make_images()
    found = measure_signals(network, images, labels, bn_images=12)
    units, _, _ = by_hand(network, images, labels, 12)
    alive = None
    for unit, ((shortcut, branch, _),) in zip(found.units, units, strict=True):
        positive = shortcut + branch > 0
        alive = positive if alive is None or not unit.name.endswith("1") else alive & positive
        assert unit.passed == pytest.approx(positive.mean(), abs=1e-4)
        assert unit.straight == pytest.approx(alive.mean(), abs=1e-4)
        assert unit.gain == 1.0


@pytest.mark.parametrize("variant", ["relu-before-add", "relu-only-preact", "full-preact"])
def test_where_nothing_stands_after_the_addition_all_passes_unscaled(variant):
    found = measure_signals(trained(make_network(variant)), *make_images(), bn_images=12)
    assert {(unit.gain, unit.passed, unit.straight) for unit in found.units} == {(1.0, 1.0, 1.0)}


def test_a_bn_scale_of_zero_shuts_the_shortcut():
    network = make_network("bn-after-add")
    torch.nn.init.zeros_(network.stages[1][1].after_add[0].weight)
    found = measure_signals(network, *make_images(), bn_images=12)
    assert found.units[3].gain < 1e-30
    assert found.units[2].gain > 0.1


def test_a_signal_that_exploded_is_an_error_and_no_nan():
    network = make_network("full-preact")
    torch.nn.init.constant_(network.stages[0][1].branch[0].weight, float("inf"))
    with pytest.raises(RunError, match="no longer finite"):
        measure_signals(network, *make_images(), bn_images=12)


@pytest.mark.parametrize(
    "more", [{"depth": 20, "unit": "bottleneck"}, {"depth": 18, "family": "imagenet"}]
)
def test_bottlenecks_and_the_imagenet_family_can_be_probed(more):
    network = make_network("original", **more)
    found = measure_signals(network, *make_images(4), bn_images=4)
    assert len(found.units) == sum(len(stage) for stage in network.stages)
    # A projection changes the shape even at stride 1, as in the first unit of a bottleneck.
    assert found.units[0].keeps_shape == (more["depth"] == 18)
