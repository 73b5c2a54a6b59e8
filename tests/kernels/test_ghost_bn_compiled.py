"""The Triton kernels, compiled for an H100 on any machine: registers, spills and vector loads.

What they compute is tested by test_ghost_bn.py; how fast they are, only a GPU can show.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from resvar.kernels.ghost_bn import ghost_batch_norm

triton = pytest.importorskip("triton", minversion="3.6")  # which undoes its interpreter's changes

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from resvar.kernels import ghost_bn_kernels  # noqa: E402

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ptxas is a Linux program"),
]

VARIANTS = [  # ReLU, whether something is added, whether the signal forks
    ("before", False, True), ("before", False, False), ("none", False, False),
    ("none", True, False), ("before", True, False), ("after", True, False),
]  # fmt: skip
SHAPES = [  # channels and height of the images; other stages differ in the channels alone
    (16, 32), (32, 16), (64, 8), (64, 32), (256, 8),  # ResNet-110 and 164
    (64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7),  # ResNet-50
]  # fmt: skip

REGISTERS = 128
"""Two programs of eight warps fit on one multiprocessor, so several runs can share the GPU."""


class Machine(NamedTuple):
    """A kernel as machine code."""

    name: str
    registers: int
    spilled: int  # bytes
    instructions: list[str]


class H100:
    """As much of a driver as Triton needs to compile."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return device

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compile_all(monkeypatch, tmp_path):
    """Run the operator on tensors without memory; each launch only compiles, as on an H100."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    found = {}

    def launch(kernel, grid):
        def compile_only(*args, **kwargs):
            machine = kernel.warmup(*args, grid=grid, **kwargs)
            found[machine.hash] = machine

        return compile_only

    def run(channels, height, images=128, group=64, variants=VARIANTS):
        size, values = (images, channels, height, height), torch.ones(channels)
        x = torch.empty(size, dtype=torch.bfloat16, device="meta")
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        weight, bias = values.clone().requires_grad_(), values.clone().requires_grad_()
        for relu, adds, fork in variants:
            y, raw = ghost_batch_norm(
                x, weight, bias, values, values, group=group, momentum=0.1, eps=1e-5,
                relu=relu, added=x.detach() if adds else None, fork=fork,
            )  # fmt: skip
            outputs = [y, raw] if fork else [y]
            torch.autograd.backward(outputs, [torch.empty_like(y) for y in outputs])
        return [disassembled(compiled, tmp_path) for compiled in found.values()]

    monkeypatch.setattr(driver, "_active", H100())
    monkeypatch.setattr(JITFunction, "__getitem__", launch)
    yield run
    for kernel in vars(ghost_bn_kernels).values():
        if isinstance(kernel, JITFunction):
            kernel.device_caches.clear()


def disassembled(compiled, folder):
    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    usage = dict(re.findall(r"(\w+):(\d+)", read(folder, "cuobjdump", "-res-usage")))
    code = re.findall(
        r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", read(folder, "nvdisasm", "-c")
    )
    return Machine(
        compiled.name, int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"]), code
    )


def read(folder, tool, option):
    """What one of Triton's tools says about kernel.cubin."""
    command = [Path(triton.__file__).parent / "backends/nvidia/bin" / tool, option, "kernel.cubin"]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, encoding="utf-8"
    ).stdout


def check(machines):
    for machine in machines:
        summary = (*machine[:3], len(machine.instructions))
        print(*summary)  # -s shows them
        assert machine.spilled == 0, summary
        assert machine.registers <= REGISTERS, summary
        assert machine.instructions.count("LDG.E.128") >= 2, summary


def test_a_stage_of_resnet_110(compile_all):
    machines = compile_all(32, 16, variants=VARIANTS[:1])
    assert [machine.name for machine in machines] == ["moments", "apply", "sums", "through"]
    check(machines)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "height"), SHAPES)
def test_every_shape_and_variant(compile_all, channels, height):
    machines = compile_all(channels, height)
    names = Counter(machine.name for machine in machines)
    assert names == {"moments": 1, "apply": 5, "sums": 3, "through": 3}
    check(machines)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "group"), [(128, 128), (100, 50)])
def test_other_groups(compile_all, images, group):
    check(compile_all(16, 32, images, group))
