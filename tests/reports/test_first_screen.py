"""The first screen: the question, the test errors, the verdicts and what is missing; no more."""

from __future__ import annotations

import io
import math

import pytest

import resvar
from resvar.cli import run_command
from resvar.console import PlainConsole
from resvar.models.ordering import PAPER_ORDER
from resvar.reports.findings import build
from resvar.reports.render import print_report, render_report
from resvar.reports.search import read_records
from tests.reports.runs import how_far, write_run

SCREEN = 24
"""Lines of a terminal of 80 columns."""


def first_screen_of(root, width=80, full=False):
    console = PlainConsole(
        file=io.StringIO(), width=width, force_terminal=True, color_system=None,
        legacy_windows=False,
    )  # fmt: skip
    print_report(build(read_records([root])), console, full)
    return console.file.getvalue()


def ten_cells(root, protocol="paper", seeds=5):
    for rank, variant in enumerate(PAPER_ORDER):
        for depth in (110, 164):
            for seed in range(seeds):
                error = round(8 - rank / 5 - depth / 100 + seed / 7, 2)
                write_run(root, variant, depth, seed, error, protocol)


def every_kind_of_loss(root, protocol="paper"):
    """Stopped, diverged, failed, damaged, and one without settings."""
    write_run(root, seed=5, test_error=None, protocol=protocol, progress=how_far(12))
    for seed in (6, 7):
        write_run(root, seed=seed, test_error=None, protocol=protocol,
                  failure={"message": "NaN", "diverged": True})  # fmt: skip
    write_run(root, depth=164, seed=5, test_error=None, protocol=protocol,
              failure={"message": "no space"})  # fmt: skip
    write_run(root, depth=164, seed=6, protocol=protocol, changes={"test_error": math.nan})
    (root / "seed-9").mkdir()
    (root / "seed-9" / "result.json").write_text("{", encoding="utf-8")


def test_ten_cells_of_the_papers_protocol_take_one_screen(tmp_path):
    ten_cells(tmp_path)
    every_kind_of_loss(tmp_path)
    text = first_screen_of(tmp_path)
    lines = text.splitlines()
    assert len(lines) <= SCREEN
    assert lines[0] == "Where should BatchNorm and ReLU go?"
    table = [line.split() for line in lines if line.startswith(PAPER_ORDER)]
    assert [row[0] for row in table] == list(PAPER_ORDER)
    # 8 - 1.1 + (0, 1, 2, 3, 4) / 7: median, sd, finished of known, the paper's
    assert table[0][2:] == ["7.19", "0.23", "5", "of", "8", "6.61",
                            "6.65", "0.23", "5", "of", "7", "5.93"]  # fmt: skip
    told = " ".join(text.split())
    (group,) = build(read_records([tmp_path])).groups
    for pair in group.v1_v2:
        assert pair.sentence in told
    assert "resvar report --full shows every run" in lines[-2] + lines[-1]
    assert "Every run" not in text
    assert "paper: median of 5 runs" in told


def test_no_lost_run_is_missing_on_the_first_screen(tmp_path):
    every_kind_of_loss(tmp_path)
    told = " ".join(first_screen_of(tmp_path).split())
    assert "Missing: 10 of 10 cells have no finished run; 1 run stopped, 2 diverged, 1 failed." in (
        told
    )
    assert "unreadable or incomplete: 2 runs damaged." in told


@pytest.mark.heavy
def test_full_shows_the_rest_and_both_say_the_same_in_a_pipe_and_from_python(tmp_path, capsys):
    ten_cells(tmp_path, seeds=2)
    assert "Every run" in first_screen_of(tmp_path, full=True)
    printed = []
    for full in (False, True):
        assert run_command(["report", str(tmp_path), *["--full"] * full]) == 0
        printed.append(capsys.readouterr().out)
        resvar.report(tmp_path, full=full)
        assert capsys.readouterr().out == printed[-1]
        out = tmp_path / "report.txt"
        assert run_command(["report", str(tmp_path), "--out", str(out), *["--full"] * full]) == 0
        capsys.readouterr()
        assert out.read_text(encoding="utf-8").split() == printed[-1].split()
    short, full = printed
    assert "Compared with original" in full
    assert "Compared with original" not in short
    assert len(short.splitlines()) <= SCREEN


