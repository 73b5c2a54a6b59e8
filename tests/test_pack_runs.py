"""Packing runs: records in one file, checkpoints of unfinished runs in others."""

from __future__ import annotations

import sys
import tarfile

import pack_runs
import pytest

from resvar.rundir import CHECKPOINT, CONFIG, METRICS, PROGRESS, RESULT, write_note


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


def test_an_empty_folder_and_records_that_are_too_large_are_refused(monkeypatch, tmp_path, runs):
    assert pack(monkeypatch, tmp_path / "nowhere", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    assert pack(monkeypatch, runs, tmp_path / "out", "--mib", 0.00001) == 1
