"""What a run says when it ends early is what a rerun then does."""

from __future__ import annotations

import errno
import io
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from resvar.config import resolve
from resvar.errors import RunError, Stopped
from resvar.training import job, trainer, writer
from resvar.training.execution import Execution
from resvar.training.step import Updater
from resvar.training.trainer import Trainer
from tests.support.tiny import install, make_cifar

SETTINGS = (
    "iterations=6", "checkpoint_every=2", "eval_every=3", "batch_size=8", "bn_batch_size=8",
    "kernels=plain", "precision=fp32",
)  # fmt: skip

Fault = Callable[[pytest.MonkeyPatch], None]


class Runs:
    """A run that is made in this process, as often as it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder / "run", folder / "data"

    def train(self, *more: str, **options: Any) -> str:
        """Returns what was printed."""
        settings = resolve(
            None, {"variant": "full-preact", "depth": 8, "protocol": "quick"}, [*SETTINGS, *more]
        )
        printed = io.StringIO()
        console = Console(file=printed, width=300)
        job.run_training(settings, self.data, console, self.folder, "cpu", **options)
        return printed.getvalue()

    def broken(self, fault: Fault, **options: Any) -> Stopped | RunError:
        """How a run with a fault ends."""
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            with pytest.raises((Stopped, RunError)) as ended:
                self.train(**options)
        return ended.value

    def resumes_at(self, *more: str) -> int | None:
        found = re.search(r"resuming from iteration (\d+)", self.train(*more))
        return int(found[1]) if found else None


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Runs:
    install(make_cifar(tmp_path / "data", train=40, test=30), monkeypatch)
    monkeypatch.setattr(trainer, "CHECKPOINT_PAUSE", 0.0)
    return Runs(tmp_path)


def failing(
    owner: Any, name: str, error: BaseException | int, call: Callable[[Any], bool] = lambda _: True
) -> Fault:
    """An error, or a signal, from a function where `call` accepts its first argument."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        real = getattr(owner, name)

        def replacement(*given: Any, **named: Any) -> Any:
            if call(given[0]):
                if not isinstance(error, int):
                    raise error
                signal.raise_signal(error)
            return real(*given, **named)

        patch.setattr(owner, name, replacement)

    return plant


def at(iteration: int) -> Callable[[Any], bool]:
    return lambda object: object.iteration == iteration


FULL = OSError(errno.ENOSPC, "No space left on device", "metrics.csv")
LACK = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
ENDINGS = {
    "Ctrl-C while the images are read": (failing(job, "open_images", KeyboardInterrupt()), None),
    "Ctrl-C while the operators are built": (
        failing(Execution, "prepare_process", KeyboardInterrupt()), None
    ),
    "Ctrl-C before the first checkpoint": (
        failing(Trainer, "step", signal.SIGINT, at(1)), 2  # it is made there
    ),
    "Ctrl-C in an evaluation": (failing(Trainer, "_evaluate", signal.SIGINT, at(3)), 3),
    "Ctrl-C in the last evaluation": (failing(Trainer, "_evaluate", signal.SIGINT, at(6)), 6),
    "Ctrl-C after the last iteration": (failing(job, "_write_result", KeyboardInterrupt()), 6),
    "a full disk before the first checkpoint": (failing(Updater, "__call__", FULL, at(1)), None),
    "a full disk at the second checkpoint": (
        failing(writer.Writer, "on_checkpoint", FULL, lambda w: w.trainer.iteration == 4), 2
    ),
    "too little memory for the first update": (failing(Updater, "__call__", LACK), None),
    "too little memory later": (failing(Updater, "__call__", LACK, at(5)), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_a_rerun_does_what_the_sentence_says(runs, name):
    fault, resumes_at = ENDINGS[name]
    ended = runs.broken(fault)
    said = str(ended)
    assert isinstance(ended, Stopped) == name.startswith("Ctrl-C")
    assert said.endswith(".")
    if resumes_at is None:
        assert "no checkpoint was saved, so rerun the command to start from the beginning." in said
    else:
        assert f"rerun the command to resume at iteration {resumes_at}." in said
    assert runs.resumes_at() == resumes_at


def test_with_fresh_the_rerun_is_without_it(runs):
    stopped = runs.broken(failing(Trainer, "step", signal.SIGINT, at(3)), fresh=True)
    assert "rerun the command without --fresh to resume at iteration 4." in str(stopped)
    assert runs.resumes_at() == 4


def test_after_the_result_the_run_is_finished(runs):
    stopped = runs.broken(failing(job, "duration", KeyboardInterrupt()))  # of the last line
    assert str(stopped) == "stopped; the run is finished."
    assert "already finished" in runs.train()


def test_a_damaged_checkpoint_is_not_promised(runs):
    runs.broken(failing(Updater, "__call__", LACK, at(3)))
    (runs.folder / "checkpoint.pt").write_bytes(b"PK")
    stopped = str(runs.broken(failing(job, "open_images", KeyboardInterrupt())))
    assert "checkpoint.pt is damaged" in stopped
    assert stopped.endswith("Start the run over with --fresh.")
    with pytest.raises(RunError, match="--fresh"):
        runs.train()


@pytest.mark.parametrize(("warm_up", "kept"), [(0, None), (3, 4)])
def test_of_a_diverged_run_only_a_checkpoint_that_is_there_is_kept(runs, warm_up, kept):
    wild = ("lr=1e30", "schedule=step", f"warmup_iterations={warm_up}", "warmup_lr=0.01")
    with pytest.raises(RunError, match="diverged") as ended:
        runs.train(*wild)
    assert ("is kept" in str(ended.value)) == (kept is not None)
    if kept is not None:
        assert f"The checkpoint of iteration {kept} is kept." in str(ended.value)
    assert (runs.folder / "checkpoint.pt").exists() == (kept is not None)
