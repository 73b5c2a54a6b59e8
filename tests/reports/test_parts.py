"""`--what`: parts of a report, in the formats that can render them."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import matplotlib
import pytest
from matplotlib.ft2font import FT2Font

import resvar
from resvar.api import ReportFormat, ReportPart
from resvar.cli import run_command
from resvar.cli.completion import complete_report_part
from resvar.models.ordering import PAPER_ORDER
from resvar.reports.findings import build
from resvar.reports.render import RENDERERS, REPORT_PARTS, render_report
from resvar.reports.search import read_records
from tests.reports.runs import how_far, write_run

TITLES = {
    "table": "Test error (%), ResNet-110",
    "verdicts": "V1 (original) against V2",
    "comparisons": "Compared with original",
    "runs": "Every run",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for depth in (110, 164):
        for seed in range(3):
            for rank, variant in enumerate(("original", "bn-after-add", "full-preact")):
                error = round(7 + rank / 3 - depth / 100 + seed / 7, 2)
                write_run(root, variant, depth, seed, error, "paper")
    write_run(root, seed=5, test_error=None, protocol="paper", progress=how_far(12))
    write_run(root, "full-preact", 20, 0, 11.0, "quick", ["lr=0.05"], folder=root / "a")
    write_run(root, "full-preact", 20, 0, 12.0, "quick", ["lr=0.2"], folder=root / "b")
    return root


@pytest.fixture(scope="module")
def report(runs):
    return build(read_records([runs]))


def lines_of(report, part):
    return list(csv.DictReader(io.StringIO(render_report(report, "csv", what=(part,)))))


def test_the_choices_are_those_of_the_renderers():
    assert get_args(ReportFormat) == tuple(RENDERERS)
    assert get_args(ReportPart) == tuple(REPORT_PARTS)
    assert complete_report_part("table,ver") == ["table,verdicts"]


@pytest.mark.parametrize("format", ["table", "markdown"])
@pytest.mark.parametrize("what", [("table",), ("verdicts",), ("comparisons", "runs")])
def test_only_the_chosen_parts_are_shown(report, format, what):
    text = render_report(report, format, what=what).replace("\\", "")
    assert {part for part, title in TITLES.items() if title in text} == set(what)
    assert "Missing: 4 of 10 cells have no finished run; 1 run stopped." in text


def test_what_there_is_not_is_said(tmp_path):
    write_run(tmp_path)
    report = build(read_records([tmp_path]))
    for format in ("table", "markdown", "latex"):
        text = render_report(report, format, what=("comparisons",))
        assert "These runs have no comparisons." in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--what", "verdict"], "unknown part of a report 'verdict'; did you mean 'verdicts'?"),
        (["--what", "xyz"], "choose from table, verdicts, comparisons, runs."),
        (["--what", "table,"], "unknown part of a report ''"),
        (["--what", "runs", "--format", "html"], "--what is not for html"),
        (["--what", "runs", "--format", "json"], "--what is not for json"),
        (["--what", "runs,table", "--format", "csv"], "CSV has one table; choose one part."),
        (["--what", "runs", "--watch", "--out", "page.html"], "--what is not for html"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(runs, options, sentence, capsys):
    assert run_command(["report", str(runs), *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_a_file_and_python_take_parts_too(runs, tmp_path):
    files = tmp_path / "a.tex", tmp_path / "b.tex"
    run_command(["report", str(runs), "--what", "table", "--out", str(files[0])])
    resvar.report(runs, out=files[1], what=["table"])
    for out in files:
        assert out.read_text(encoding="utf-8").count(r"\begin{table}") == 2


# --- CSV ------------------------------------------------------------------------------------------


def leaves(data):
    """The values of JSON that are neither a list nor an object."""
    if isinstance(data, dict):
        data = list(data.values())
    return [leaf for item in data for leaf in leaves(item)] if isinstance(data, list) else [data]


@pytest.mark.parametrize(
    ("part", "key"), [("comparisons", "comparisons"), ("verdicts", "verdicts"), ("table", "cells")]
)
def test_csv_has_a_line_per_entry_with_every_field_of_the_json(report, part, key):
    groups = json.loads(render_report(report, "json"))["groups"]
    entries = [(group, entry) for group in groups for entry in group[key]]
    lines = lines_of(report, part)
    assert len(lines) == len(entries) > 0
    for line, (group, entry) in zip(lines, entries, strict=True):
        assert (line["label"], line["dataset"]) == (group["label"], group["dataset"])
        told = " ".join(line.values())
        for leaf in leaves(entry):
            assert leaf is None or str(leaf).lower() in told.lower(), (leaf, line)
        for name in entry:
            assert any(column.startswith(name) for column in line), name


def test_pairs_have_two_columns_and_the_columns_do_not_depend_on_the_runs(report, tmp_path):
    line = lines_of(report, "comparisons")[0]
    assert float(line["interval_low"]) < float(line["difference"]) < float(line["interval_high"])
    assert (line["n_baseline"], line["n_variant"]) == ("3", "3")
    write_run(tmp_path, "original", 8)
    write_run(tmp_path, "full-preact", 8)
    other = build(read_records([tmp_path]))
    for part in ("comparisons", "verdicts", "table"):
        assert list(lines_of(other, part)[0]) == list(lines_of(report, part)[0])


def test_runs_are_the_default_of_csv(report):
    assert render_report(report, "csv") == render_report(report, "csv", what=("runs",))


# --- LaTeX ----------------------------------------------------------------------------------------


def test_the_main_table_is_one_float_for_both_depths(report):
    text = render_report(report, "latex", what=("table",))
    floats = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert len(floats) == 2, "the paper's protocol, and the grid"
    assert r"\caption{CIFAR-10, protocol paper. Test error (\%)}" in floats[0]
    assert r"\label{tab:resvar-cifar-10-protocol-paper-test-error}" in floats[0]
    # 7 - 1.1 + (0, 1, 2) / 7, and 0.54 less; sd 0.145
    assert "original (V1) & 6.04 & 0.15 & 3 of 4 & 6.61 & 5.50 & 0.15 & 3 & 5.93" in floats[0]
    assert "paper: median of 5 runs" in floats[0]
    assert "Compared with" not in text


def test_every_table_has_a_label_of_its_own(report, tmp_path):
    for seed in range(45):  # more rows than a page has
        write_run(tmp_path, seed=seed)
    for made in (report, build(read_records([tmp_path]))):
        text = render_report(made, "latex")
        labels = re.findall(r"\\label\{(tab:resvar-[a-z0-9-]+)\}", text)
        assert len(set(labels)) == text.count(r"\begin{table}") > 3


COLUMN = 345
"""Points: the width of an `article`'s text."""


