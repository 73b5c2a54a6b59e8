"""Running `resvar` as its users do, as a process, for the black-box tests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
DRIVER = ROOT / "tests" / "driver"

TINY = (
    "iterations=24", "batch_size=32", "bn_batch_size=16", "eval_every=6", "checkpoint_every=4",
    "schedule=step", "lr=0.05", "warmup_iterations=3", "milestones=[16]",
)  # fmt: skip
"""Settings of a run that takes a moment."""


def sets(*settings: str) -> list[str]:
    """`--set` for each setting."""
    return [word for setting in settings for word in ("--set", setting)]


def train(variant: str = "full-preact", seed: int = 0, *more: str) -> list[str]:
    """The arguments of a tiny run: ResNet-8, fp32."""
    options = ["--variant", variant, "--depth", "8", "--seed", str(seed), "--device", "cpu"]
    return ["train", *options, *sets(*TINY, "precision=fp32"), *more]


@dataclass(frozen=True)
class Finished:
    """A process that ended; `code` is negative where a signal ended it."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Commands:
    """Starts `resvar` with the tiny data in the place of the official one."""

    data: Path
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        ours = ("RESVAR_", "PYTHONPATH", "OMP_", "MKL_", "COLUMNS")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(DRIVER), str(ROOT)]),
            "RESVAR_TEST_DATA": str(self.data),
            "RESVAR_DATA": str(self.data),
            "OMP_NUM_THREADS": "1",
            **self.variables,
            **more,
        }

    def run(self, *arguments: object, cwd: Path, timeout: float = 120, **more: str) -> Finished:
        """Run to the end; `more` are environment variables."""
        done = subprocess.run(
            [sys.executable, "-m", "resvar", *map(str, arguments)],
            cwd=cwd, env=self.environment(**more), capture_output=True, text=True,
            timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Finished(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def started(
        self, *arguments: object, cwd: Path, **more: str
    ) -> Iterator[subprocess.Popen[str]]:
        """A process at work, in a session of its own; what is left of it at the end is killed."""
        process = subprocess.Popen(
            [sys.executable, "-m", "resvar", *map(str, arguments)],
            cwd=cwd, env=self.environment(**more), text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def end(process: subprocess.Popen[str], timeout: float = 60) -> Finished:
    """Wait for a process in the background."""
    out, err = process.communicate(timeout=timeout)
    return Finished(process.returncode, out, err)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read lines of stdout up to the one that contains `text`, or to the end; returns them."""
    lines = ""
    for line in process.stdout or ():
        lines += line
        if text in line:
            break
    return lines


def wait_for(condition, seconds: float = 60, every: float = 0.05) -> bool:
    """Whether the condition came true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(every)
    return bool(condition())


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with a digest of its bytes, its size and time of change."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} "
        f"{path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
