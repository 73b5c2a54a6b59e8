"""Packing runs: records in one file, checkpoints of unfinished runs in others."""

from __future__ import annotations

import sys
import tarfile

import pack_runs
import pytest

from resvar.rundir import (
    CHECKPOINT,
    CONFIG,
    DIVERGED,
    METRICS,
    PROGRESS,
    RESULT,
    locked,
    write_note,
)


def write_run(folder, iteration, finished=False, checkpoint=1000):
    folder.mkdir(parents=True)
    for name in (CONFIG, METRICS, "run.lock", "log.txt"):
        (folder / name).write_text(name, encoding="utf-8")
    write_note(
        folder / PROGRESS,
        {"iteration": iteration, "iterations": 100, "seconds": 1.0, "images_per_second": 1.0},
    )
    if finished:
        (folder / RESULT).write_text("{}", encoding="utf-8")
    if checkpoint:
        (folder / CHECKPOINT).write_bytes(b"x" * checkpoint)


def pack(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pack_runs.py", *map(str, arguments)])
    return pack_runs.main()


def refused(monkeypatch, *arguments):
    with pytest.raises(SystemExit) as ended:
        pack(monkeypatch, *arguments)
    return ended.value.code == 2


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs/paper/a/seed-0", 100, finished=True)
    write_run(tmp_path / "runs/paper/b/seed-0", 20)
    write_run(tmp_path / "runs/paper/c/seed-0", 90)
    write_run(tmp_path / "runs/paper/d/seed-0", 0, checkpoint=0)
    return tmp_path / "runs"


def test_unpacked_elsewhere_the_runs_are_as_they_were(monkeypatch, tmp_path, runs, capsys):
    assert pack(monkeypatch, runs, tmp_path / "out") == 0
    packed = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in packed] == [
        "checkpoint-1.tar", "checkpoint-2.tar", "records.tar.gz",
    ]  # fmt: skip
    for file in packed:
        with tarfile.open(file) as tar:
            tar.extractall(tmp_path / "elsewhere", filter="data")
    kept = {
        path.relative_to(runs): path.read_bytes()
        for path in runs.rglob("*")
        if path.is_file() and path.name not in ("run.lock", "log.txt")
    }
    del kept[next(name for name in kept if "/a/" in str(name) and name.name == CHECKPOINT)]
    there = tmp_path / "elsewhere"
    found = {p.relative_to(there): p.read_bytes() for p in there.rglob("*") if p.is_file()}
    assert found == kept
    said = capsys.readouterr().out
    assert said.index("paper/c/seed-0") < said.index("paper/b/seed-0")  # the least left first


def test_checkpoints_that_are_too_many_or_too_large_are_named(monkeypatch, tmp_path, runs, capsys):
    assert pack(monkeypatch, runs, tmp_path / "out", "--files", 2) == 0
    assert "left out: the checkpoint of paper/b/seed-0\n" in capsys.readouterr().out
    (runs / "paper/c/seed-0" / CHECKPOINT).write_bytes(b"x" * 2**20)
    assert pack(monkeypatch, runs, tmp_path / "small", "--mib", 1) == 0
    assert "left out: the checkpoint of paper/c/seed-0\n" in capsys.readouterr().out


def test_a_run_without_its_checkpoint_claims_no_progress(monkeypatch, tmp_path, runs):
    assert pack(monkeypatch, runs, tmp_path / "out", "--files", 2) == 0
    with tarfile.open(tmp_path / "out/records.tar.gz") as tar:
        names = tar.getnames()
    assert f"paper/c/seed-0/{PROGRESS}" in names
    assert f"paper/b/seed-0/{PROGRESS}" not in names


def test_a_diverged_run_is_not_one_to_resume(monkeypatch, tmp_path, runs):
    (runs / "paper/c/seed-0" / DIVERGED).write_text("{}", encoding="utf-8")
    assert pack(monkeypatch, runs, tmp_path / "out") == 0
    assert not (tmp_path / "out/checkpoint-2.tar").exists()


def test_a_checkpoint_that_is_replaced_meanwhile_is_packed_whole(monkeypatch, tmp_path, runs):
    file = runs / "paper/c/seed-0" / CHECKPOINT
    look = tarfile.TarFile.gettarinfo

    def look_and_replace(self, *arguments, **named):
        found = look(self, *arguments, **named)
        if found.name.endswith(CHECKPOINT):
            (tmp_path / "next").write_bytes(b"y" * 77)
            (tmp_path / "next").replace(file)
        return found

    monkeypatch.setattr(tarfile.TarFile, "gettarinfo", look_and_replace)
    assert pack(monkeypatch, runs, tmp_path / "out") == 0
    with tarfile.open(tmp_path / "out/checkpoint-1.tar") as tar:
        assert tar.extractfile(f"paper/c/seed-0/{CHECKPOINT}").read() == b"x" * 1000


def test_a_linked_checkpoint_is_packed_as_a_file(monkeypatch, tmp_path, runs):
    file = runs / "paper/c/seed-0" / CHECKPOINT
    file.rename(tmp_path / "kept.pt")
    file.symlink_to(tmp_path / "kept.pt")
    assert pack(monkeypatch, runs, tmp_path / "out") == 0
    with tarfile.open(tmp_path / "out/checkpoint-1.tar") as tar:
        assert tar.extractfile(f"paper/c/seed-0/{CHECKPOINT}").read() == b"x" * 1000


def test_runs_that_are_still_running_are_mentioned(monkeypatch, tmp_path, runs, capsys):
    with locked(runs / "paper/c/seed-0"):
        assert pack(monkeypatch, runs, tmp_path / "out") == 0
    assert capsys.readouterr().err == "still running: 1 run, packed as last saved\n"


@pytest.mark.parametrize(
    "wrong",
    [("--files", 0), ("--files", -1), ("--mib", 0), ("--mib", -3), ("--mib", "nan"),
     ("--mib", "inf")],
)  # fmt: skip
def test_impossible_limits_are_refused(monkeypatch, tmp_path, runs, capsys, wrong):
    assert refused(monkeypatch, runs, tmp_path / "out", *wrong)
    assert wrong[0] in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(monkeypatch, tmp_path, runs, capsys):
    assert pack(monkeypatch, runs, tmp_path / "out") == 0
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert refused(monkeypatch, runs, tmp_path / "out")
    assert "is not empty" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_folder_that_cannot_be_made_is_one_sentence(monkeypatch, tmp_path, runs, capsys):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    assert pack(monkeypatch, runs, tmp_path / "out") == 1
    assert capsys.readouterr().err == f"{tmp_path / 'out'}: File exists.\n"


def test_an_empty_folder_and_records_that_are_too_large_are_refused(monkeypatch, tmp_path, runs):
    assert refused(monkeypatch, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert pack(monkeypatch, runs, tmp_path / "out", "--mib", 0.00001) == 1
