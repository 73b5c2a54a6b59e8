"""What the commands share when they speak to a person."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resvar.cli import run_command
from resvar.console import output_format, pluralize
from resvar.errors import UserError
from tests.reports.runs import write_run


@pytest.mark.parametrize(("count", "words"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs")])
def test_one_run_and_two_runs(count, words):
    assert pluralize(count, "run") == words


# --- the format of --out --------------------------------------------------------------------------

EVERY = ("table", "markdown", "csv", "latex", "html", "json")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("x.txt", "table"), ("x.md", "markdown"), ("x.csv", "csv"), ("x.tex", "latex"),
        ("x.html", "html"), ("x.HTM", "html"), ("x.json", "json"), ("x", "table"),
        (".json", "table"),
    ],
)  # fmt: skip
def test_the_suffix_decides_the_format(tmp_path, name, format):
    assert output_format(tmp_path / name, None, EVERY) == format
    assert output_format(tmp_path / name, format, EVERY) == format
    assert output_format(None, format, EVERY) == format
    assert output_format(None, None, EVERY) == "table"


def test_format_decides_where_the_suffix_says_nothing(tmp_path):
    for name in ("x", "x.log", "report.v2"):
        assert output_format(tmp_path / name, "json", EVERY) == "json"
    assert output_format(Path("/dev/null"), "csv", EVERY) == "csv"


@pytest.mark.parametrize(
    ("name", "format", "known", "message"),
    [
        ("x.html", "json", EVERY, "x.html: .html means html, which contradicts --format json"),
        ("x.json", "table", EVERY, "x.json: .json means json, which contradicts --format table"),
        ("x.pdf", None, EVERY, "does not write .pdf; use .txt, .md, .csv, .tex, .html, .json or"),
        ("x.html", None, ("table", "json"), "does not write .html; use .txt, .json."),
        ("x.html", "table", ("table", "json"), "does not write .html; use .txt, .json."),
        ("no/x.html", None, EVERY, "there is no folder"),
        ("", None, EVERY, "this is a folder"),
    ],
)
def test_a_contradiction_is_refused_in_a_sentence(tmp_path, name, format, known, message):
    with pytest.raises(UserError) as caught:
        output_format(tmp_path / name, format, known)
    assert str(caught.value).startswith("--out ")
    assert message in str(caught.value)


@pytest.mark.parametrize("command", ["report", "evaluate", "probe", "show", "bench"])
def test_every_command_refuses_a_contradiction_before_it_works(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    write_run(Path(), test_error=None)
    source = {"report": ["quick"], "evaluate": ["quick/original-110/seed-0"], "probe": ["quick"]}
    before = sorted(os.walk("."))
    for more in (["--format", "table", "--out", "x.json"], ["--out", "x.jpg"], ["--out", "no/x"]):
        if command == "bench" and "--format" in more:
            more = ["--json", "--out", "x.txt"]
        assert run_command([command, *source.get(command, []), *more]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert said.err.startswith("resvar: error: --out ")
    assert sorted(os.walk(".")) == before
