"""docs/why.md: its figures exist, and its claims are the program's."""

from __future__ import annotations

import re

from resvar.probes.claims import CLAIMS
from tests.support.commands import ROOT

PAGE = ROOT / "docs" / "why.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_figure_is_there_and_every_one_is_shown():
    shown = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT))
    assert shown == {f"why/{path.name}" for path in (PAGE.parent / "why").iterdir()}


def test_every_claim_and_every_command_letter_is_explained():
    for claim in CLAIMS:
        assert f"| `{claim.name}` |" in TEXT
    used = set(re.findall(r"\((?:[A-Z], )*([A-Z])(?:,[^)]*)?\)", TEXT))
    explained = set(re.findall(r"^\| \*\*([A-Z])\*\* \|", TEXT, re.MULTILINE))
    assert used <= explained
