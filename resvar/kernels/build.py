"""Build `fused.cpp` and its headers at their first use here, keep the library, load it into torch.

The library lies in the user's cache under a name made of everything that decides what is in it: the
source, torch's version, the compiler, its flags and the processor. So nothing stale is ever loaded,
and nobody has to clean up. It uses torch's own threads (`at::parallel_for`): it is compiled with
OpenMP but not linked to it, and finds the runtime that torch has loaded. A second one would keep
threads of its own.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "fused.cpp"

FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-fopenmp", "-Wno-psabi")

LONGEST = 600
"""Seconds that the compiler may take; it needs about twenty."""


class BuildError(Exception):
    """The operators cannot be built or loaded here; one clause that says why."""


def load_operators(say: Callable[[str], None] | None = None) -> None:
    """Make `torch.ops.resvar` available; does nothing where it is already.

    Processes that come at once wait for the one that builds.

    Args:
        say: told before something is built, since that takes a while.

    Raises:
        BuildError: there is no compiler, it fails, or the library cannot be kept or loaded.
    """
    if hasattr(torch.ops.resvar, "bn"):
        return
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler is found (install g++, or name one in $CXX)")
    try:
        library = cache() / f"fused-{_key(compiler)}.so"
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            with _alone(library.with_suffix(".lock")):
                if not library.exists():
                    if say is not None:
                        say("Building the fused operators, once for this machine: about 20 s …")
                    _build(compiler, library)
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BuildError(f"they cannot be built or loaded here ({reason:.300})") from error


def cache() -> Path:
    """The folder of built libraries: `$XDG_CACHE_HOME/resvar`, else `~/.cache/resvar`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resvar"


def find_compiler() -> str | None:
    """The path of `$CXX` where that is set, else of g++. None on systems other than Linux."""
    if platform.system() != "Linux":
        return None
    return shutil.which(os.environ.get("CXX") or "g++")


def _key(compiler: str) -> str:
    """16 hexadecimal digits that change with whatever makes another library."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    cpu = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    cpu = [line for line in cpu if line.startswith(("model", "flags", "Features", "CPU part"))]
    sources = [file.read_text() for file in sorted(SOURCE.parent.glob("*.[ch]*"))]
    parts = (*sources, torch.__version__, compiler, version, *FLAGS, *cpu)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(compiler: str, library: Path) -> None:
    """Compile and link; the library appears whole or not at all."""
    root = Path(torch.__file__).parent
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    torch_libraries = [f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compiled, linked = f"{folder}/fused.o", f"{folder}/fused.so"
        for command in (
            [compiler, *FLAGS, abi, *includes, "-c", str(SOURCE), "-o", compiled],
            [compiler, "-shared", compiled, "-o", linked, *torch_libraries],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                raise RuntimeError((errors or done.stderr.splitlines() or ["no message"])[0])
        Path(linked).replace(library)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time inside; the lock dies with its process."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
