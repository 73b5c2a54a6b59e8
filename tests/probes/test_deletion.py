"""Unit deletion, against networks whose branch is silenced in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resvar.config import resolve
from resvar.models.ordering import PAPER_ORDER
from resvar.models.unit import Projection
from resvar.probes.deletion import delete_units
from resvar.probes.hooks import units
from resvar.probes.measurements import Deletion
from resvar.training.execution import Execution
from tests.probes.networks import make_images, make_network, trained


def plan(precision="fp32"):
    options = {"variant": "original", "depth": 14}
    settings = resolve(options=options, overrides=[f"precision={precision}"])
    return Execution.for_inference(settings, torch.device("cpu"))


def error_without(network, deleted, images, labels):
    """The forward pass written out, y = after_add(shortcut + branch), but for one branch."""
    signal = network.first_lead(network.stem(images))
    for _, _, unit in units(network):
        lead = unit.lead(signal)
        carried = unit.shortcut(lead if isinstance(unit.shortcut, Projection) else signal)
        signal = unit.after_add(carried if unit is deleted else carried + unit.branch(lead))
    return 100 * float((network.forward_head(signal).argmax(dim=1) != labels).float().mean())


@pytest.mark.heavy
@pytest.mark.parametrize("shape", [{"depth": 14}, {"depth": 20, "unit": "bottleneck"}])
@pytest.mark.parametrize("variant", PAPER_ORDER)
def test_to_delete_a_unit_is_to_leave_out_its_branch(variant, shape, monkeypatch):
    monkeypatch.setattr("resvar.probes.deletion.DELETION_BATCH", 25)
    network = trained(make_network(variant, **shape)).eval()
    images, _ = make_images(60)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
        labels[::3] = (labels[::3] + 1) % 10
        found = delete_units(network, images, labels, plan())
        wanted = [error_without(network, unit, images, labels) for _, _, unit in units(network)]
    assert found.error == pytest.approx(100 * 20 / 60)
    assert found.errors == pytest.approx(wanted)
    assert len(found.errors) == 6
    assert len(set(found.errors)) > 1


def test_a_silent_unit_can_go_without_a_loss():
    network = trained(make_network("full-preact")).eval()
    nn.init.zeros_(network.stages[1][1].branch[-1].weight)
    images, labels = make_images(60)
    found = delete_units(network, images, labels, plan())
    assert found.errors[3] == found.error


def test_bf16_is_said():
    network = trained(make_network()).eval()
    found = delete_units(network, *make_images(), plan("bf16"))
    assert (found.precision, found.images) == ("bf16", 12)


def deletion(*errors, whole=10.0):
    return Deletion(images=100, precision="fp32", error=whole, errors=list(errors))


def test_the_effective_number_of_units():
    assert deletion(20.0, 20.0, 10.0, 20.0).effective_units == pytest.approx(3)
    assert deletion(20.0, 10.0, 10.0).effective_units == pytest.approx(1)
    assert deletion(13.0, 14.0, 8.0).effective_units == pytest.approx(49 / 25)  # 3 and 4
    assert deletion(10.0, 9.0).effective_units is None
    assert deletion(12.0, 9.0).rises == [2.0, -1.0]
