"""Weights & Biases gets what metrics.csv says, each figure once, and never disturbs a run.

Offline, or with an address where nothing listens: no test reaches a server.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resvar.config import resolve
from resvar.training import wandb_log
from resvar.training.events import TAGS
from tests.support.commands import train, wait_for
from tests.support.outcome import differing

pytest.importorskip("wandb")

ON = ("--set", "wandb=true")
OFFLINE = {"WANDB_MODE": "offline"}
BLOCK, HEADER = 32_768, 7


def records(path: Path) -> Iterator[bytes]:
    """The records of a file of wandb, in the log format of LevelDB."""
    content, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # too little for a header: filled up
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def points(folder: Path) -> list[tuple[str, int, float]]:
    """Every (tag, step, value) in the files that wandb would upload."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        for data in records(path):
            record = Record()
            record.ParseFromString(data)
            for item in record.history.item:
                tag = item.key or "/".join(item.nested_key)
                if not tag.startswith("_"):
                    found.append((tag, record.history.step.num, json.loads(item.value_json)))
    return sorted(found)


def rows(folder: Path) -> list[tuple[str, int, float]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return sorted(
            (tag, int(row["iteration"]), float(row[column]))
            for row in csv.DictReader(file)
            for column, tag in TAGS.items()
            if column in row
        )


def ids(folder: Path) -> set[str]:
    return {path.name.split("-", 3)[3] for path in folder.glob("wandb/offline-run-*")}


@pytest.fixture
def settings():
    return resolve(None, {"variant": "original", "depth": 20, "protocol": "quick"}, ["wandb=true"])


@pytest.mark.parametrize("place", ["iteration:10", "before-result.json:1"])
def test_no_point_is_there_twice_after_a_kill(warm, tmp_path, place):
    run = tmp_path / "run"
    killed = warm.run(*train(*ON, "--out", "run"), cwd=tmp_path, RESVAR_TEST_KILL=place, **OFFLINE)
    assert killed.code == -signal.SIGKILL
    done = warm.run(*train(*ON, "--out", "run"), cwd=tmp_path, **OFFLINE)
    assert done.code == 0, done
    assert points(run) == rows(run)
    assert len(points(run)) == 4 * (len(TAGS) - 2)  # evaluations; no images are held out
    (only,) = ids(run)
    assert only == json.loads((run / "wandb.json").read_text(encoding="utf-8"))["id"]
    assert f"wandb sync {run}/wandb/offline-run-*-{only}" in done.out


@pytest.mark.slow
def test_fresh_is_another_run_and_the_bits_are_those_without_it(warm, tmp_path):
    assert warm.run(*train("--out", "plain"), cwd=tmp_path).code == 0
    assert warm.run(*train(*ON, "--out", "run"), cwd=tmp_path, **OFFLINE).code == 0
    assert differing(tmp_path / "run", tmp_path / "plain") == ["config"]  # wandb itself
    again = warm.run(*train(*ON, "--fresh", "--out", "run"), cwd=tmp_path, **OFFLINE)
    assert again.code == 0
    assert len(ids(tmp_path / "run")) == 2


@pytest.mark.process
@pytest.mark.parametrize("key", ["0" * 40, ""])
def test_without_a_server_or_a_login_a_sentence_says_so(tmp_path, monkeypatch, settings, key):
    for name, value in {
        "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": key, "WANDB_MODE": "online",
        "HOME": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wandb_log, "LONGEST_END", 3.0 if key else 60.0)
    said: list[str] = []
    tracker = wandb_log.WandbLog(tmp_path, settings, [], said.append)
    tracker.add({"iteration": 4.0, "train_loss": 1.0})
    tracker.close()
    (sentence,) = said
    assert ("did not take everything" if key else "the training continues") in sentence


@pytest.mark.process
def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch, settings):
    def hang() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True,
        )  # fmt: skip

    monkeypatch.setattr(wandb_log, "_started", hang)
    monkeypatch.setattr(wandb_log, "LONGEST_END", 0.2)
    said: list[str] = []
    tracker = wandb_log.WandbLog(tmp_path, settings, [], said.append)
    for iteration in range(5000):  # more than a pipe takes
        tracker.add({"iteration": float(iteration), "train_loss": 1.0, "test_loss": 1.0})
    tracker.close()
    assert "did not take everything" in said[0]
    assert wait_for(lambda: not tracker._process or tracker._process.returncode is not None)


def test_a_process_that_cannot_be_started_is_a_sentence(tmp_path, monkeypatch, settings):
    def fail() -> None:
        raise OSError(12, os.strerror(12))

    monkeypatch.setattr(wandb_log, "_started", fail)
    said: list[str] = []
    tracker = wandb_log.WandbLog(tmp_path, settings, [], said.append)
    tracker.add({"iteration": 4.0, "train_loss": 1.0})
    tracker.close()
    assert len(said) == 1
    assert "the training continues" in said[0]


class Server:
    """What wandb is to the process, with a run that its server knows up to a step."""

    def __init__(self, step: int) -> None:
        self.step, self.resumed, self.url = step, step > 0, "https://example.org/run"
        self.settings = self
        self.mode = "online"
        self.sent: list[int] = []

    def setup(self) -> Server:
        return self

    def Settings(self, **_given: object) -> None:  # noqa: N802 - wandb's name
        return None

    def init(self, **given: object) -> Server:
        assert given["resume"] == "allow"
        return self

    def log(self, _figures: object, step: int, commit: bool) -> None:
        assert commit
        self.sent.append(step)

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize(("known", "sent"), [(0, [4, 8, 12]), (9, [12])])
def test_online_a_resumed_run_sends_what_the_server_lacks(tmp_path, monkeypatch, known, sent):
    server = Server(known)
    monkeypatch.setitem(sys.modules, "wandb", server)
    head = {"folder": str(tmp_path), "id": "a", "name": "n", "group": "g", "config": {}}
    lines = [head, *({"step": step, "figures": {"lr": 0.1}} for step in (4, 8, 12))]

    class Lines(list):
        def readline(self) -> str:
            return self.pop(0)

    answers: list[str] = []
    wandb_log._log_run(Lines(map(json.dumps, lines)), answers.append)
    assert server.sent == sent
    assert server.finished
    assert answers == ["Weights & Biases: https://example.org/run"]
