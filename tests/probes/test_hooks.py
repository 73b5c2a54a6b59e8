"""A probe leaves no trace in the network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from resvar.config import resolve
from resvar.models.ordering import PAPER_ORDER
from resvar.probes.deletion import delete_units
from resvar.probes.hooks import mode, observing, units
from resvar.probes.identity import check_identity
from resvar.probes.signals import measure_signals
from resvar.training.execution import Execution
from tests.probes.networks import make_images, make_network, trained
from tests.support.outcome import bits

SETTINGS = resolve(
    options={"variant": "original", "depth": 14}, overrides=["precision=fp32"]
)  # only the precision counts


def everything(network):
    """Weights, buffers, gradients, modes and hooks."""
    return {
        "state": {name: bits(held) for name, held in network.state_dict().items()},
        "gradients": [parameter.grad for parameter in network.parameters()],
        "wanted": [parameter.requires_grad for parameter in network.parameters()],
        "modes": [part.training for part in network.modules()],
        "tracking": [
            part.track_running_stats
            for part in network.modules()
            if isinstance(part, nn.BatchNorm2d)
        ],
        "hooks": [
            len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
            for part in network.modules()
        ],
    }


@pytest.mark.heavy
@pytest.mark.parametrize("variant", PAPER_ORDER)
@pytest.mark.parametrize("training", [False, True])
def test_a_probe_leaves_the_network_as_it_was(variant, training):
    network = trained(make_network(variant)).train(training)
    network.stages[0][0].eval()  # its own mode must be restored too
    images, labels = make_images()
    twin = copy.deepcopy(network)
    before = everything(network)
    given = bits(images)
    with torch.no_grad():
        wanted = bits(copy.deepcopy(twin).eval()(images))

    measure_signals(network, images, labels, bn_images=8)
    check_identity(network, images[:4], labels[:4])
    delete_units(network, images, labels, Execution.for_inference(SETTINGS, images.device))

    assert everything(network) == before
    assert bits(images) == given
    assert not images.requires_grad
    with torch.no_grad():
        assert bits(copy.deepcopy(network).eval()(images)) == wanted
        # In training mode, where BN does note its statistics, too.
        assert bits(network(images)) == bits(twin(images))
    assert everything(network)["state"] == everything(twin)["state"]


def test_hooks_and_modes_go_back_after_an_error_too():
    network = trained(make_network()).eval()
    before = everything(network)

    seen = []

    def fail(signal):
        seen.append(signal)
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        mode(network, training=True),
        observing({units(network)[1][2]: fail}, {network.stem: seen.append}),
    ):
        network(make_images()[0])
    assert len(seen) == 2
    assert everything(network) == before


def test_what_a_unit_adds_up_is_what_the_hooks_see():
    network = make_network("original").eval()
    _, _, unit = units(network)[2]
    assert not isinstance(unit.shortcut, nn.Identity)
    seen: dict[str, torch.Tensor] = {}
    with (
        torch.no_grad(),
        observing(
            {unit: lambda x: seen.update(x=x), unit.after_add: lambda x: seen.update(total=x)},
            {
                unit.shortcut: lambda x: seen.update(shortcut=x),
                unit.branch: lambda x: seen.update(branch=x),
                unit: lambda x: seen.update(y=x),
            },
        ),
    ):
        network(make_images()[0])
    padded = torch.zeros_like(seen["branch"])
    padded[:, 8:24] = seen["x"][:, :, ::2, ::2]  # option A, by hand
    assert torch.equal(seen["shortcut"], padded)
    assert torch.equal(seen["total"], seen["branch"] + padded)
    assert torch.equal(seen["y"], seen["total"].relu())
