"""docs/performance.md: the passes it states are those that are counted."""

from __future__ import annotations

import re

import pytest

from resvar.bench.floor import PASSES
from tests.support.commands import ROOT

TEXT = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_it_begins_with_its_name():
    assert TEXT.startswith("# Performance: what a training iteration costs\n")


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