def width_of(table):
    """The width of a LaTeX table in points, by Computer Modern's letters at 7 points."""
    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts/ttf/cmr10.ttf"))
    font.set_size(7 * 1.14, 72)  # cmr7 is that much wider than cmr10 at 7 points

    def points(text):
        plain = re.sub(r"\\[a-z]+\{\}|[${}]|\\(?:pm|textbf|addlinespace)\b ?|\\", "", text)
        font.set_text(plain.strip())
        return font.get_width_height()[0] / 64

    form = re.search(r"\\begin\{tabular\}\{(.*)\}\n\\toprule", table)[1]
    columns = re.findall(r"p\{(0\.\d+)\\linewidth\}|([lr])", form)
    body = re.sub(r"\\begin\{tabular\}\[[tb]\]\{@\{\}[lr]@\{\}\}|\\end\{tabular\}", "", table)
    rows = body[body.index(r"\toprule") :].split("\n")
    cells = [row.removesuffix(r"\\").split(" & ") for row in rows if " & " in row]
    assert {len(row) for row in cells} == {len(columns)}
    widths = [
        float(share) * COLUMN if share
        else max(points(line) for row in cells for line in row[n].split(r" \\ "))
        for n, (share, _) in enumerate(columns)
    ]  # fmt: skip
    return sum(widths) + 6 * (len(widths) - 1)  # \tabcolsep is 3 points


@pytest.mark.parametrize("what", [(), ("table",)])
def test_tables_fit_the_column_of_an_article(tmp_path, what):
    """As far as that can be computed without LaTeX."""
    for depth in (110, 164):
        for seed in range(2):
            for rank, variant in enumerate(PAPER_ORDER):
                write_run(tmp_path, variant, depth, seed, 7 + rank / 3 + seed / 7, "paper")
    write_run(tmp_path, seed=5, test_error=None, protocol="paper", progress=how_far(12_345, 64_000))
    damaged = write_run(tmp_path, seed=6, folder=tmp_path / ("long-name-" * 9) / "seed-6")
    (damaged / "result.json").write_text("{", encoding="utf-8")
    text = render_report(build(read_records([tmp_path])), "latex", what=what)
    floats = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert floats
    for table in floats:
        assert width_of(table) < COLUMN, re.search(r"\\caption.*", table)[0]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_the_main_table_fits_the_column_of_an_article(report, tmp_path):
    text = render_report(report, "latex", what=("table",))
    (tmp_path / "table.tex").write_text(text, encoding="utf-8")
    (tmp_path / "page.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table}\end{document}",
        encoding="utf-8",
    )
    command = ["pdflatex", "-interaction=nonstopmode", "page"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
