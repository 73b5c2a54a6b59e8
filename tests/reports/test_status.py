"""What `resvar status` prints: a row per run, and of many finished ones a row per cell."""

from __future__ import annotations

import pytest

from resvar.cli import run_command
from resvar.reports import status
from tests.reports.runs import how_far, write_run


@pytest.fixture
def shown(tmp_path, capsys):
    """The rows of the tables, split at two spaces, and the sentences below."""

    def run():
        assert run_command(["status", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [[word.strip() for word in line.split("  ") if word.strip()] for line in lines]

    return run


def test_finished_runs_have_rows_with_their_test_errors(tmp_path, shown):
    write_run(tmp_path, "original", 110, 0, 6.61)
    write_run(tmp_path, "full-preact", 110, 3, 6.375)
    assert shown() == [
        ["run", "state", "iteration", "test error %", "time"],
        ["─" * 68],
        ["quick/full-preact-110/seed-3", "done", "400", "6.38", "1:02 h"],
        ["quick/original-110/seed-0", "done", "400", "6.61", "1:02 h"],
        [],
        ["2 runs: 2 done."],
    ]


def test_an_unfinished_run_has_a_row_beside_them(tmp_path, shown):
    write_run(tmp_path, "original", 110, 0, 6.61)
    write_run(tmp_path, "original", 110, 1, None, progress=how_far(123))
    rows = shown()
    assert rows[3][:4] == ["quick/original-110/seed-1", "stopped", "123 / 400", "–"]
    nothing = "2 runs: 1 done, 1 stopped. Nothing is running; rerun the command to"
    assert rows[5][0].startswith(f"{nothing} start.")
    (tmp_path / "quick/original-110/seed-1/checkpoint.pt").touch()
    assert shown()[5][0].startswith(f"{nothing} resume.")


def test_many_finished_runs_are_summarised_by_cell(tmp_path, shown, monkeypatch):
    monkeypatch.setattr(status, "MOST", 4)
    for seed, error in enumerate((6.6, 6.4, 6.5, 6.9)):
        write_run(tmp_path, "original", 110, seed, error)
    write_run(tmp_path, "original", 20, 0, 8.75, folder=tmp_path / "by hand")
    write_run(tmp_path, "original", 110, 4, None)
    rows = shown()
    assert rows[:2] == [
        ["test error %,", "lowest to", "time"],
        ["cell", "done", "median", "highest", "a run"],
    ]
    assert rows[3:5] == [
        ["by hand", "1", "8.75", "8.75 to 8.75", "1:02 h"],
        ["quick/original-110", "4", "6.55", "6.40 to 6.90", "1:02 h"],
    ]
    assert ["quick/original-110/seed-4", "stopped"] in rows


def test_equal_reasons_share_a_note(tmp_path, shown):
    for seed in range(5):
        write_run(tmp_path, seed=seed, test_error=None, failure={"message": "the disk is full"})
    names = ", ".join(f"quick/original-110/seed-{seed}" for seed in range(3))
    assert [f"{names} and 2 more failed: the disk is full"] in shown()
