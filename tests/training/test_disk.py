"""A disk that is full, or read-only: one sentence, exit 1, and the run resumes after the repair.

On a file system of a few kilobytes in memory where the tests may mount one, and under a limit on
the size of files where they run as anybody. A read-only file system stands for any folder that may
not be written: to root, as which tests often run, permissions mean nothing.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from resvar.config import resolve
from resvar.errors import RunError
from resvar.training.checkpoint import load, load_newest
from resvar.training.job import run_training as train_here
from tests.support.commands import TINY, UNMEASURED, sets, train
from tests.support.outcome import differing
from tests.support.tiny import install, make_cifar

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="mounts and limits are POSIX's")


class Disk:
    """A file system in memory."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.place], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place]
        mounted = subprocess.run(command, capture_output=True, encoding="utf-8")
    except OSError as error:
        pytest.skip(f"mount cannot be called: {error}")
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield Disk(place)
    subprocess.run(["umount", "--lazy", place], check=False)


@pytest.fixture(scope="module")
def undisturbed(warm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = warm.run(*train("--out", str(folder / "run")), cwd=folder)
    assert done.code == 0, done
    return folder / "run"


@pytest.mark.parametrize(
    ("size", "kept"),
    [("300k", None), ("1000k", 3), ("1500k", 6)],
    ids=["the first checkpoint", "the second", "the third"],
)
def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run_goes_on(
    warm, undisturbed, disk, tmp_path, size, kept
):
    """A checkpoint has 627 kB, and the old ones stay until the new one is verified."""
    disk.remount(f"size={size}")
    out = disk.place / "run"
    failed = warm.run(*train("--out", str(out)), cwd=tmp_path)
    assert failed.code == 1, failed
    assert failed.err.startswith("resvar: error: ")
    assert "No space left on device" in failed.err
    assert len(failed.err.splitlines()) == 1
    assert not list(out.glob("*.tmp"))
    state = load_newest(out)
    assert (state and state["iteration"]) == kept
    again = warm.run(*train("--out", str(out)), cwd=tmp_path)
    assert again.code == 1, "still full"
    assert len(again.err.splitlines()) == 1
    disk.remount("size=8m")
    done = warm.run(*train("--out", str(out)), cwd=tmp_path)
    assert done.code == 0, done
    assert (f"resuming from iteration {kept}" in done.out) == (kept is not None)
    assert not differing(out, undisturbed)


def test_a_read_only_file_system_is_one_sentence_and_the_run_goes_on(
    warm, undisturbed, disk, tmp_path
):
    out = disk.place / "run"
    warm.run(*train("--out", str(out)), cwd=tmp_path, RESVAR_TEST_KILL="iteration:8")
    disk.remount("ro")
    for more in ((), ("--fresh",)):
        refused = warm.run(*train("--out", str(out), *more), cwd=tmp_path)
        assert refused.code == 1, refused
        assert "Read-only file system" in refused.err
        assert str(out) in refused.err
        assert len(refused.err.splitlines()) == 1
    assert load(out / "checkpoint.pt")["iteration"] == 6
    disk.remount("rw")
    assert warm.run(*train("--out", str(out)), cwd=tmp_path).code == 0
    assert not differing(out, undisturbed)


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_reports_its_runs_and_goes_on(resvar, disk, tmp_path):
    where = ("--device", "cpu", "--out", str(disk.place))
    sweep = ["sweep", "--variants", "original", "--depths", "8", *where]
    sweep += [*sets(*TINY, "precision=fp32"), *UNMEASURED]
    disk.remount("size=1000k")
    failed = resvar.run(*sweep, cwd=tmp_path)
    assert failed.code == 1
    assert "1 run failed" in failed.err
    assert "No space left on device" in failed.out
    disk.remount("size=8m")
    assert resvar.run(*sweep, cwd=tmp_path).code == 0


@pytest.mark.heavy
def test_under_a_limit_on_the_size_of_files(tmp_path, monkeypatch):
    """As on a full disk or over a quota, but anybody can try it."""
    import resource

    install(make_cifar(tmp_path / "data", train=40, test=10), monkeypatch)
    options = {"variant": "original", "depth": 8}
    settings = resolve(options=options, overrides=[*TINY, "precision=fp32", "iterations=6"])

    def go_on(out: Path) -> str:
        said = io.StringIO()
        train_here(settings, tmp_path / "data", Console(file=said, width=200), out, "cpu")
        return said.getvalue()

    go_on(tmp_path / "undisturbed")
    out, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"File too large.*no checkpoint was saved"):
            go_on(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        "File too large"
        in json.loads((out / "failure.json").read_text(encoding="utf-8"))["message"]
    )
    assert load_newest(out) is None
    go_on(out)
    assert not differing(out, tmp_path / "undisturbed")
