"""Building the operators: once, completely or not at all, with a reason if it fails.

The compiler here is a script that records its calls and copies the library that the real one has
built, which takes half a minute.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resvar.kernels import build
from tests.support.commands import PATIENCE, everyone, wait_for

LOAD = """
import sys
from resvar.kernels.build import BuildError, load_operators
try:
    load_operators(lambda text: print(text))
except BuildError as error:
    sys.exit(f"refused: {error}")
import torch
x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
y, = torch.ops.resvar.bn(x, torch.ones(3), torch.zeros(3), None, None, 0.1, 1e-5, True, False)
print("works", float(y.min()))
"""

pytestmark = [
    pytest.mark.build,
    pytest.mark.usefixtures("built"),
    pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def library():
    """The real library, built if this machine does not have it yet."""
    build.load_operators()
    return next(Path(p) for p in torch.ops.loaded_libraries if Path(p).name.startswith("fused-"))


@pytest.fixture
def compiler(library, tmp_path):
    """A script in place of g++; its calls are lines of `calls.txt`."""
    script = tmp_path / "compiler"
    script.write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/calls.txt
case "$1" in --version) echo "a compiler 1.0"; exit 0;; esac
sleep 1
while [ "$1" != "-o" ]; do shift; done
cp {library} "$2"
""",
        encoding="utf-8",
    )
    script.chmod(0o755)
    return script


