"""Runs that differ in one or two settings, as one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resvar.console import drawn_text
from resvar.reports.findings import build
from resvar.reports.render import print_report, render_report
from resvar.reports.search import read_records
from resvar.reports.variations import grids
from tests.reports.runs import make_settings, write_run


def write(root: Path, errors: dict[str, list[float]], variant="full-preact", depth=20) -> None:
    """Runs below `root`: the overrides of each, separated by blanks, and a test error a seed."""
    for text, values in errors.items():
        for seed, error in enumerate(values):
            overrides = text.split()
            own = make_settings(variant, depth, seed, "quick", overrides).directory
            write_run(root, variant, depth, seed, error, "quick", overrides, folder=root / own)


def report_on(root: Path):
    return build(read_records([root]))


LRS = {"": [31, 32, 36], "lr=0.05": [41, 43, 48], "lr=0.2": [51, 52, 56], "lr=1": [61, 62]}


@pytest.mark.parametrize("format", ["table", "markdown", "latex", "html"])
def test_values_of_a_setting_are_the_rows_of_one_table(tmp_path, format):
    write(tmp_path, LRS)
    text = render_report(report_on(tmp_path), format, full=True)
    assert text.count("Test error (%) by lr") + text.count(r"Test error (\%) by lr") >= 1
    rows = [line for line in text.splitlines() if "(protocol)" in line]
    assert rows
    assert "0.1 (protocol)" in rows[0]
    for figure in ("32.00", "33.00", "43.00", "44.00", "52.00", "53.00", "61.50"):
        assert figure in text
    grid = text[text.index(") by lr") :]
    at = [grid.index(figure) for figure in ("44.00", "33.00", "53.00", "61.50")]
    assert at == sorted(at), "0.05, 0.1, 0.2, 1"
    if format != "html":
        assert text.count("Every run") == 2, "that of the protocol, and one of all the others"


def test_json_and_csv_have_the_values(tmp_path):
    write(tmp_path, LRS)
    report = report_on(tmp_path)
    (grid,) = json.loads(render_report(report, "json"))["grids"]
    assert grid["settings"] == ["lr"]
    found = {cell["settings"]["lr"]: (cell["n"], cell["median"]) for cell in grid["cells"]}
    assert found == {"0.05": (3, 43), "0.1": (3, 32), "0.2": (3, 52), "1.0": (2, 61.5)}
    assert render_report(report, "csv").count("\nquick (lr=0.05),") == 3


def test_two_settings_cross(tmp_path):
    write(tmp_path, {"": [31], "lr=0.05": [32], "nesterov=true": [33], "lr=0.2": [34]})
    write(tmp_path, {"lr=0.05 nesterov=true": [35]}, depth=56)
    (grid,) = grids(report_on(tmp_path).groups)
    assert grid.names == ("lr", "nesterov")
    (table, _) = grid.tables()
    assert [row[0].text for row in table.rows] == ["0.05", "0.1 (protocol)", "0.2"]
    assert [column.name for column in table.columns[1:]] == [
        f"nesterov = {value} full-preact {depth}"
        for depth, value in ((20, "false"), (20, "true"), (56, "true"))
    ]
    assert [cell.lines[0] for cell in table.rows[0][1:]] == ["median 32.00", "–", "median 35.00"]


def test_three_settings_one_at_a_time_are_tables_with_the_protocol_in_each(tmp_path):
    write(tmp_path, {"": [31], "lr=0.05": [32], "nesterov=true": [33], "crop_padding=2": [34]})
    found = grids(report_on(tmp_path).groups)
    assert {name for grid in found for name in grid.names} == {"lr", "nesterov", "crop_padding"}
    assert all("quick" in {g.label for g in grid.groups.values()} for grid in found)


def test_what_differs_in_more_is_no_grid_and_protocols_never_mix(tmp_path):
    write(tmp_path, {"": [31], "lr=0.05 nesterov=true crop_padding=2": [32]})
    write_run(tmp_path, "full-preact", 20, 0, 7.0, "paper")
    report = report_on(tmp_path)
    assert not grids(report.groups)
    assert render_report(report, "markdown").count("## CIFAR-10") == 3


def test_variants_that_can_be_compared_keep_their_own_part(tmp_path):
    for variant in ("original", "full-preact"):
        write(tmp_path, {"": [31, 32], "lr=0.05": [33, 34]}, variant)
    report = report_on(tmp_path)
    text = render_report(report, "markdown")
    assert len(grids(report.groups)) == 1
    assert text.count("V1 (original) against V2") == 2


def test_unfinished_runs_are_seen(tmp_path):
    write(tmp_path, {"": [31]})
    own = make_settings("full-preact", 20, 0, "quick", ["lr=0.05"]).directory
    write_run(tmp_path, "full-preact", 20, 0, None, "quick", ["lr=0.05"], folder=tmp_path / own)
    (grid,) = grids(report_on(tmp_path).groups)
    assert grid.tables()[0].rows[0][-1].text == "stopped"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tables_fit_the_terminal_and_lose_no_digit(tmp_path, width, monkeypatch):
    for depth in (20, 56, 110):
        write(tmp_path, {f"{text} weight_decay={decay}": [41.25, 43.75]
                         for text in ("lr=0.05", "lr=0.1", "lr=0.2")
                         for decay in ("0.001", "0.0005")}, depth=depth)  # fmt: skip
    report = report_on(tmp_path)

    def draw(console):
        monkeypatch.setattr(type(console), "is_terminal", True)
        monkeypatch.setattr(console, "_width", width, raising=False)
        print_report(report, console, full=True)

    text = drawn_text(draw)
    grid = text.partition("Every run")[0]
    assert max(map(len, grid.splitlines())) <= width
    assert grid.count("42.50 ± 1.77") == 18


def test_a_cell_of_a_grid_says_which_figure_is_the_median(tmp_path):
    write(tmp_path, {f"{lr} weight_decay={decay}": [41.25, 43.75, 47.0]
                     for lr in ("lr=0.05", "lr=0.2") for decay in ("0.001", "0.0005")})  # fmt: skip
    (grid,) = grids(report_on(tmp_path).groups)
    (table,) = grid.error_tables(4)
    assert table.rows[0][1].lines == ["median 43.75", "mean 44.00 ± 2.88", "n = 3"]


def test_runs_that_differ_in_execution_alone_are_told_apart_and_not_refused(tmp_path):
    write(tmp_path, {"": [31, 32], "precision=bf16": [33, 34], "checkpoint_every=7": [35, 36]})
    found = report_on(tmp_path)
    assert {group.label for group in found.groups} == {
        "quick (precision=fp32)", "quick (precision=bf16)",
        "quick (checkpoint_every=7, precision=fp32)",
    }  # fmt: skip
    (grid,) = grids(found.groups)
    assert set(grid.names) == {"precision", "checkpoint_every"}


def test_precision_alone_does_not_separate_runs_of_different_seeds(tmp_path):
    write(tmp_path, {"": [31, 32]})
    write_run(tmp_path, "full-preact", 20, 5, 33.0, "quick", ["precision=bf16"])
    (group,) = report_on(tmp_path).groups
    assert group.label == "quick"
    assert group.cells["full-preact", 20].summary.n == 3
