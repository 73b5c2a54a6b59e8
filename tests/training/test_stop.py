"""Signals during training: each asks for the same, save and end; the ignored ones do nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from resvar.config import resolve
from resvar.errors import Stopped, UserError
from resvar.training import stop
from resvar.training.checkpoint import load_newest
from resvar.training.job import run_training
from resvar.training.stop import SIGNALS, stop_request
from resvar.training.trainer import Trainer
from tests.support.commands import sets, wait_for
from tests.support.outcome import differing
from tests.support.tiny import install, make_cifar

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def exits(monkeypatch) -> list[int]:
    """The codes with which this process would have ended at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_leaves(exits, capfd, number):
    with stop_request("Stopping.\n") as asked:
        assert not asked
        signal.raise_signal(number)
        assert asked
        assert exits == []
        assert capfd.readouterr().err == "Stopping.\n"
        signal.raise_signal(signal.SIGINT)
        assert exits == [130]


def test_a_closed_terminal_sends_its_signal_twice(exits):
    with stop_request("") as asked:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert asked
        assert exits == []
        asked._asked_at -= stop.FORWARDING
        signal.raise_signal(signal.SIGHUP)
        assert exits == [130]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_was_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_request("") as asked:
            signal.raise_signal(number)
            assert not asked
            signal.raise_signal(signal.SIGUSR1)
            assert asked
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_request(""):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_another_thread_nothing_is_handled():
    found: list[object] = []

    def listen():
        with stop_request("") as asked:
            found.append(bool(asked))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_second_signal_ends_a_process_whose_handlers_cannot_run(exits, monkeypatch):
    """As while torch waits for another process."""
    monkeypatch.setattr(stop, "FORWARDING", 0.2)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with stop.second_signal_ends():
            signal.raise_signal(signal.SIGTERM)
            assert exits == []
            assert wait_for(lambda: signal.raise_signal(signal.SIGTERM) or 130 in exits, 60)
        exits.clear()
        signal.raise_signal(signal.SIGTERM)
        assert exits == []
    finally:
        signal.signal(signal.SIGTERM, before)


# --- a run ----------------------------------------------------------------------------------------


def train(tmp_path, out, **options):
    settings = resolve(
        options={"variant": "full-preact", "depth": 8},
        overrides=["iterations=3", "batch_size=8", "bn_batch_size=8", "kernels=plain"],
    )
    console = Console(file=io.StringIO())
    return run_training(settings, tmp_path / "data", console, tmp_path / out, "cpu", **options)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_saves_and_ends_and_resumes_with_the_same_bits(tmp_path, monkeypatch, number):
    """`checkpoint_every` is far away."""
    install(make_cifar(tmp_path / "data", train=20, test=10), monkeypatch)
    step = Trainer.step

    def step_with_signal(trainer, callbacks):
        step(trainer, callbacks)
        if trainer.iteration == 2:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_with_signal)
        with pytest.raises(
            Stopped, match=r"after iteration 2; a checkpoint is saved: .* at iteration 2"
        ):
            train(tmp_path, "run")
    assert load_newest(tmp_path / "run")["iteration"] == 2
    train(tmp_path, "run")
    train(tmp_path, "undisturbed")
    assert not differing(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5", "9" * 5000])
def test_a_sweep_that_is_no_process_is_named(tmp_path, monkeypatch, value):
    install(make_cifar(tmp_path / "data", train=20, test=10), monkeypatch)
    monkeypatch.setenv("RESVAR_SWEEP_PID", value)
    with pytest.raises(UserError, match="the environment variable RESVAR_SWEEP_PID is") as caught:
        train(tmp_path, "run")
    assert len(str(caught.value)) < 200
    assert not (tmp_path / "run").exists()


@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers obey the parent alone")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_lets_workers_live_until_the_run_has_saved(
    resvar, tmp_path, number
):
    """As `timeout`, systemd and Slurm send it."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in "ab":
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(8):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    words = [
        "train", "--variant", "full-preact", "--depth", "8", "--device", "cpu", "--out", "run",
        "--dataset", "folder", "--data", "images",
        *sets("normalize=imagenet", "image_size=8", "iterations=100000", "batch_size=4",
              "bn_batch_size=4", "eval_every=100000", "checkpoint_every=100000",
              "precision=fp32", "kernels=plain"),
    ]  # fmt: skip
    with resvar.started(*words, cwd=tmp_path) as job:
        progress = tmp_path / "run" / "progress.json"
        assert wait_for(lambda: progress.exists() or job.ended), job.err
        os.killpg(job.pid, number)
        ended = job.end()
    assert ended.code == 130, ended
    assert "a checkpoint is saved" in ended.err
    assert len(ended.err.strip().splitlines()) == 2
    assert load_newest(tmp_path / "run")["iteration"] > 0
    assert "failure.json" not in {path.name for path in (tmp_path / "run").iterdir()}
    assert json.loads(progress.read_text(encoding="utf-8"))["iteration"] > 0