def start(compiler, tmp_path, cache="cache", **more):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / cache), "CXX": str(compiler), **more}
    return subprocess.Popen(
        [sys.executable, "-c", LOAD], env=env, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_that_come_at_once_build_once_and_a_third_not_at_all(compiler, tmp_path):
    both = [start(compiler, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("works 0.0" in out for out, _ in said)
    assert sorted("Building" in out for out, _ in said) == [False, True]
    third = start(compiler, tmp_path)
    assert "Building" not in third.communicate(timeout=PATIENCE)[0]
    calls = (tmp_path / "calls.txt").read_text(encoding="utf-8").splitlines()
    built = [line for line in calls if line != "--version"]
    assert [(" -c " in line, "-shared" in line) for line in built] == [(True, False), (False, True)]
    kept = sorted(path.suffix for path in (tmp_path / "cache" / "resvar").iterdir())
    assert kept == [".lock", ".so"]  # nothing half done beside it


def test_a_compiler_that_fails_leaves_nothing_and_says_why(tmp_path):
    script = tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\n[ $1 = --version ] || { echo 'x.cpp:1: error: no way' >&2; exit 1; }\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    process = start(script, tmp_path)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert said.strip() == "refused: they cannot be built or loaded here (x.cpp:1: error: no way)"
    assert not list((tmp_path / "cache" / "resvar").glob("*.so"))


@pytest.mark.parametrize(
    ("made", "why"),
    [(": >", "too short"), ("head -c 300000 {library} >", "a trial of the new library ended with")],
)
def test_what_a_compiler_makes_is_tried_before_it_is_kept(library, tmp_path, made, why):
    """A library that is cut ends its process when it is loaded."""
    script = tmp_path / "compiler"
    script.write_text(
        '#!/bin/sh\n[ $1 = --version ] && exit\nwhile [ "$1" != "-o" ]; do shift; done\n'
        + made.format(library=library) + ' "$2"\n',
        encoding="utf-8",
    )  # fmt: skip
    script.chmod(0o755)
    process = start(script, tmp_path)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert why in said
    assert [path.name for path in (tmp_path / "cache" / "resvar").iterdir()] == ["build.lock"]


def test_a_library_that_does_not_load_is_built_again_once(compiler, tmp_path):
    assert start(compiler, tmp_path).wait(PATIENCE) == 0
    (kept,) = (tmp_path / "cache" / "resvar").glob("*.so")
    text = b"no library at all, but one with the right digest"
    digest = hashlib.sha256(text).hexdigest()[:16]
    kept.with_name(f"{kept.stem.rpartition('-')[0]}-{digest}.so").write_bytes(text)
    kept.unlink()
    said, _ = start(compiler, tmp_path).communicate(timeout=PATIENCE)
    assert "Rebuilding the fused operators, since they do not load: " in said
    assert "invalid ELF header" in said or "file too short" in said
    assert "works 0.0" in said
    assert "Building" not in start(compiler, tmp_path).communicate(timeout=PATIENCE)[0]
    assert list((tmp_path / "cache" / "resvar").glob("*.so")) == [kept]


def test_a_compiler_ends_with_the_process_that_started_it(tmp_path):
    """And what it has started itself: the real one is several processes."""
    script = tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit\n"
        f"sleep 600 & echo $! > {tmp_path}/child.new; mv {tmp_path}/child.new {tmp_path}/child\n"
        "wait\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    process = start(script, tmp_path, RESVAR_TEST_MARK=str(tmp_path))
    assert wait_for((tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text(encoding="utf-8"))
    assert child in everyone(str(tmp_path))
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert wait_for(lambda: not everyone(str(tmp_path)))


def test_it_needs_no_locale_and_no_ascii(compiler, tmp_path):
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = start(compiler, tmp_path, "Käse", PYTHONIOENCODING="utf-8", **bare)
    said, problem = done.communicate(timeout=PATIENCE)
    assert "works 0.0" in said, problem
    assert list((tmp_path / "Käse" / "resvar").glob("*.so"))


def test_a_message_in_another_encoding_is_a_reason_too(tmp_path):
    script = tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\n[ $1 = --version ] || { printf 'error: caf\\351\\n' >&2; exit 1; }\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    _, said = start(script, tmp_path, PYTHONIOENCODING="utf-8").communicate(timeout=PATIENCE)
    assert "(caf\N{REPLACEMENT CHARACTER})" in said


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("{}", []),
        ("{} -O1 '-DTEXT=a b'", ["-O1", "-DTEXT=a b"]),
        ("'{}' -g", ["-g"]),
        ("{} 'open", None),
        ("{}/none -g", None),
    ],
)
def test_cxx_is_a_program_or_a_command(monkeypatch, tmp_path, named, arguments):
    program = tmp_path / "my" / "c++"
    program.parent.mkdir()
    program.symlink_to(shutil.which("true"))
    monkeypatch.setenv("CXX", named.format(program))
    wanted = [] if arguments is None else [str(program), *arguments]
    assert build.compiler_command() == wanted


def test_cxx_may_contain_spaces_or_be_empty(monkeypatch, tmp_path):
    program = tmp_path / "my tools" / "c++"
    program.parent.mkdir()
    program.symlink_to(shutil.which("true"))
    monkeypatch.setenv("CXX", str(program))
    assert build.compiler_command() == [str(program)]
    monkeypatch.setenv("CXX", " ")
    assert build.compiler_command() == [shutil.which("g++")]


def test_without_a_compiler_it_says_so(tmp_path):
    process = start(tmp_path / "none", tmp_path)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "no C++ compiler is found" in said


def test_a_cache_that_cannot_be_written_is_a_reason_too(compiler, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    _, said = start(compiler, tmp_path).communicate(timeout=PATIENCE)
    assert said.startswith("refused: they cannot be built or loaded here (")


def test_the_key_changes_with_source_torch_and_flags(monkeypatch, tmp_path):
    compiler = build.find_compiler()
    keys = [build._key(compiler), build._key(compiler)]
    assert keys[0] == keys[1]
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O2"))
    keys.append(build._key(compiler))
    monkeypatch.setattr(build.torch, "__version__", "0.0")
    keys.append(build._key(compiler))
    other = tmp_path / "fused.cpp"
    other.write_text("// another", encoding="utf-8")
    monkeypatch.setattr(build, "SOURCE", other)
    keys.append(build._key(compiler))
    assert len(set(keys)) == 4


@pytest.mark.usefixtures("library")
def test_it_brings_no_second_openmp_runtime():
    """The only one mapped into a process that has used it is the one that torch brings."""
    script = LOAD + "print(*{l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    runtimes = [name for name in done.stdout.split() if "libgomp" in name or "libomp" in name]
    assert len(runtimes) == 1
    assert "torch" in runtimes[0]


SIMPLER = """
import sys, torch
from resvar.kernels import build
build.FLAGS = (*build.FLAGS, sys.argv[1])
build.load_operators()
from resvar.kernels.fuse import fuse
for kernel in (1, 3):
    found = []
    for fused in (True, False):
        torch.manual_seed(1)
        conv = torch.nn.Conv2d(16, 32, kernel, padding=kernel // 2, bias=False)
        one = torch.nn.Sequential(torch.nn.BatchNorm2d(16), torch.nn.ReLU(), conv)
        if fused:
            fuse(one)
        x = torch.randn(5, 16, 6, 8).bfloat16().to(memory_format=torch.channels_last)
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = one(x)
        out.backward(torch.randn_like(out))
        found.append([out, x.grad, *(p.grad for p in one.parameters())])
    print(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found)))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("without", ["-mno-amx-bf16", "-mno-avx512bf16", "-mno-avx512f"])
def test_built_for_a_simpler_processor_it_computes_the_same(without):
    """The code paths of a processor without an instruction that this one may have."""
    done = subprocess.run(
        [sys.executable, "-c", SIMPLER, without],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    differences = [float(line) for line in done.stdout.split()]
    assert len(differences) == 2
    assert max(differences) < 0.02
