"""docs/performance.md: its commands exist, and the passes it states are those that are counted."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from resvar.bench.floor import PASSES
from resvar.cli import app
from tests.support.commands import ROOT

TEXT = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
TYPED = re.findall(r"`(resvar [^`]+)`", TEXT) + re.findall(r"^    (resvar .+)$", TEXT, re.MULTILINE)
COMMANDS = sorted({" ".join(found.split()) for found in TYPED})


def test_it_begins_with_its_name():
    assert TEXT.startswith("# Performance: what a training iteration costs\n")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("resvar bench")])
def test_every_command_is_one(command):
    _, name, *arguments = shlex.split(command)
    typer.main.get_command(app).commands[name].make_context(name, arguments)


@pytest.mark.parametrize(
    ("row", "kind"),
    [("BN and the ReLU after it", "bn relu"), ("BN alone", "bn"), ("ReLU alone", "relu"),
     ("addition", "addition")],
)  # fmt: skip
def test_the_passes_are_those_that_are_counted(row, kind):
    (cells,) = re.findall(rf"^\| {row} \|(.+)\|$", TEXT, re.MULTILINE)
    for way, cell in zip(PASSES, cells.split("|"), strict=True):
        stated = [int(number) for number in re.findall(r"\d+", cell)]
        assert sum(stated) == sum(PASSES[way][kind])
