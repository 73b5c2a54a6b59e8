"""The machine that a run meets: device, precision, threads, versions."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import resvar
from resvar.config import Settings
from resvar.console import pluralize
from resvar.errors import UserError
from resvar.rundir import NOTE_FORMAT

Precision = Literal["fp32", "bf16"]


def choose_device(name: str) -> torch.device:
    """`auto` (the GPU where there is one), `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UserError(f"--device {name}: write auto, cpu, cuda or cuda:N.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            have = pluralize(count, "GPU") if count else "no GPU that torch can use"
            raise UserError(f"--device {name}: this machine has {have}; use --device cpu or auto.")
    return torch.device(name)


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """`auto` is bf16 autocast where the device computes bf16 in hardware, else fp32."""
    if wanted == "auto":
        return "bf16" if _native_bf16(device) else "fp32"
    return "bf16" if wanted == "bf16" else "fp32"


def memory_format(settings: Settings) -> torch.memory_format:
    """`auto` is channels_last where bf16 convolutions or the fused operators are at work."""
    if settings.memory_format != "auto":
        named = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
        return named[settings.memory_format]
    rows = settings.precision == "bf16" or settings.kernels == "fused"
    return torch.channels_last if rows else torch.contiguous_format


def prepare(settings: Settings, device: torch.device, keep_memory: bool = True) -> None:
    """Set torch's switches for a run: they belong to the process, and a process has one run.

    Args:
        keep_memory: on a processor, let the process keep the memory that a tensor leaves.
    """
    if device.type == "cpu" and keep_memory:
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not settings.deterministic
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Else each new tensor is filled with NaN; no unit here reads what nothing has written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Tell glibc to hand out again what was freed, and not to give it back to the system.

    An iteration frees and takes the same tensors as the one before. Given back, each of their pages
    is taken anew and cleared by the system, 60,000 of them in an iteration of ResNet-164. The
    process holds on to its peak, which it needs again at once. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""From malloc.h: give back no free memory at the heap's end; put no tensor beside the heap."""


def describe(device: torch.device) -> str:
    """The device in words, for records: the GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {pluralize(torch.get_num_threads(), 'thread')}"


def environment(device: torch.device, dataset_checksum: str) -> dict[str, Any]:
    """What `environment.json` holds about where a run was made."""
    commit, dirty = source_version()
    return {
        "format": NOTE_FORMAT,
        "resvar": resvar.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": describe(device),
        "device_type": device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dataset_checksum": dataset_checksum,
    }


def source_version() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this code runs from, and whether it had changes.

    (None, None) where it was installed from a package. Only tracked files count as changes.
    """
    folder = Path(__file__).parent.parent.parent
    if not (folder / ".git").exists():
        return None, None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True, text=True, check=True, timeout=10,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked=no"])
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(status)


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities:
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    flags = _cpuinfo("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """The first value of a field of Linux's /proc/cpuinfo, or nothing elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == field:
                return value.strip()
    except OSError:
        pass
    return ""
