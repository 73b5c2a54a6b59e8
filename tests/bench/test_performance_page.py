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
SOURCES = {
    number: " ".join(text.split())
    for number, text in re.findall(r"^(\d+)\. (`.+(?:\n   .+)*)$", SUMMARY, re.MULTILINE)
}
"""Number → command or folder, date and commit, figures."""

BENCHED = [row for row in ROWS if row[0].endswith(", images/s")]
RECORDED = [row for row in ROWS if row[0].endswith(", one run")]


def figures_of(row: list[str]) -> dict[int, str]:
    """Depth → cell, without the empty ones."""
    named = dict(zip(TITLES, row, strict=True))
    return {depth: named[title] for title, depth in DEPTHS.items() if named[title] != "–"}


def source_of(row: list[str]) -> tuple[str, str]:
    """The command or folder of a row, and the commit."""
    found = re.match(r"`([^`]+)`.*?; 2\d{3}-\d\d-\d\d, ([0-9a-f]{7})\b", SOURCES[row[-1]])
    assert found, SOURCES[row[-1]]
    return found[1], found[2]


def test_both_begin_with_their_names():
    assert SUMMARY.startswith("# Performance: what training costs\n")
    assert HISTORY.startswith("# Performance: measurements and their history\n")


def test_the_summary_is_one_short_table_with_its_sources():
    assert [*BENCHED, *RECORDED] == ROWS
    assert len(ROWS) > 8
    assert SOURCES.keys() == {row[-1] for row in ROWS}
    assert len(SUMMARY.split()) < 1000


@pytest.mark.parametrize("row", BENCHED, ids=lambda row: f"{row[-1]}: {row[1]}")
def test_measured_figures_are_those_of_the_history(row):
    """A figure is in the section that names the commit, below the command."""
    command, commit = source_of(row)
    (section,) = [part for part in HISTORY.split("\n## ") if f", {commit}" in part[:200]]
    assert command in section
    for depth, speed in figures_of(row).items():
        lines = [other for other in rows_of(section) if other[:2] == [f"ResNet-{depth}", "resvar"]]
        if lines:
            assert speed in lines[0]
            assert {lines[0][-4], lines[0][-2]} <= figures_in(SOURCES[row[-1]])
        else:
            assert re.search(rf"\b{speed} ", section)


def figures_in(text: str) -> set[str]:
    """Numbers as they are in a cell; those of MiB also with the unit."""
    numbers = set(re.findall(r"\d[\d,.]*\d", text))
    return numbers | {f"{number} MiB" for number in numbers}


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: f"{row[-1]}: {row[1]}")
def test_times_are_those_of_the_records(row):
    pattern, commit = source_of(row)
    found = {}
    for folder in ROOT.glob(pattern):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert row[0] == f"`{config['protocol']}`, one run"
        assert commit_of(folder).startswith(commit)
        found[config["depth"]] = duration(seconds_of(folder))
    written = figures_of(row)
    assert written == {depth: found[depth] for depth in written}


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
        assert [*ROOT.glob(name)], name


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
