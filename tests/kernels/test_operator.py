"""The fused BN and ReLU against torch's modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from resvar.kernels.fuse import fuse
from tests.kernels.rows import (
    MARKS,
    assert_close,
    both,
    chain,
    forked,
    signal,
)

pytestmark = MARKS


SHAPES = [
    (4, 16, 8, 8), (2, 64, 5, 7), (3, 1, 4, 4), (2, 17, 3, 3), (1, 37, 2, 1), (2, 3, 1, 1),
    (1, 130, 9, 9), (5, 256, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [True, False])
def test_in_double_it_is_bn_and_relu(shape, relu):
    torch.manual_seed(1)
    x = signal(*shape, dtype=torch.float64)
    found = both(chain(shape[1], relu, torch.float64), x, lambda c, x: c(x))
    assert_close(found, 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [True, False])
def test_a_fork_adds_the_gradient_of_the_second_path(shape, relu):
    torch.manual_seed(2)

    def unit(one, x):
        return forked(one, nn.Sequential(), x, lambda raw: 2 * raw)

    x = signal(*shape, dtype=torch.float64)
    assert_close(both(chain(shape[1], relu, torch.float64), x, unit), 1e-12)


def test_paths_that_nothing_comes_back_from():
    x = signal(2, 16, 4, 4, dtype=torch.float64)
    one = chain(16, dtype=torch.float64)
    plain, fused = both(one, x, lambda c, x: forked(c, nn.Sequential(), x, torch.zeros_like))
    assert torch.allclose(plain["x"], fused["x"], rtol=1e-12, atol=1e-12)
    out, raw = torch.ops.resvar.bn(  # nothing comes back from BN itself
        x.requires_grad_(), one[0].weight, one[0].bias, None, None, 0.1, 1e-5, True, True
    )
    assert torch.equal(raw, x)
    (gradient,) = torch.autograd.grad(raw.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
    del out


@pytest.mark.parametrize("forks", [True, False])
def test_gradients_are_those_of_small_differences(forks):
    torch.manual_seed(3)
    x = signal(2, 3, 2, 3, dtype=torch.float64).requires_grad_()
    weight = torch.rand(3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def operator(x, weight, bias):
        return tuple(torch.ops.resvar.bn(x, weight, bias, None, None, 0.1, 1e-5, True, forks))

    assert torch.autograd.gradcheck(operator, (x, weight, bias))


def test_a_mean_far_from_zero_does_not_drown_the_variance():
    torch.manual_seed(4)
    x = signal(8, 16, 8, 8) + 1000
    truth = chain(16).double()
    out = copy.deepcopy(truth).float()
    fuse(out)
    assert torch.allclose(out(x).double(), truth(x.double()), atol=1e-3)


def test_what_is_not_finite_shows():
    one = chain(16)
    fuse(one)
    x = signal(2, 16, 4, 4)
    x[0, 3, 0, 0] = float("nan")
    out = one(x)
    assert out[:, 3].isnan().all()
    assert out[:, :3].isfinite().all()


def test_the_same_bits_twice_and_with_other_threads():
    torch.manual_seed(5)
    x, one = signal(16, 48, 16, 16, dtype=torch.bfloat16), chain(48)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            runs.append(both(one, x, lambda c, x: forked(c, nn.Sequential(), x))[1])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(other[name], value) for name, value in runs[0].items())


def test_a_second_derivative_is_refused():
    one = chain(16)
    fuse(one)
    x = signal(2, 16, 4, 4).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(one(x).sum(), x, create_graph=True)
