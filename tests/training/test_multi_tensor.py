"""One operation for all weights and all BNs: the same bits as module by module."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resvar.config import resolve
from resvar.kernels import build
from resvar.training.checkpoint import digest
from resvar.training.execution import Execution
from resvar.training.multi_tensor import CastWeights, batch_counters
from resvar.training.step import Updater

CPU = torch.device("cpu")


def make(*overrides):
    return resolve(
        options={"variant": "full-preact", "depth": 8},
        overrides=[
            "precision=bf16",
            "batch_size=6",
            "bn_batch_size=2",
            "kernels=plain",
            *overrides,
        ],
    )


def updater_of(settings, multi_tensor, casts=False):
    plan = replace(Execution.resolve(settings, CPU), multi_tensor=multi_tensor)
    updater = Updater(plan)
    if casts:
        updater.cast_weights = CastWeights(updater.network, torch.bfloat16)
    return updater


def state_after(updater, updates=3):
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        images = torch.randn(6, 3, 8, 8, generator=generator)
        updater(images, torch.randint(0, 10, (6,), generator=generator))
    return digest([updater.network.state_dict(), updater.optimizer.state_dict()])


@pytest.mark.parametrize("recompute", ["none", "unit"])
@pytest.mark.parametrize("casts", [False, True])
def test_the_bits_are_those_of_an_update_module_by_module(casts, recompute):
    settings = make(f"recompute={recompute}")
    expected = state_after(updater_of(settings, multi_tensor=False))
    assert state_after(updater_of(settings, multi_tensor=True, casts=casts)) == expected


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")
def test_also_with_compiled_units():
    torch._dynamo.reset()
    settings = make("compile=unit", "precision=fp32")
    counted = updater_of(settings, multi_tensor=True)
    assert state_after(counted) == state_after(updater_of(settings, multi_tensor=False))
    assert {int(counter) for counter in batch_counters(counted.network)} == {9}


def test_every_bn_counts_its_micro_batches_and_also_a_restored_one():
    updater = updater_of(make(), multi_tensor=True)
    state_after(updater, updates=2)
    counters = batch_counters(updater.network)
    assert {int(counter) for counter in counters} == {6}
    other = updater_of(make(), multi_tensor=True)
    other.network.load_state_dict(updater.network.state_dict())
    state_after(other, updates=1)
    assert {int(counter) for counter in batch_counters(other.network)} == {9}


def test_a_bn_that_counts_by_itself_or_not_at_all_is_left_alone():
    updaters = [updater_of(make(), multi_tensor) for multi_tensor in (False, True)]
    for updater in updaters:
        updater.network.stages[0][0].branch[1].momentum = None
        updater.network.stages[1][0].branch[1].track_running_stats = False
        updater.counters = updater.counters and batch_counters(updater.network)
    expected, found = map(state_after, updaters)
    assert found == expected


class Operations(TorchDispatchMode):
    """Counts the operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        name = str(func.overloadpacket).removeprefix("aten.")
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def operations(updater):
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6)
    state_after(updater, updates=1)
    with Operations() as found:
        updater(images, labels)
    return found.count


def test_no_operation_is_left_for_each_weight_or_each_bn():
    before = operations(updater_of(make(), multi_tensor=False))
    after = operations(updater_of(make(), multi_tensor=True, casts=True))
    weights, norms, micro_batches = 9, 7, 3
    assert before["_to_copy"] - after.get("_to_copy", 0) >= 2 * micro_batches * weights
    assert after["_foreach_copy_"] == 1 + micro_batches
    assert before["add_"] - after["add_"] == micro_batches * norms
    assert after["_foreach_add_"] == 1
    assert after.get("clone", 0) <= before.get("clone", 0)
