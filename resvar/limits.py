"""The processors and the memory that this process may use.

Containers, Slurm jobs and services are limited by control groups (cgroups), which `os.cpu_count`
and the size of the memory do not show. Both versions of cgroups are read, at every level up to the
root; the tightest limit counts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def available_cores(root: Path = ROOT) -> int:
    """The number of processors that this process can use at once, at least one.

    The lower of its affinity (which a cgroup's cpuset narrows) and the quotas of its cgroups. A
    quota of 1.5 processors counts as two: two threads use all of it.

    Args:
        root: the folder that contains /proc and /sys.
    """
    return max(1, min([cores_by_affinity(), *(math.ceil(quota) for quota in _quotas(root))]))


def cores_by_affinity() -> int:
    """The number of processors on which the system may schedule this process."""
    affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1


def available_memory(root: Path = ROOT) -> int:
    """Bytes: the memory of this machine or the limit of this process's cgroups, whichever is less.

    A large number if the system does not report it.
    """
    total = 2**40
    with suppress(ValueError, OSError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_memory_limits(root)])


# --- cgroups --------------------------------------------------------------------------------------


def _quotas(root: Path) -> Iterator[float]:
    """The limits of processor time, in processors."""
    for folder in _cgroups(root, "cpu"):
        with suppress(ValueError):
            quota, period = _words(folder / "cpu.max")
            yield float(quota) / float(period)
        with suppress(ValueError):
            (quota,), (period,) = (
                _words(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
            )
            if float(quota) > 0:  # -1: no limit
                yield float(quota) / float(period)


def _memory_limits(root: Path) -> Iterator[int]:
    """The limits of memory, in bytes."""
    for folder in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            with suppress(ValueError):
                (limit,) = _words(folder / name)
                yield int(limit)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups for a controller, each with all its parents."""
    mounts = list(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        unified = hierarchy == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for kind, options, top, mounted in mounts:
            if kind == "cgroup2" if unified else kind == "cgroup" and controller in options:
                # A container sees its own cgroup as the root; the path may then lead elsewhere.
                own = PurePosixPath(path)
                inside = own.is_relative_to(top) and ".." not in own.parts
                below = own.relative_to(top) if inside else PurePosixPath()
                folder = root / mounted.lstrip("/")
                yield from (folder / level for level in (below, *below.parents))


def _mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """For each mount: type, options, the folder that it mounts, and the mount point."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        with suppress(ValueError):
            _, _, _, top, mounted, *_ = map(_unescape, before.split())
            kind, _, options = after.split()
            yield kind, options.split(","), top, mounted


def _unescape(text: str) -> str:
    """A path of mountinfo, in which a space is written as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    """The content of a system file; empty if it cannot be read."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return ""