@pytest.mark.parametrize("format", ["markdown", "latex", "csv", "json", "html"])
def test_other_formats_are_always_full(tmp_path, format):
    ten_cells(tmp_path, seeds=1)
    report = build(read_records([tmp_path]))
    assert render_report(report, format) == render_report(report, format, full=True)


def test_markdown_begins_with_the_question_the_errors_the_verdicts_and_what_is_missing(tmp_path):
    ten_cells(tmp_path, seeds=2)
    write_run(tmp_path, seed=5, test_error=None, protocol="paper", progress=how_far(12))
    text = render_report(build(read_records([tmp_path])), "markdown")
    parts = ["# Where should", "## CIFAR-10", "### Test error", "### V1 ", "Missing: 1 run stopped",
             "### Where BN", "### Compared with original", "### Every run"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_the_papers_protocol_first_then_the_longer_ones(tmp_path):
    ten_cells(tmp_path, "quick", seeds=1)
    write_run(tmp_path, "full-preact", 20, 0, 9.0, "short")
    write_run(tmp_path, "original", 110, 0, 6.6, "paper")
    text = first_screen_of(tmp_path)
    places = [text.index(f"protocol {name}") for name in ("paper", "short", "quick")]
    assert places == sorted(places)
    paper, short, quick = text.split("CIFAR-10, ")[1:]
    assert "bn-after-add" in paper, "a missing cell of the first group"
    assert "(not comparable)" not in text
    assert quick.count("not comparable with the") == 1
    assert "ResNet-110 and ResNet-164: interim, no verdict" in quick
    assert "bn-after-add" not in short, "variants without a run"


def test_many_groups_take_a_line_and_the_rest_is_counted(tmp_path):
    """Groups that a grid can show share its line."""
    for number in range(20):
        for variant in ("original", "full-preact"):
            where = tmp_path / f"{variant}-{number}" / "seed-0"
            write_run(tmp_path, variant, 20, 0, 9.0 + number, "quick", [f"lr=0.{number + 1:02}"],
                      folder=where)  # fmt: skip
    ten_cells(tmp_path, "paper", seeds=1)
    lines = first_screen_of(tmp_path, 120).splitlines()
    assert len(lines) <= SCREEN
    assert lines[-2] == (
        "CIFAR-10, protocol quick: lr varied: 40 runs done; medians 9.00 to 28.00 %; V1 and V2: "
        "interim."
    )


def test_what_no_grid_shows_is_counted(tmp_path):
    failure = {"message": "NaN", "diverged": True}
    for number in range(11):  # every one differs from every other in three settings
        sets = [f"{name}=0.{number + 1:02}" for name in ("lr", "weight_decay", "momentum")]
        write_run(tmp_path, "original", 20, 0, 9.0 + number, "quick", sets,
                  folder=tmp_path / f"{number}" / "seed-0")  # fmt: skip
        write_run(tmp_path, "original", 20, 1, None, "quick", sets,
                  folder=tmp_path / f"{number}" / "seed-1", failure=failure)  # fmt: skip
    lines = first_screen_of(tmp_path, 120).splitlines()
    assert sum("1 run done, 1 diverged; test error" in line for line in lines) == 8
    assert sum(line.startswith("original (V1)") for line in lines) == 1, "of the first group"
    assert lines[-2].startswith("2 further groups of settings: 2 runs done, 2 diverged; medians")


def test_a_depth_without_published_figures_has_no_column_for_them(tmp_path):
    write_run(tmp_path, "full-preact", 8, 0, 54.0)
    for full in (False, True):
        lines = first_screen_of(tmp_path, 100, full).splitlines()
        header = next(line for line in lines if line.startswith("variant"))
        assert "median" in header
        assert "paper" not in header


def test_a_search_of_settings_shows_its_grid(tmp_path):
    for value in ("0.05", "0.2"):
        write_run(tmp_path, "full-preact", 20, 0, 50.0, "quick", [f"lr={value}"],
                  folder=tmp_path / value / "seed-0")  # fmt: skip
    text = first_screen_of(tmp_path)
    assert "Test error (%) by lr" in text
    assert "Every run" not in text


def test_nothing_readable_is_said_too(tmp_path):
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "result.json").write_text("{", encoding="utf-8")
    lines = first_screen_of(tmp_path).splitlines()
    assert lines[0].startswith("Where should")
    assert "1 run damaged." in lines[1]
