"""docs/residual-networks.md: its figures, outputs and numbers are those of the programs."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import statistics
import sys
from pathlib import Path

import pytest

from resvar.cli import run_command
from resvar.console import PlainConsole
from resvar.strict_yaml import read_yaml
from tests.support.commands import ROOT

PAGE = ROOT / "docs" / "residual-networks.md"
TEXT = PAGE.read_text(encoding="utf-8")
WHY = (ROOT / "docs" / "why.md").read_text(encoding="utf-8")
FIGURES = re.findall(r"^!\[[^]]+\]\(([^)]+)\)\n\n\*Drawn by `([^`]+)`", TEXT, re.MULTILINE)
TRANSCRIPTS = re.findall(r"^```console\n\$ ([^\n]+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
NETWORKS = read_yaml(PAGE.with_suffix("") / "timeline.yaml")["networks"]


def run_typed(command, monkeypatch, **changed):
    """Run a command as typed in the root folder, in a terminal of 80 columns; replace arguments."""
    program, *words = shlex.split(command)
    words = [changed.get(word, word) for word in words]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(
        "resvar.console.console_for_output",
        lambda **more: PlainConsole(width=80, force_terminal=True, color_system=None, **more),
    )
    if program == "resvar":
        assert run_command(words) == 0
    else:
        assert program == "python"
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.mark.parametrize(("figure", "command"), FIGURES, ids=[name for name, _ in FIGURES])
def test_each_figure_is_what_its_command_draws(figure, command, monkeypatch, tmp_path):
    drawn = tmp_path / Path(figure).name
    if command.startswith("python "):
        run_typed(f"{command} --out {tmp_path}", monkeypatch)
    else:
        run_typed(command, monkeypatch, **{f"docs/{figure}": str(drawn)})
    assert drawn.read_text("utf-8") == (PAGE.parent / figure).read_text("utf-8")


def test_every_figure_of_the_page_has_a_command_and_every_file_is_shown():
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT)
    assert [figure for figure, _ in FIGURES] == shown
    drawn = {f"residual-networks/{path.name}" for path in PAGE.with_suffix("").glob("*.svg")}
    assert drawn == set(shown) - {"orderings.svg"}


@pytest.mark.heavy
@pytest.mark.parametrize(("command", "shown"), TRANSCRIPTS, ids=[cmd for cmd, _ in TRANSCRIPTS])
def test_what_the_page_shows_is_what_the_command_prints(command, shown, monkeypatch, capsys):
    """Each part between two "…" is in the output, line after line, and in this order."""
    capsys.readouterr()
    run_typed(command, monkeypatch)
    printed = lines_of(capsys.readouterr().out)
    parts = [lines_of(part) for part in re.split(r"^…$", shown, flags=re.MULTILINE)]
    at = 0
    for part in parts:
        starts = [n for n in range(at, len(printed)) if printed[n : n + len(part)] == part]
        assert starts, part
        at = starts[0] + len(part)
    if len(parts) == 1:
        assert at == len(printed)


def lines_of(text):
    """Lines without spaces at the ends, empty ones, and the digits of rounding errors."""
    text = re.sub(r"\b\d+e-1\d", "?e-1?", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_every_test_that_the_page_names_exists():
    calls = re.findall(r"`\.venv/bin/pytest (\S+\.py)(?: -k (\w+))?`", TEXT)
    assert len(calls) == len(re.findall(r"`\.venv/bin/pytest ", TEXT)) >= 5
    for file, words in calls:
        names = re.findall(r"^def (test_\w+)", (ROOT / file).read_text("utf-8"), re.MULTILINE)
        assert any(words in name for name in names), (file, words)


def test_the_formulas_are_equations_1_to_8_in_order():
    blocks = re.findall(r"^\$\$\n(.+?)\n\$\$$", TEXT, re.MULTILINE | re.DOTALL)
    numbers = [number for block in blocks for number in re.findall(r"\\qquad \((\d)\)$", block)]
    assert numbers == list("12345678")
    checked = re.findall(r"^\| ([()\d, to]+) \|", TEXT, re.MULTILINE)
    assert {number for cell in checked for number in all_between(cell)} == set(range(1, 9))


def all_between(cell):
    first, *others = map(int, re.findall(r"\d", cell))
    return range(first, others[-1] + 1) if " to " in cell else [first, *others]


def test_the_published_errors_are_those_of_the_data_file():
    published = {}
    for table in read_yaml(ROOT / "configs" / "published.yaml")["tables"]:
        if table["dataset"] == "cifar10":
            for variant, errors in table["test_error"].items():
                published.setdefault(variant, {}).update(errors)
    rows = re.findall(r"^\| \([a-e]\) \| (\S+)(?: \(V\d\))? \| (\S+) \| (\S+) \|$", TEXT, re.M)
    assert len(rows) == 5
    for variant, at_110, at_164 in rows:
        assert published[variant][110] == float(at_110)
        assert published[variant][164] == float(at_164)
    assert f"{published['original'][1001]} % for (a), {published['full-preact'][1001]} %" in TEXT
    difference = published["relu-only-preact"][110] - published["original"][110]
    assert f"differences of {difference:.2f}" in TEXT


def test_our_errors_are_those_of_the_records():
    """Median (n) of each cell, or – where no run is finished."""
    rows = re.findall(r"^\| ResNet-(110|164) \| (.+) \|$", TEXT, re.MULTILINE)
    assert [depth for depth, _ in rows] == ["110", "164"]
    variants = ("original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact")
    for depth, cells in rows:
        for variant, shown in zip(variants, cells.split(" | "), strict=True):
            runs = (ROOT / "results" / "short" / f"{variant}-{depth}").glob("seed-*/result.json")
            records = [json.loads(run.read_text("utf-8")) for run in runs]
            errors = [record["test_error"] for record in records]
            assert {record["iterations"] for record in records} <= {3910}
            assert shown == (f"{statistics.median(errors):.2f} ({len(errors)})" if errors else "–")


def test_the_page_concludes_what_the_measurements_do():
    """Both reasons are open. A change of either page must be made on the other, too."""
    measured = WHY.split("## Why (e) wins")[1].split("\n## ")[0]
    told = TEXT.split("### Why does (e) win?")[1]
    assert "so it is inconclusive" in measured
    assert "data are inconclusive" in measured
    assert told.count("**inconclusive**") == 2
    assert "(residual-networks.md" in WHY
    assert "(why.md#why-e-wins)" in told


def test_the_time_line_is_in_order_and_every_entry_has_a_source():
    drawing = (PAGE.with_suffix("") / "timeline.svg").read_text(encoding="utf-8")
    assert [entry["year"] for entry in NETWORKS] == sorted(entry["year"] for entry in NETWORKS)
    for entry in NETWORKS:
        assert set(entry) <= {"year", "network", "layers", "error", "new", "source"}
        assert re.search(r"(section|Tables?|abstract)\b", entry["source"]), entry
        for key in {"year", "network", "layers", "error", "new"} & set(entry):
            assert f">{entry[key]}</text>" in drawing
