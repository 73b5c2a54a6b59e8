"""docs/performance.md and its history: figures match the records, and each other."""

from __future__ import annotations

import csv
import json
import re
from itertools import takewhile

import pytest
import yaml

from resvar.bench.floor import PASSES
from resvar.console import duration
from tests.support.commands import ROOT

SUMMARY = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
HISTORY = (ROOT / "docs" / "performance-history.md").read_text(encoding="utf-8")


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of every table, headings included."""
    lines = re.findall(r"^\| (.+) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


TITLES, *ROWS = rows_of(SUMMARY)
DEPTHS = {title: int(title[7:]) for title in TITLES if title.startswith("ResNet-")}
BENCHED = [row for row in ROWS if row[-1].startswith("`resvar bench ")]
RECORDED = [row for row in ROWS if row not in BENCHED]


def figures_of(row: list[str]) -> dict[int, str]:
    """Depth → cell, without the empty ones."""
    named = dict(zip(TITLES, row, strict=True))
    return {depth: named[title] for title, depth in DEPTHS.items() if named[title] != "–"}


def test_both_begin_with_their_names():
    assert SUMMARY.startswith("# Performance: what training costs\n")
    assert HISTORY.startswith("# Performance: measurements and their history\n")


def test_the_summary_is_one_short_table():
    assert len(BENCHED) >= 4
    assert len(RECORDED) >= 6
    assert len(SUMMARY.split()) < 1000


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[-1]}")
def test_every_row_has_a_date_and_a_commit(row):
    assert re.fullmatch(r"2\d{3}-\d\d-\d\d, [0-9a-f]{7}", row[TITLES.index("recorded, commit")])


@pytest.mark.parametrize("row", BENCHED, ids=lambda row: f"{row[0]} {row[-1]}")
def test_measured_figures_are_those_of_the_history(row):
    command = row[-1].strip("`")
    assert command in HISTORY
    for depth, cell in figures_of(row).items():
        speed, ratio = re.fullmatch(r"([\d,]+) \(([\d.]+)\)", cell).groups()
        lines = [other for other in rows_of(HISTORY) if other[0] == f"ResNet-{depth}"]
        prose = re.search(rf"\b{speed}( images/s)? \({ratio} ×", HISTORY)
        assert prose or any(speed in other and ratio in other for other in lines), (depth, cell)


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: f"{row[0]} {row[-1]}")
def test_times_are_those_of_the_records(row):
    folder = ROOT / row[-1].strip("`")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    ((depth, cell),) = figures_of(row).items()
    assert row[0] == f"`{config['protocol']}`, {config['variant']}"
    assert (depth, cell) == (config["depth"], duration(seconds_of(folder)))
    assert row[TITLES.index("recorded, commit")].endswith(commit_of(folder)[:7])


def seconds_of(folder):
    """From `result.json`, or where a record lacks it from the last row of its metrics."""
    if (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))["seconds"]
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return float([*csv.DictReader(file)][-1]["seconds"])


def commit_of(folder):
    """Of the training code."""
    name = "result.json" if (folder / "result.json").exists() else "environment.json"
    return json.loads((folder / name).read_text(encoding="utf-8"))["commit"]


@pytest.mark.parametrize("page", [SUMMARY, HISTORY], ids=["summary", "history"])
def test_every_record_that_they_name_exists(page):
    for name in re.findall(r"`((?:results|docs/runs)/[^`]+)`", page):
        assert (ROOT / name).exists(), name


def test_every_section_of_the_history_names_its_machine_and_its_date():
    sections = HISTORY.split("\n## ")[2:]
    assert len(sections) >= 10
    for section in sections:
        title, _, first, *_ = section.splitlines()
        assert first.startswith("*"), title
        opening = " ".join(takewhile(bool, section.splitlines()[2:]))
        assert re.search(r"Machine|H200|EPYC|environment\.json", opening), title
        assert re.search(r"20\d\d-|dates in the table|result\.json", opening), title


@pytest.mark.parametrize(
    ("row", "kind"),
    [("BN and the ReLU after it", "bn relu"), ("BN alone", "bn"), ("ReLU alone", "relu"),
     ("addition", "addition")],
)  # fmt: skip
def test_the_passes_are_those_that_are_counted(row, kind):
    (cells,) = re.findall(rf"^\| {row} \|(.+)\|$", HISTORY, re.MULTILINE)
    for way, cell in zip(PASSES, cells.split("|"), strict=True):
        stated = [int(number) for number in re.findall(r"\d+", cell)]
        assert sum(stated) == sum(PASSES[way][kind])
