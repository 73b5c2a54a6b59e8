"""`compile: unit` on the processor, where the same calls are made but no graph is captured."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from resvar.config import resolve
from resvar.data.memory import MemoryTrainLoader, Normalization
from resvar.errors import UserError
from resvar.training import compiling
from resvar.training.loop import Meters, build_network, build_optimizer, train_step, trainable

CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def make(*overrides):
    return resolve(
        options={"variant": "full-preact", "depth": 8},
        overrides=["precision=fp32", "batch_size=4", "bn_batch_size=2", "lr=0.05", *overrides],
    )


def trained(settings, updates=3):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    labels = random.integers(0, 10, 12)
    normalization = Normalization.measure(pixels, "pixel-mean")
    batches = MemoryTrainLoader(
        pixels, labels, normalization, settings.batch_size, seed=0, padding=1
    )
    network = trainable(settings, CPU)
    optimizer, sums = build_optimizer(network, settings), Meters.zero(CPU)
    for iteration in range(updates):
        train_step(network, optimizer, batches, iteration, settings, sums)
    return network, sums


def test_a_run_that_does_not_compile_keeps_its_hash():
    plain = make()
    assert make("compile=none", "memory_format=auto").hash == plain.hash
    assert make("compile=unit").hash != plain.hash
    assert make("memory_format=channels_last").hash != plain.hash


def test_without_it_nothing_changes():
    network = build_network(make())
    assert compiling.compile_units(network, make(), CPU) is network
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._compiled_call_impl for module in network.modules())


@pytest.mark.build
@needs_compiler
def test_compiled_units_train_as_plain_ones_do():
    torch._dynamo.reset()
    plain, loss = trained(make())
    compiled, other = trained(make("compile=unit"))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for name, value in compiled.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert float(other.loss) == pytest.approx(float(loss.loss), rel=1e-4)
    units = [m for m in compiled.modules() if type(m).__name__ == "ResidualUnit"]
    assert len(units) == 3
    assert all(unit._compiled_call_impl for unit in units)
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 3
    assert all(p.grad is not None and not p.grad.any() for p in compiled.parameters())


def test_the_mode_is_that_of_graphs_on_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, **how: asked.append(how))
    network = build_network(make())
    compiling.compile_units(network, make("compile=unit"), torch.device("cuda"))
    assert asked == [{"dynamic": False, "mode": "reduce-overhead"}] * 3
    asked.clear()
    compiling.compile_units(network, make("compile=unit"), CPU)
    assert asked == [{"dynamic": False, "mode": None}] * 3


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        compiling.compile_units(build_network(make()), make("compile=unit"), CPU)
