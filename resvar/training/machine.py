"""The machine that a run uses: its device, its processor, its software versions."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

from resvar.console import pluralize
from resvar.errors import UserError, shortened
from resvar.strict_yaml import whole_number


def choose_device(name: str) -> torch.device:
    """`auto` (the GPU where there is one), `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and whole_number(number) is None):
        raise UserError(f"--device {shortened(name)}: choose from auto, cpu, cuda or cuda:N.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            have = pluralize(count, "GPU") if count else "no GPU that torch can use"
            raise UserError(f"--device {name}: this machine has {have}; use --device cpu or auto.")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor with its threads, for records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{processor}, {pluralize(torch.get_num_threads(), 'thread')}"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities:
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    flags = _cpuinfo("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory instead of returning it to the system.

    Each iteration frees and allocates the same tensors as the one before. If glibc returns them,
    the system clears each page again: 60,000 pages an iteration of ResNet-164. The process then
    keeps its peak, which the next iteration needs anyway. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""From malloc.h: return no free memory at the heap's end; map no tensor outside the heap."""


def _cpuinfo(field: str) -> str:
    """The first value of a field of Linux's /proc/cpuinfo; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == field:
                return value.strip()
    except OSError:
        pass
    return ""
