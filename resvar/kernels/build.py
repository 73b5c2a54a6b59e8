"""Build `fused.cpp` and its headers at first use, cache the library, load it into torch.

The library's name in the user's cache depends on everything that determines its content: the
source, torch's version, the compiler, its flags and the processor. So a stale library is never
loaded, and no cleanup is needed. It uses torch's threads (`at::parallel_for`): it is compiled with
OpenMP but not linked to it, and finds the runtime that torch has loaded. A second runtime would
keep its own threads.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from resvar.kernels.cache import Say, building, digest_in, find_library, keep, private_folder

SOURCE = Path(__file__).parent / "fused.cpp"

FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-fopenmp", "-Wno-psabi")

COMPILER_SECONDS = 600
"""Time limit of the compiler in seconds; it needs about twenty."""

TRIAL = """
import sys, torch
try:
    torch.ops.load_library(sys.argv[1])
    x = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    torch.ops.resvar.bn(x, torch.ones(16), torch.zeros(16), None, None, 0.1, 1e-5, True, False)
except Exception as error:
    sys.exit(f"error: {error.__cause__ or error}")
"""
"""Uses a library in a separate process, which a broken one may crash."""


class BuildError(Exception):
    """The operators cannot be built or loaded here; the text is a clause with the reason."""


def load_operators(say: Say | None = None) -> None:
    """Make `torch.ops.resvar` available; does nothing if it already is.

    Processes that start together wait for the one that builds.

    Args:
        say: called with a sentence before a long step, and if the cache cannot be used.

    Raises:
        BuildError: there is no compiler, it fails, or the library cannot be kept or loaded.
    """
    if hasattr(torch.ops.resvar, "bn"):
        return
    try:
        _load_or_build(say or (lambda _: None))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        raise BuildError(f"they cannot be built or loaded here ({_why(error)})") from error


def loaded_operators() -> str | None:
    """The digest of the library that this process has loaded; None without one.

    Equal digests compute equal bits, and the same compiler always builds the same library.
    """
    names = (Path(path).name for path in torch.ops.loaded_libraries)
    return next((digest_in(name) for name in names if name.startswith("fused-")), None)


def find_compiler() -> list[str] | None:
    """The compiler command for the operators; None if there is none or the system is not Linux."""
    return (compiler_command() or None) if platform.system() == "Linux" else None


def compiler_command() -> list[str]:
    """The command of the C++ compiler, `$CXX` or the system's; empty if there is none.

    `$CXX` may be a name, a path or a command with arguments, such as `ccache g++`.
    """
    systems = {"Darwin": "clang++", "Windows": "cl"}
    named = os.environ.get("CXX", "").strip() or systems.get(platform.system(), "g++")
    if (whole := shutil.which(named)) is not None:  # a path may contain spaces
        return [whole]
    try:
        program, *arguments = shlex.split(named)
    except ValueError:  # a quote is not closed
        return []
    found = shutil.which(program)
    return [] if found is None else [found, *arguments]


def compiler_version(compiler: Sequence[str]) -> str:
    """The output of `--version`.

    Raises:
        BuildError: there is no compiler, or it does not run.
    """
    if not compiler:
        named = os.environ.get("CXX", "").strip()
        remedy = f"$CXX is {named!r}" if named else "install g++, or name one in $CXX"
        raise BuildError(f"no C++ compiler is found ({remedy})")
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the C++ compiler does not run ({_why(error)})") from error
    return done.stdout.decode(errors="replace")


def _load_or_build(say: Say) -> None:
    """Load the library into this process; build it first if it is missing or does not load."""
    compiler = find_compiler() or []
    key, folder = _key(compiler), private_folder(say)
    library = find_library(folder, key)
    unfit = None
    if library is not None:
        unfit = library.stat().st_mtime_ns
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            return
        except (OSError, RuntimeError) as error:
            say(f"Rebuilding the fused operators, since they do not load: {_why(error)}.")
    with building(folder, say) as work:
        library = find_library(folder, key, say)
        if library is None or library.stat().st_mtime_ns == unfit:
            say("Building the fused operators, once for this machine: about 20 s …")
            library = keep(_build(compiler, work), folder, key)
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]


def _key(compiler: Sequence[str]) -> str:
    """16 hexadecimal digits that change with everything that changes the library."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    cpu = cpuinfo.split("\n\n")[0].splitlines()
    cpu = [line for line in cpu if line.startswith(("model", "flags", "Features", "CPU part"))]
    sources = [file.read_text(encoding="utf-8") for file in sorted(SOURCE.parent.glob("*.[ch]*"))]
    command, version = shlex.join(compiler), compiler_version(compiler)
    parts = (*sources, torch.__version__, command, version, *FLAGS, *cpu)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def _build(compiler: Sequence[str], work: Path) -> Path:
    """Compile, link and try the library; returns its path in the folder `work`."""
    root = Path(torch.__file__).parent
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    # Messages name the source; without its folder the library is the same everywhere.
    places = [f"-ffile-prefix-map={SOURCE.parent}=resvar", f"-ffile-prefix-map={root}=torch"]
    torch_libraries = [f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    compiled, linked = f"{work}/fused.o", f"{work}/fused.so"
    compile_only = ["-c", str(SOURCE), "-o", compiled]
    _call("the compiler", [*compiler, *FLAGS, abi, *places, *includes, *compile_only], work)
    _call("the linker", [*compiler, "-shared", compiled, "-o", linked, *torch_libraries], work)
    _call("a trial of the new library", [sys.executable, "-P", "-c", TRIAL, linked], work)
    return Path(linked)


def _call(name: str, command: Sequence[str], work: Path) -> None:
    """Run a command that ends with this process, or with an exception in it.

    Raises:
        RuntimeError: the command fails; the text is the first error that it reports.
    """
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(work)}
    supervisor = [sys.executable, "-I", "-S", str(SOURCE.with_name("supervise.py"))]
    watched, alive = os.pipe()
    with os.fdopen(os.memfd_create("messages"), "rb") as messages:  # the disk may be full
        try:
            process = subprocess.Popen(
                [*supervisor, *command], env=environment, start_new_session=True,
                stdin=watched, stdout=subprocess.DEVNULL, stderr=messages,
            )  # fmt: skip
        except BaseException:
            os.close(alive)
            raise
        finally:
            os.close(watched)
        try:
            code = process.wait(COMPILER_SECONDS)
        finally:
            os.close(alive)
            process.wait()
        messages.seek(0)
        lines = messages.read(1_000_000).decode(errors="replace").splitlines()
    if code:
        signals = {128 + number: number.name for number in signal.Signals}
        ended = signals.get(code, f"exit code {code}")
        errors = [line.removeprefix("error: ") for line in lines if "error" in line]
        raise RuntimeError((errors or lines or [f"{name} ended with {ended}"])[0])


def _why(error: Exception) -> str:
    """The first line of an error's text, or of its cause's, since torch hides dlopen's message."""
    text = str(error.__cause__ or error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
