"""`compile: unit` on the processor."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
import torch

from resvar.config import resolve
from resvar.errors import UserError
from resvar.kernels import build
from resvar.training.execution import Execution
from resvar.training.passes import INDUCTOR_CACHE, compile_units
from resvar.training.step import Updater
from tests.training.stepping import start

CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")


def make(*overrides):
    return resolve(
        options={"variant": "full-preact", "depth": 8},
        overrides=[
            "precision=fp32",
            "kernels=plain",
            "batch_size=4",
            "bn_batch_size=2",
            "lr=0.05",
            *overrides,
        ],
    )


def trained(settings, updates=3):
    trainer = start(settings, images=12)
    for _ in range(updates):
        trainer.step()
    return trainer.network, trainer.updater.meters


def test_a_run_that_does_not_compile_keeps_its_hash():
    plain = make()
    assert make("compile=none", "memory_format=auto").hash == plain.hash
    assert make("compile=unit").hash != plain.hash
    assert make("memory_format=channels_last").hash != plain.hash


def test_without_it_nothing_is_compiled():
    network = Updater(Execution.resolve(make(), CPU)).network
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


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        Execution.resolve(make("compile=unit"), CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch keeps its own folder")
def test_compiled_units_are_kept_where_nobody_else_can_write(monkeypatch, tmp_path):
    monkeypatch.setenv(INDUCTOR_CACHE, "before")  # so that it is restored
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_units(torch.nn.Sequential())
    assert os.environ[INDUCTOR_CACHE] == "before"
    monkeypatch.delenv(INDUCTOR_CACHE)
    compile_units(torch.nn.Sequential())
    assert os.environ[INDUCTOR_CACHE] == str(tmp_path / "resvar" / "torchinductor")


def test_torch_compiles_with_the_compiler_that_cxx_names(monkeypatch, tmp_path):
    from torch._inductor.config import cpp

    program = tmp_path / "my tools" / "c++"
    program.parent.mkdir()
    program.symlink_to(shutil.which("true"))
    monkeypatch.setattr(cpp, "cxx", cpp.cxx)
    monkeypatch.setenv(INDUCTOR_CACHE, "before")
    monkeypatch.setenv("CXX", str(program))
    compile_units(torch.nn.Sequential())
    assert cpp.cxx == (None, f"'{program}'")
