"""docs/reliability.md: its tests exist, its table of files is complete."""

from __future__ import annotations

import ast
import re

import pytest

from resvar import rundir
from tests.support.commands import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
COMMANDS = sorted(set(re.findall(r"`(?:\w+=\w+ )?python ([^`]+)`", TEXT)))
PARAGRAPHS = [part for part in TEXT.split("\n\n") if part.startswith("**")]


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{file}::{test}" for file, test in NAMED])
def test_every_test_that_it_names_exists(file, test):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_a_test():
    assert len(PARAGRAPHS) > 10
    for promise in PARAGRAPHS:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", promise), promise


def test_every_kind_of_torture_has_its_command():
    assert {command.split()[1] for command in COMMANDS if command.startswith("-m ")} == {
        "tests.long.torture", "tests.long.fuzz", "tests.long.soak",
    }  # fmt: skip


def test_it_says_of_every_file_of_a_run_where_its_format_stands():
    (table,) = re.findall(r"^\| file \| format \|\n(.+?)\n\n", TEXT, re.MULTILINE | re.DOTALL)
    files = [
        value
        for name, value in vars(rundir).items()
        if name.isupper() and isinstance(value, str) and re.fullmatch(r"[\w.]+\.\w+", value)
    ]
    assert len(files) > 8
    for name in (*files, f"{rundir.SNAPSHOTS}/"):
        assert f"`{name}" in table


def test_it_leaves_nothing_open():
    assert not re.search(r"\b(FIG_\w+|TODO|TBD)\b", TEXT)
