"""The Triton kernels, compiled for an H100 on any machine: registers, spills and vector loads.

What they compute is tested by test_ghost_bn.py; how fast they are, only a GPU can show.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from resvar.kernels import ghost_bn
from resvar.kernels.ghost_bn import ghost_batch_norm

triton = pytest.importorskip("triton", minversion="3.6")  # which undoes its interpreter's changes
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


class Launch(NamedTuple):
    """What a kernel is compiled for."""

    kernel: triton.JITFunction
    types: tuple[tuple[str, str], ...]  # of each argument
    constants: tuple[tuple[str, object], ...]


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """The distinct launches of the operator, forward and backward, recorded instead of run."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    recorded: list[Launch] = []

    def record(kernel, _, *args, **constants):
        values = dict(zip(kernel.arg_names, args, strict=False)) | constants
        types = {name: type_of(values[name]) for name in kernel.arg_names}
        fixed = [(name, values[name]) for name in types if types[name] == "constexpr"]
        recorded.append(Launch(kernel, tuple(types.items()), tuple(fixed)))

    monkeypatch.setattr(ghost_bn, "_launch", record)

    def of(channels, height, images=128, group=64, variants=VARIANTS):
        recorded.clear()
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
        return list(dict.fromkeys(recorded))

    return of


def type_of(value):
    """Triton's name of a type; None is a constant."""
    if isinstance(value, torch.Tensor):
        return {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[value.dtype]
    return "fp32" if isinstance(value, float) else "constexpr"


class Machine(NamedTuple):
    """A kernel as machine code."""

    registers: int
    spilled: int  # bytes
    instructions: list[str]


def compiled(launch, folder):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, names = dict(launch.types), launch.kernel.arg_names
    aligned = [at for at, name in enumerate(names) if types[name].startswith("*")]
    source = ASTSource(
        fn=launch.kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in launch.constants},
        attrs={(at,): [["tt.divisibility", 16]] for at in aligned},
    )
    options = {"num_warps": ghost_bn.WARPS}
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    usage = read(folder, "cuobjdump", "-res-usage")
    return Machine(
        int(re.search(r"REG:(\d+)", usage)[1]),
        int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1]),
        re.findall(
            r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", read(folder, "nvdisasm", "-c")
        ),
    )


def read(folder, tool, option):
    """What one of Triton's tools says about kernel.cubin."""
    command = [Path(triton.__file__).parent / "backends/nvidia/bin" / tool, option, "kernel.cubin"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def check(launches, folder):
    for launch in launches:
        machine = compiled(launch, folder)
        what = (launch.kernel.__name__, launch.constants, machine[:2])
        print(*what, len(machine.instructions))  # -s shows them
        assert machine.spilled == 0, what
        assert machine.registers <= REGISTERS, what
        rows_are_loaded = sum(code.startswith("LDG.E.128") for code in machine.instructions)
        assert rows_are_loaded >= 2, what


def test_a_stage_of_resnet_110(launches, tmp_path):
    found = launches(32, 16, variants=VARIANTS[:1])
    assert [launch.kernel.__name__ for launch in found] == ["moments", "apply", "sums", "through"]
    check(found, tmp_path)


def test_a_network_needs_few_variants(launches):
    """Per shape: 1 of moments, 5 of apply, 3 of sums and 3 of through."""
    assert len(launches(16, 32)) == 12


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "height"), SHAPES)
def test_every_shape_and_variant(launches, tmp_path, channels, height):
    check(launches(channels, height), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "group"), [(128, 128), (100, 50)])
def test_other_groups(launches, tmp_path, images, group):
    check(launches(16, 32, images, group), tmp_path)
