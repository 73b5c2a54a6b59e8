"""Running `resvar` as its users do, as a process, for the black-box tests."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "tests" / "support" / "driver"

PATIENCE = 600.0
"""Seconds to wait for an event that must come. Tests do not judge speed: a busy machine may take a
hundred times as long as an idle one."""

TINY = (
    "iterations=14", "batch_size=16", "bn_batch_size=8", "eval_every=4", "checkpoint_every=3",
    "schedule=step", "lr=0.05", "warmup_iterations=3", "milestones=[10]",
)  # fmt: skip
"""Settings of a run of about a second."""

UNMEASURED = ("--images-per-second", "8=1000")
"""Options of a sweep of ResNet-8, which then does not measure the speed first."""


def sets(*settings: str) -> list[str]:
    """`--set` for each setting."""
    return [word for setting in settings for word in ("--set", setting)]


def train(*more: str, seed: int = 0, precision: str = "fp32") -> list[str]:
    """The arguments of a tiny run: ResNet-8, 14 iterations."""
    options = ["--variant", "full-preact", "--depth", "8", "--seed", str(seed), "--device", "cpu"]
    return ["train", *options, *sets(*TINY, f"precision={precision}"), *more]


@dataclass(frozen=True)
class Finished:
    """A process that ended; `code` is negative if a signal ended it."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Job:
    """A running `resvar`. Its output goes to two files."""

    process: subprocess.Popen[bytes] | BaseProcess
    printed: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def out(self) -> str:
        return (self.printed / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return (self.printed / "err").read_text(encoding="utf-8")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        if isinstance(self.process, BaseProcess):
            with FORKS:
                return self.process.exitcode
        return self.process.poll()

    @property
    def ended(self) -> bool:
        return self.code() is not None

    def read_until(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until it has printed `text`, or has ended."""
        assert wait_for(lambda: text in self.out or self.ended, seconds), self.out

    def end(self, seconds: float = PATIENCE) -> Finished:
        """Wait for its end."""
        assert wait_for(lambda: self.ended, seconds), f"still at work: {self.out}"
        code = self.code()
        assert code is not None
        return Finished(code, self.out, self.err)


class Commands:
    """Starts `resvar` with the tiny dataset in place of the official one.

    Args:
        data: the folder with the dataset.
        md5: the folder with `md5.json`, the checksums of the tiny datasets; default `data`.
    """

    def __init__(self, data: Path, md5: Path | None = None) -> None:
        self.data = data
        self.md5 = md5 or data

    def environment(self, **more: str) -> dict[str, str]:
        """Environment of the child processes; `more` are further variables."""
        ours = ("RESVAR_", "PYTHONPATH", "OMP_", "MKL_", "COLUMNS")
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(ours)},
            "PYTHONPATH": os.pathsep.join([str(DRIVER), str(ROOT)]),
            "RESVAR_TEST_DATA": str(self.md5),
            "RESVAR_DATA": str(self.data),
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def run(self, *arguments: object, cwd: Path, **more: str) -> Finished:
        """Run to the end; `more` are environment variables."""
        with self.started(*arguments, cwd=cwd, **more) as job:
            return job.end()

    @contextlib.contextmanager
    def started(self, *arguments: object, cwd: Path, **more: str) -> Iterator[Job]:
        """A running process; it is killed at the end of the block."""
        with TemporaryDirectory() as printed:
            for name in ("out", "err"):
                (Path(printed) / name).touch()
            words = [str(word) for word in arguments]
            process = self._start(words, cwd, self.environment(**more), Path(printed))
            try:
                yield Job(process, Path(printed))
            finally:
                process.kill()
                Job(process, Path(printed)).end()

    def _start(
        self, arguments: list[str], cwd: Path, environment: dict[str, str], printed: Path
    ) -> subprocess.Popen[bytes] | BaseProcess:
        with (printed / "out").open("ab") as out, (printed / "err").open("ab") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "resvar", *arguments],
                cwd=cwd, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip


class WarmCommands(Commands):
    """The same, but each process is forked from one that has loaded torch, which saves seconds.

    Otherwise a process like any other: it can be killed at any moment and leaves only its files.
    """

    def __init__(self, data: Path, md5: Path | None = None) -> None:
        super().__init__(data, md5)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["torch", "torch._dynamo", "numpy", "pydantic", "typer", "rich.progress"]
        )
        os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it once, in the server
        forkserver.ensure_running()

    def _start(
        self, arguments: list[str], cwd: Path, environment: dict[str, str], printed: Path
    ) -> BaseProcess:
        details = (arguments, cwd, environment, printed)
        process = self.context.Process(target=_become_resvar, args=details, daemon=True)
        with FORKS:
            process.start()
        return process


FORKS = threading.Lock()
"""Starting a process with multiprocessing also reads the exit codes of the others. Each can be read
once, and a second thread that reads at that moment gets 255."""


def _become_resvar(
    arguments: list[str], cwd: Path, environment: dict[str, str], printed: Path
) -> None:
    """`python -m resvar`, in a forked process."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(printed / name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    importlib.import_module("tests.support.driver.sitecustomize")
    from resvar.cli import main

    atexit._clear()  # the handlers of the parent
    try:
        main(arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips them


def wait_for(
    condition: Callable[[], object], seconds: float = PATIENCE, every: float = 0.02
) -> bool:
    """Whether the condition came true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(every)
    return bool(condition())


def everyone(mark: str) -> dict[int, list[str]]:
    """The living processes that inherited RESVAR_TEST_MARK=mark: pid → command line (Linux)."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"RESVAR_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                    words = (folder / "cmdline").read_bytes().decode(errors="replace")
                    found[int(folder.name)] = words.split("\0")
            except OSError:  # gone meanwhile
                pass
    return found


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder → digest of its bytes and modification time."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} "
        f"{path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
