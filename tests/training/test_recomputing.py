"""`recompute: unit`: less is kept for the backward pass, and every bit stays the same."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from resvar.config import resolve
from resvar.errors import UserError
from resvar.kernels import build
from resvar.training.execution import Execution
from resvar.training.passes import prepare_network
from resvar.training.step import build_network

CPU = torch.device("cpu")


def make(*overrides, variant="full-preact", depth=14):
    return resolve(
        options={"variant": variant, "depth": depth, "unit": "basic"}, overrides=overrides
    )


def passed(settings):
    """Everything that two micro-batches leave, and the bytes kept for backward in the first."""
    torch.manual_seed(0)
    plan, kept = Execution.resolve(settings, CPU), {}
    network = prepare_network(build_network(settings), plan).train()

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    for number in range(2):
        images = torch.randn(4, 3, 16, 16)
        with saved_tensors_hooks(keep if number == 0 else (lambda t: t), lambda t: t):
            logits = plan.forward(network, images)
        logits.square().sum().backward()
    left = {name: p.grad for name, p in network.named_parameters()} | dict(network.named_buffers())
    return left, sum(kept.values())


@pytest.mark.parametrize("variant", ["full-preact", "original", "bn-after-add"])
@pytest.mark.parametrize(
    "how",
    [
        ("precision=fp32", "kernels=plain"),
        ("precision=bf16", "kernels=plain"),
        pytest.param(("precision=bf16", "kernels=fused"), marks=pytest.mark.build),
    ],
)
def test_gradients_and_running_statistics_are_the_same_bits(variant, how):
    if "kernels=fused" in how and build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    plain, _ = passed(make(*how, variant=variant))
    again, _ = passed(make(*how, "recompute=unit", variant=variant))
    assert list(plain) == list(again)
    assert all(torch.equal(again[name], value) for name, value in plain.items())
    assert plain["stages.0.0.branch.1.num_batches_tracked"] == 2


def test_less_is_kept():
    kept = [
        passed(make("precision=fp32", "kernels=plain", *more))[1]
        for more in ((), ("recompute=unit",))
    ]
    assert kept[1] < 0.3 * kept[0]


def test_it_does_not_count_in_the_hash():
    assert make("recompute=unit").hash == make().hash


def test_it_does_not_go_with_compile():
    with pytest.raises(UserError, match="'recompute' unit and 'compile' unit cannot be combined"):
        make("recompute=unit", "compile=unit")
