"""Equations 1 to 8 of arXiv:1603.05027, on a chain without `resvar` and on our networks.

The chain is that of examples/equations.py; here its Jacobians are written down by hand. Equations 4
and 5 on our networks, and orderings that break them, are in tests/probes/test_identity.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from examples.equations import (
    UNITS,
    backward_sides,
    difference,
    forward_sides,
    identity,
    main,
    make_chain,
    run_chain,
)
from resvar.models.network import build_model
from resvar.models.ordering import PAPER_ORDER
from tests.probes.networks import Scaled

EXACT = 1e-11
SCALES = [0.5, 0.9, 1.0, 1.1]


@pytest.fixture
def chain_of():
    """A function of λ and f: the first signal, the weights, and the chain that they make."""
    torch.manual_seed(2)
    x, weights = make_chain()
    return lambda scale=1.0, f=identity: (x, weights, run_chain(x, weights, scale, f))


def jacobians(chain, weights, scale):
    """dx_{l+1} / dx_l = λ + B diag(1 - tanh²(A x_l)) A, unit by unit, without autograd."""
    for signal, (a, b) in zip(chain.signals, weights, strict=False):
        slope = 1 - torch.tanh(a @ signal.detach()) ** 2
        yield scale * torch.eye(len(signal), dtype=signal.dtype) + b @ (slope[:, None] * a)


# --- the chain ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_a_signal_is_the_scaled_first_one_plus_the_scaled_branches(scale, chain_of):
    """Equations 3 and 6 for each unit, 4 and 7 for the chain."""
    _, _, chain = chain_of(scale)
    for before, branch, after in zip(
        chain.signals, chain.branches, chain.signals[1:], strict=False
    ):
        torch.testing.assert_close(after, scale * before + branch)
    assert difference(forward_sides(chain, scale)) < EXACT


@pytest.mark.parametrize("scale", SCALES)
def test_the_gradient_is_the_direct_term_plus_that_of_the_branches(scale, chain_of):
    """Equations 5 and 8: autograd, the two terms, and a product of Jacobians agree."""
    _, weights, chain = chain_of(scale)
    left, right = backward_sides(chain, scale)
    by_hand = chain.signals[-1].detach()  # dE/dx_L of a sum of squares, halved
    for jacobian in reversed(list(jacobians(chain, weights, scale))):
        by_hand = by_hand @ jacobian
    for side in left, right:
        assert float((side - by_hand).norm() / by_hand.norm()) < EXACT


@pytest.mark.parametrize("scale", SCALES)
def test_with_silent_branches_only_the_product_of_the_scales_is_left(scale, chain_of):
    """The direct term alone: what 54 units leave of a gradient."""
    x, weights, _ = chain_of()
    silent = [(a, torch.zeros_like(b)) for a, b in weights]
    chain = run_chain(x, silent, scale)
    (gradient,) = torch.autograd.grad(chain.signals[-1].sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(gradient, scale**UNITS))


def test_relu_after_the_addition_breaks_equations_4_and_5(chain_of):
    _, _, chain = chain_of(f=torch.relu)
    assert difference(forward_sides(chain, 1.0)) > 0.1
    assert difference(backward_sides(chain, 1.0)) > 0.1


def test_another_scale_in_one_unit_is_noticed(chain_of):
    _, _, chain = chain_of(0.9)
    assert difference(forward_sides(chain, 0.91)) > 1e-3
    assert difference(backward_sides(chain, 0.91)) > 1e-3


def test_the_example_prints_which_equations_hold(capsys):
    main()
    _, preactivation, original, smaller, larger = capsys.readouterr().out.splitlines()
    for line in preactivation, smaller, larger:
        assert all(float(line.split(name)[1].split()[0]) < EXACT for name in names_of(line))
    assert all(float(original.split(name)[1].split()[0]) > 0.1 for name in names_of(original))
    assert f"{0.9**54:.3g}" in smaller


def names_of(line):
    return [name for name in ("(4)", "(5)", "(7)", "(8)") if name in line]


# --- our networks ---------------------------------------------------------------------------------


def batch_normed(x):
    return F.batch_norm(x, None, None, training=True)


AFTER_ADDITION = {
    "original": F.relu,
    "bn-after-add": lambda y: F.relu(batch_normed(y)),
    "relu-before-add": identity,
    "relu-only-preact": identity,
    "full-preact": identity,
}
"""f of equation 2, read from figure 4."""


def signals_of(network, images):
    """Input, branch output and output of each unit with an identity shortcut."""
    found = []

    def keep(unit, inputs, output):
        found.append([inputs[0], branches[unit.branch], output])

    branches = {}
    units = [unit for stage in network.stages for unit in stage]
    for unit in units:
        unit.branch.register_forward_hook(lambda part, _, output: branches.update({part: output}))
        if isinstance(unit.shortcut, nn.Identity):
            unit.register_forward_hook(keep)
    network(images)
    return found


@pytest.mark.parametrize("depth", [20, 29])
@pytest.mark.parametrize("variant", PAPER_ORDER)
def test_a_unit_is_equations_1_and_2_with_the_f_of_figure_4(variant, depth):
    assert set(AFTER_ADDITION) == set(PAPER_ORDER)
    network = build_model(variant, depth, seed=0).double().train()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    found = signals_of(network, images)
    assert len(found) == {20: 7, 29: 6}[depth]
    for x, branch, output in found:
        y = x + branch  # equation 1 with h(x) = x
        torch.testing.assert_close(output, AFTER_ADDITION[variant](y))  # equation 2


@pytest.mark.parametrize("scale", [0.5, 1.1])
@pytest.mark.parametrize("variant", ["relu-before-add", "relu-only-preact", "full-preact"])
def test_a_scaled_shortcut_of_our_units_gives_equations_7_and_8(variant, scale):
    network = build_model(variant, depth=32, seed=0).double().train()
    first_stage = network.stages[0]
    for unit in first_stage:
        unit.shortcut = Scaled(scale)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    found = signals_of(network, images)[: len(first_stage)]
    assert len(found) == 5
    start, end = found[0][0], found[-1][2]
    branches = sum(scale ** (4 - at) * branch for at, (_, branch, _) in enumerate(found))
    torch.testing.assert_close(end, scale**5 * start + branches)

    loss = F.cross_entropy(network.forward_head(network.stages[1:](end)), torch.arange(4))
    at_start, at_end = torch.autograd.grad(loss, [start, end], retain_graph=True)
    (through,) = torch.autograd.grad(branches, start, grad_outputs=at_end)
    torch.testing.assert_close(at_start, scale**5 * at_end + through)
