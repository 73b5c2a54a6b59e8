"""Unit deletion, against networks whose branch is silenced in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resvar.config import resolve
from resvar.models.ordering import PAPER_ORDER
from resvar.probes.deletion import delete_units
from resvar.probes.findings import Deletion
from resvar.probes.hooks import units
from tests.probes.networks import make_images, make_network, trained

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(precision="fp32"):
    options = {"variant": "original", "depth": 14}
    return resolve(options=options, overrides=[f"precision={precision}"])


def silence(module, given, out):
    del module, given
    return torch.zeros_like(out)


@pytest.mark.parametrize("variant", PAPER_ORDER)
def test_to_delete_a_unit_is_to_silence_its_branch(variant, monkeypatch):
    monkeypatch.setattr("resvar.probes.deletion.AT_A_TIME", 50)
    network = trained(make_network(variant)).eval()
    images, _ = make_images(120)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % 10
    found = delete_units(network, images, labels, settings())
    assert found.error == pytest.approx(100 * 40 / 120)
    wanted = []
    for _, _, unit in units(network):
        if not isinstance(unit.shortcut, nn.Identity):
            wanted.append(None)
            continue
        hook = unit.branch.register_forward_hook(silence)
        with torch.no_grad():
            wrong = (network(images).argmax(dim=1) != labels).float().mean()
        hook.remove()
        wanted.append(pytest.approx(100 * float(wrong)))
    assert found.errors == wanted
    assert wanted[2] is wanted[4] is None
    assert len({error for error in found.errors if error is not None}) > 1


def test_a_silent_unit_can_go_without_a_loss():
    network = trained(make_network("full-preact")).eval()
    nn.init.zeros_(network.stages[1][1].branch[-1].weight)
    images, labels = make_images(60)
    found = delete_units(network, images, labels, settings())
    assert found.errors[3] == found.error


def test_bf16_is_said():
    network = trained(make_network()).eval()
    found = delete_units(network, *make_images(), settings("bf16"))
    assert (found.precision, found.images) == ("bf16", 12)


def deletion(*errors, whole=10.0):
    return Deletion(images=100, precision="fp32", error=whole, errors=list(errors))


def test_the_effective_number_of_units():
    assert deletion(20.0, 20.0, None, 20.0).effective_units == pytest.approx(3)
    assert deletion(20.0, 10.0, 10.0).effective_units == pytest.approx(1)
    assert deletion(13.0, 14.0, 8.0).effective_units == pytest.approx(49 / 25)  # 3 and 4
    assert deletion(10.0, 9.0, None).effective_units is None
    assert deletion(12.0, None, 9.0).rises == [2.0, -1.0]
