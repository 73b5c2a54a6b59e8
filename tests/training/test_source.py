"""The recorded commit, compared with what git itself says about repositories made here."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from resvar.config import resolve
from resvar.errors import Stopped
from resvar.training import job, source
from resvar.training.source import SourceVersion, source_version
from resvar.training.trainer import Trainer
from tests.support.tiny import install, make_cifar

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *command: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *command],
        env=environment, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return done.stdout.strip()


def package(root: Path) -> Path:
    """A package of two files."""
    folder = root / "resvar"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "unit.py").write_text("x = 1\n", encoding="utf-8")
    return folder


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository with one commit that contains the package."""
    folder = package(tmp_path / "checkout")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-qm", "one")
    return folder


def test_a_clean_checkout(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert source_version(checkout) == SourceVersion(head, False)


def test_a_changed_file_and_an_untracked_one(checkout):
    (checkout / "notes.txt").write_text("not tracked", encoding="utf-8")
    assert source_version(checkout).dirty is False
    source_version.cache_clear()
    (checkout / "unit.py").write_text("x = 2\n", encoding="utf-8")
    assert source_version(checkout).dirty is True


@pytest.mark.parametrize("names", [["GIT_DIR"], ["GIT_DIR", "GIT_WORK_TREE"], ["GIT_INDEX_FILE"]])
def test_variables_of_git_name_another_repository(checkout, tmp_path, monkeypatch, names):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "theirs")
    places = {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_INDEX_FILE": other / "index"}
    for name in names:
        monkeypatch.setenv(name, str(places[name]))
    found = source_version(checkout)
    assert found == SourceVersion(git(checkout, "rev-parse", "HEAD"), False)


def test_installed_inside_another_repository(checkout):
    """A wheel in `.venv` of a project: its commit says nothing of this code."""
    installed = package(checkout.parent / ".venv/lib/python3.12/site-packages")
    found = source_version(installed)
    assert (found.commit, found.dirty) == (None, None)
    assert "exists on disk, but not in 'HEAD'" in str(found.reason)


def test_no_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    found = source_version(package(tmp_path))
    assert found.commit is None
    assert "not a git repository" in str(found.reason)


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_a_checkout_of_somebody_else(checkout, monkeypatch, tmp_path):
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no safe.directory there
    for path in (checkout.parent, checkout.parent / ".git"):
        os.chown(path, 12345, 12345)
    found = source_version(checkout)
    assert found.commit is None
    assert "dubious ownership" in str(found.reason)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exec sleep 60", "git did not answer in 1 s"),
        ("echo 'fatal: no memory' >&2; exit 128", "git: no memory"),
        ("exit 3", "git: it exited with 3"),
        (None, "git is not installed"),
    ],
)
def test_a_git_that_does_not_work(tmp_path, monkeypatch, script, reason):
    if script is not None:
        (tmp_path / "git").write_text(
            f"#!/bin/sh\nPATH={os.environ['PATH']}\n{script}\n", encoding="utf-8"
        )
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(source, "GIT_SECONDS", 1.0)
    assert source_version(package(tmp_path)) == SourceVersion(None, None, reason)


def test_git_writes_nothing(checkout):
    """`git status` would refresh the index, and a commit at this moment would find it locked."""
    index = checkout.parent / ".git" / "index"
    os.utime(checkout / "unit.py", (0, 1e9))  # its entry in the index is now outdated
    before = index.read_bytes()
    assert source_version(checkout).dirty is False
    assert index.read_bytes() == before


# --- what a run records -------------------------------------------------------------------------


def test_a_run_names_the_commits_that_trained_it(tmp_path, monkeypatch):
    """A commit made during the run is not one of them; one that resumed it is."""
    install(make_cifar(tmp_path / "data", train=20, test=10), monkeypatch)
    settings = resolve(
        options={"variant": "full-preact", "depth": 8},
        overrides=["iterations=3", "batch_size=8", "bn_batch_size=8", "kernels=plain"],
    )
    step, checked_out = Trainer.step, ["a" * 40]
    monkeypatch.setattr(job, "source_version", lambda: SourceVersion(checked_out[0], False))

    def step_and_commit(trainer, callbacks):
        step(trainer, callbacks)
        checked_out[0] = "c" * 40
        if trainer.iteration == 1:
            signal.raise_signal(signal.SIGTERM)

    def train():
        monkeypatch.setattr(Trainer, "step", step_and_commit)
        out = Console(file=io.StringIO())
        return job.run_training(settings, tmp_path / "data", out, tmp_path / "run", "cpu")

    with pytest.raises(Stopped):
        train()
    checked_out[0] = "b" * 40
    result = train()
    assert result["commit"] == "b" * 40
    assert result["commits"] == ["a" * 40, "b" * 40]
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["commits"]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text(encoding="utf-8"))
    assert environment["commit"] == "a" * 40
    assert environment["resumed"] == [{"iteration": 1, "changed": {"commit": "b" * 40}}]

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(
        job, "source_version", lambda: SourceVersion(None, None, "git is not installed")
    )
    out = Console(file=io.StringIO())
    again = job.run_training(settings, tmp_path / "data", out, tmp_path / "run", "cpu", fresh=True)
    assert again["commit"] is None
    assert "commits" not in again
    environment = json.loads((tmp_path / "run" / "environment.json").read_text(encoding="utf-8"))
    assert environment["commit_reason"] == "git is not installed"
