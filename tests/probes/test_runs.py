"""Finished runs by ordering, depth and protocol, one per seed."""

from __future__ import annotations

from resvar.probes.runs import read_run_groups
from resvar.reports.search import read_records
from tests.reports.runs import write_run

HEADER = "iteration,train_loss,train_error,test_error\n"


def write_metrics(folder, *rows):
    lines = (",".join(map(str, row)) + "\n" for row in rows)
    (folder / "metrics.csv").write_text(HEADER + "".join(lines), encoding="utf-8")


def test_runs_are_grouped_and_their_evaluations_read(tmp_path):
    for seed in (1, 0):
        folder = write_run(tmp_path, "full-preact", 20, seed)
        write_metrics(folder, (200, 1.9 + seed, 60, 61), (400, 1.5 + seed, 50, 51))
    write_metrics(write_run(tmp_path, "original", 20), (300, 2.0, 70, 71))
    write_run(tmp_path, "original", 110, test_error=None)  # not finished
    write_run(tmp_path, "original", 56)  # without any evaluation
    groups = read_run_groups(read_records([tmp_path]))
    assert [(runs.name, runs.group) for runs in groups] == [
        ("original-20", "cifar10, quick"),
        ("full-preact-20", "cifar10, quick"),
        ("original-56", "cifar10, quick"),
    ]
    original, full, empty = groups
    assert list(original.first["train_loss"]) == list(original.last["train_loss"]) == [2.0]
    assert list(full.metrics["seed"]) == [0, 0, 1, 1]
    assert list(full.first["train_loss"]) == [1.9, 2.9]
    assert list(full.last["test_error"]) == [51, 51]
    assert list(full.last["iteration"]) == [400, 400]
    assert empty.metrics.empty


def test_of_two_runs_with_the_same_seed_one_counts(tmp_path):
    for name in ("a", "b"):
        folder = write_run(tmp_path, "original", 20, folder=tmp_path / name)
        write_metrics(folder, (400, 1.5, 50, 51))
    (runs,) = read_run_groups(read_records([tmp_path]))
    assert len(runs.metrics) == 1


def test_a_damaged_run_does_not_count(tmp_path):
    folder = write_run(tmp_path, "original", 20)
    (folder / "metrics.csv").write_text("iteration\n1\n2,3,4\n", encoding="utf-8")
    assert read_run_groups(read_records([tmp_path])) == []
