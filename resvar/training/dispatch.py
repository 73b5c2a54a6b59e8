"""What selects the instructions of torch's libraries besides the processor; it changes bits."""

from __future__ import annotations

import os

import torch

KERNEL_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_MKLDNN_MATMUL_MIN_DIM",
)  # fmt: skip
"""Environment variables by which oneDNN, MKL, cuBLAS and torch choose their kernels."""

_ONEDNN_LEVELS = {
    "AVX512_CORE_AMX_FP16": (0x1FEF, "amx_fp16"),
    "AVX512_CORE_AMX": (0xFEF, "amx_bf16"),
    "AVX512_CORE_FP16": (0x1EF, "avx512_fp16"),
    "AVX512_CORE_BF16": (0xE7, "avx512_bf16"),
    "AVX512_CORE_VNNI": (0x67, "avx512_vnni"),
    "AVX512_CORE": (0x27, "avx512_bw"),
    "AVX2_VNNI_2": (0x1F, "avx_ne_convert"),
    "AVX2_VNNI": (0xF, "avx_vnni"),
    "AVX2": (0x7, "avx2"),
    "AVX": (0x3, "avx"),
    "SSE41": (0x1, "sse4_1"),
}
"""oneDNN's levels, the best first: the bits of those below that each includes, as in its source,
and the feature of the processor that it needs."""


def variables_set() -> str:
    """The `KERNEL_VARIABLES` that are set, as `NAME=value NAME=value`; `none` without one."""
    return " ".join(f"{n}={os.environ[n]}" for n in KERNEL_VARIABLES if os.environ.get(n)) or "none"


def onednn_level() -> str | None:
    """The instruction set that oneDNN uses on this processor; None if unknown."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    named = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    most, _ = _ONEDNN_LEVELS.get(named.upper(), (-1, ""))
    return next(
        (
            name
            for name, (bits, feature) in _ONEDNN_LEVELS.items()
            if features.get(feature) and bits & most == bits
        ),
        None,
    )
