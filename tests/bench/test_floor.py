from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import resvar
from resvar.bench.floor import PASSES, floor, flop, memory_ops
from resvar.models.architecture import plan
from resvar.models.ordering import find_ordering, known_variants


@pytest.mark.parametrize("depth", [20, 29])
@pytest.mark.parametrize("variant", known_variants())
def test_elements_are_those_that_a_real_network_works_on(variant, depth):
    """Each BN and ReLU tells its input's size; additions are one per unit, of its output's."""
    network = resvar.build_model(variant, depth)
    found = {"bn": 0, "relu": 0, "addition": 0}

    def note(kind):
        def hook(_module, _inputs, output):
            found[kind] += output.numel()

        return hook

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(note("bn"))
        elif isinstance(module, nn.ReLU):
            module.register_forward_hook(note("relu"))
        elif type(module).__name__ == "ResidualUnit":
            module.register_forward_hook(note("addition"))
    network(torch.zeros(1, 3, 32, 32))
    counted = {"bn": 0, "relu": 0, "addition": 0}
    for pair, elements in memory_ops(find_ordering(variant), plan(depth)):
        for kind in pair.split():
            counted[kind] += elements
    assert counted == found


@pytest.mark.parametrize(("variant", "depth"), [("original", 20), ("full-preact", 29)])
def test_training_counts_what_torch_counts(variant, depth):
    """torch leaves out one thing: the gradient of the images, which nobody asks for."""
    network = resvar.build_model(variant, depth)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 3, 32, 32)).sum().backward()
    stem = 2 * 3 * 3 * 3 * 16 * 32 * 32
    ours = flop(find_ordering(variant), plan(depth))
    assert counter.get_total_flops() == 2 * (ours - stem)


def test_bytes_and_seconds_by_hand():
    """ResNet-8 full-preact: three units of two convolutions at 16×32², 32×16² and 64×8²."""
    a, b, c = 16 * 32**2, 32 * 16**2, 64 * 8**2
    ordering, architecture = find_ordering("full-preact"), plan(8)
    assert list(memory_ops(ordering, architecture)) == [
        ("bn relu", a), ("bn relu", a), ("addition", a),
        ("bn relu", a), ("bn relu", b), ("addition", b),
        ("bn relu", b), ("bn relu", c), ("addition", c),
        ("bn relu", c),
    ]  # fmt: skip
    found = floor(ordering, architecture, batch_size=4, bytes_each=2)
    pairs, sums = 3 * a + 2 * b + 2 * c, a + b + c
    assert found.moved == {
        "plain": 8 * (13 * pairs + 6 * sums),
        "fused": 8 * (8 * pairs + 4 * sums),
        "least": 8 * (5 * pairs + 1 * sums),
    }
    assert found.seconds("plain", flops=1e9, copy=1e6) == pytest.approx(
        found.flop / 1e9 + found.moved["plain"] / 1e6
    )


def test_the_ways_are_in_order():
    for kind in ("bn", "relu", "bn relu", "addition"):
        plain, fused, least = (sum(PASSES[way][kind]) for way in ("plain", "fused", "least"))
        assert plain >= fused >= least
