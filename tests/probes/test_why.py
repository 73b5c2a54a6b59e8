"""docs/why.md: its figures are there, and its commands are commands that exist."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from resvar.cli import app
from resvar.config import resolve
from resvar.probes.claims import CLAIMS
from tests.support.commands import ROOT

PAGE = ROOT / "docs" / "why.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = sorted({" ".join(found.split()) for found in re.findall(r"`(resvar [^`]+)`", TEXT)})


def test_every_figure_is_there_and_every_one_is_shown():
    shown = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT))
    assert shown == {f"why/{path.name}" for path in (PAGE.parent / "why").iterdir()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    """Its options and values are known; it is not run."""
    _, name, *arguments = shlex.split(command)
    found = typer.main.get_command(app).commands[name]
    if "--help" in arguments:
        return
    context = found.make_context(name, [word.replace("*", "x") for word in arguments])
    for override in context.params.get("sets") or ():
        assert resolve(
            options={"variant": "original", "depth": 20, "protocol": "quick"}, overrides=[override]
        )


def test_every_claim_and_every_command_letter_is_explained():
    for claim in CLAIMS:
        assert f"| `{claim.name}` |" in TEXT
    used = set(re.findall(r"\((?:[A-Z], )*([A-Z])(?:,[^)]*)?\)", TEXT))
    explained = set(re.findall(r"^\| \*\*([A-Z])\*\* \|", TEXT, re.MULTILINE))
    assert used <= explained
