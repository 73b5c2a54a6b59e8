"""README.md, results/report.md and docs/why.md contain what the records in results/ give."""

from __future__ import annotations

import json
import re
import statistics

import pytest
import refresh_results
import why_tables

from resvar.reports.findings import build
from resvar.reports.search import read_records
from tests.reports.runs import write_run
from tests.support.commands import ROOT

TABLE_2 = {
    "original": (6.61, 5.93),
    "bn-after-add": (8.17, 6.50),
    "relu-before-add": (7.84, 6.14),
    "relu-only-preact": (6.71, 5.91),
    "full-preact": (6.37, 5.46),
}
"""Of arXiv:1603.05027: 110 and 164 layers."""

README = refresh_results.README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report():
    return refresh_results.read_report()


@pytest.mark.heavy
def test_the_block_of_the_readme_is_that_of_the_records(report):
    block = README.split(refresh_results.BEGIN + "\n")[1].split(refresh_results.END)[0]
    assert block == refresh_results.readme_block(report)


def test_the_report_is_that_of_the_records(report):
    text = (refresh_results.RESULTS / "report.md").read_text(encoding="utf-8")
    assert text.split("\n## Figures\n")[0] == refresh_results.report_text(report)


def test_the_table_of_the_readme_has_the_median_of_our_runs_and_the_published_one():
    rows = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| ")]
    shown = {row[0].split()[0]: row[1:] for row in rows if row[0].split()[0] in TABLE_2}
    assert list(shown) == list(TABLE_2)
    for variant, (ours_110, theirs_110, ours_164, theirs_164) in shown.items():
        assert (float(theirs_110), float(theirs_164)) == TABLE_2[variant]
        for depth, ours in ((110, ours_110), (164, ours_164)):
            runs = (ROOT / "results" / "short" / f"{variant}-{depth}").glob("seed-*/result.json")
            errors = [json.loads(run.read_text("utf-8"))["test_error"] for run in runs]
            expected = f"{statistics.median(errors):.2f} ({len(errors)})" if errors else "–"
            assert ours == expected


def test_the_readme_has_the_table_with_the_most_cells_but_never_the_smoke_test(tmp_path):
    write_run(tmp_path, "original", 110, 0, 10.0, "short")
    for variant in TABLE_2:
        write_run(tmp_path, variant, 110, 0, 60.0, "quick")
    assert headline_of(tmp_path) == "short"
    write_run(tmp_path, "original", 110, 0, 6.6, "paper")
    assert headline_of(tmp_path) == "paper"
    write_run(tmp_path, "full-preact", 164, 0, 9.0, "short")
    assert headline_of(tmp_path) == "short"


def headline_of(folder):
    return refresh_results.headline(build(read_records([folder]))).label


def test_the_page_of_the_results_has_the_errors_of_the_records_in_their_order():
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"- ResNet-(\d+), median \(n\): ([^%]+) %", " ".join(page.split()))
    assert [depth for depth, _ in found] == ["110", "164"]
    for depth, shown in found:
        errors = {}
        for variant in TABLE_2:
            runs = (ROOT / "results" / "short" / f"{variant}-{depth}").glob("seed-*/result.json")
            each = [json.loads(run.read_text("utf-8"))["test_error"] for run in runs]
            if each:
                errors[variant] = statistics.median(each), len(each)
        ranked = sorted(errors.items(), key=lambda item: item[1][0])
        assert shown == ", ".join(f"{name} {error:.2f} ({n})" for name, (error, n) in ranked)


def test_the_readme_shows_no_figure_of_the_smoke_test():
    assert "quick-" not in README
    for record in (ROOT / "results" / "quick").rglob("result.json"):
        assert f"{json.loads(record.read_text('utf-8'))['test_error']:.2f}" not in README


def test_the_tables_of_why_are_those_of_the_records():
    text = why_tables.PAGE.read_text(encoding="utf-8")
    block = text.split(why_tables.BEGIN + "\n")[1].split(why_tables.END)[0]
    assert block == why_tables.tables()
