"""The level of oneDNN, against what oneDNN itself reports; the variables that change bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from resvar.training.dispatch import KERNEL_VARIABLES, onednn_level, variables_set
from tests.support.commands import PATIENCE

REPORT = """
import torch
torch.nn.Conv2d(16, 16, 3)(torch.randn(16, 16, 8, 8))
from resvar.training.dispatch import onednn_level
print("level", onednn_level())
"""

DL_BOOST = "Intel AVX-512 with Intel DL Boost"

WORDS = {
    "SSE41": "Intel SSE4.1",
    "AVX": "Intel AVX",
    "AVX2": "Intel AVX2",
    "AVX2_VNNI": "Intel AVX2 with Intel DL Boost",
    "AVX512_CORE": "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    "AVX512_CORE_VNNI": DL_BOOST,
    "AVX512_CORE_BF16": f"{DL_BOOST} and bfloat16 support",
}
"""oneDNN's own words for its levels, from dnnl_cpu.cpp; those of newer processors are left out."""


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.process
@pytest.mark.parametrize(
    "limit", [{}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"DNNL_MAX_CPU_ISA": "avx512_core"}]
)
def test_the_level_is_the_one_that_onednn_reports(limit):
    done = subprocess.run(
        [sys.executable, "-c", REPORT], env={**os.environ, "ONEDNN_VERBOSE": "1", **limit},
        capture_output=True, encoding="utf-8", check=True, timeout=PATIENCE,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    found = [line.partition("isa:")[2] for line in lines if ",info,cpu,isa:" in line]
    level = lines[-1].removeprefix("level ")
    if not found or level not in WORDS:
        pytest.skip(f"not known here: {found}, {level}")
    assert found[0] == WORDS[level]


def test_a_limit_takes_the_best_level_that_it_includes(monkeypatch):
    features = {"sse4_1", "avx", "avx2", "avx512_bw", "avx512_vnni", "avx512_bf16"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True))
    for limit, level in {
        "": "AVX512_CORE_BF16", "ALL": "AVX512_CORE_BF16", "AVX512_CORE": "AVX512_CORE",
        "avx2": "AVX2", "AVX2_VNNI": "AVX2", "AVX512_CORE_AMX": "AVX512_CORE_BF16",
        "SSE41": "SSE41",
    }.items():  # fmt: skip
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert onednn_level() == level, limit


def test_variables_are_named_with_their_values(monkeypatch):
    assert variables_set() == "none"
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert variables_set() == "ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE"
