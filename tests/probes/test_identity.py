"""Equations 4 and 5 hold where the paper says so, and the test notices where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resvar.models.ordering import known_variants
from resvar.probes.claims import BACKWARD_TOLERANCE, identity_backward, identity_forward
from resvar.probes.identity import check_identity
from tests.probes.networks import (
    Deaf,
    Scaled,
    identity_shortcuts,
    make_images,
    make_network,
    moment,
    trained,
)


def check(network):
    return check_identity(network, *make_images(4))


@pytest.mark.parametrize("variant", known_variants())
def test_they_hold_exactly_where_nothing_stands_after_the_addition(variant):
    network = trained(make_network(variant))
    found = check(network)
    clean = not network.ordering.after_add
    assert (found.chains, found.longest, found.images) == (3, 2, 4)
    for name in ("fp32", "fp64"):
        assert (found.forward[name] <= 1) == clean
        assert (found.backward[name] <= BACKWARD_TOLERANCE[name]) == clean
    here = moment(network)
    word = "supported" if clean else "not supported"
    assert identity_forward(here)[0] == identity_backward(here)[0] == word


@pytest.mark.parametrize("factor", [0.9, 1.001, 1 + 1e-9])
def test_a_shortcut_that_scales_breaks_both(factor):
    network = make_network()
    for unit in identity_shortcuts(network):
        unit.shortcut = Scaled(factor)
    found = check(network)
    assert found.forward["fp64"] > 1
    assert found.backward["fp64"] > BACKWARD_TOLERANCE["fp64"]
    here = moment(network)
    assert identity_forward(here)[0] == "not supported"
    assert identity_backward(here)[0] == "not supported"


def test_a_gradient_that_does_not_come_back_breaks_equation_5_alone():
    network = make_network()
    identity_shortcuts(network)[-1].shortcut = Deaf()
    here = moment(network)
    assert identity_forward(here)[0] == "supported"
    assert identity_backward(here)[0] == "not supported"
    # By hand: half of what goes straight through is missing.
    assert here.identity.backward["fp64"] > 0.01


def test_one_unit_of_many_is_enough():
    network = make_network(depth=26)
    broken = identity_shortcuts(network)[5]
    broken.after_add = nn.Sequential(nn.ReLU())
    assert check(network).forward["fp64"] > 1


def test_without_a_gradient_nothing_can_be_said():
    network = make_network()
    nn.init.zeros_(network.classifier.weight)
    here = moment(network)
    assert here.identity.backward == {"fp32": None, "fp64": None}
    assert identity_backward(here)[0] == "inconclusive"
    assert identity_forward(here)[0] == "supported"


def test_where_every_unit_changes_the_shape_nothing_can_be_said():
    here = moment(make_network(depth=11))  # one bottleneck a stage, and all have projections
    assert here.identity.chains == 0
    for predicate in (identity_forward, identity_backward):
        assert predicate(here)[0] == "inconclusive"


def test_the_forward_deviation_is_that_of_plain_addition():
    """In fp64, with BN in training mode: x_L - x_l - F_l - … - F_(L-1), worked out in a loop."""
    network = trained(make_network("original", depth=20)).double().train()
    images, labels = make_images(4)
    found = check_identity(network, images.double(), labels)
    worst = 0.0
    with torch.no_grad():
        signal = network.stem(images.double())
        for stage in network.stages:
            xs, branches = [], []
            for unit in stage:
                if isinstance(unit.shortcut, nn.Identity):
                    xs.append(signal)
                    branches.append(unit.branch(signal))
                signal = unit(signal)
            for at, x in enumerate(xs):
                off = signal - x - sum(branches[at:])
                worst = max(worst, float(off.norm() / signal.norm()))
    assert found.forward_relative["fp64"] == pytest.approx(worst, rel=1e-9)
