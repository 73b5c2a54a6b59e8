"""The design of an experiment: the seeds that sweeps have declared before any result was known.

A sweep writes the list of its runs into the folder of all runs. The declared seeds are the stopping
rule of a comparison: no verdict before they are complete, and none that others change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resvar.reports.records import Record
from resvar.reports.search import SEED_FOLDER
from resvar.sweeps.grid import Declaration, declarations

USUAL_SEEDS = 5
"""Declared where no sweep says otherwise: the runs behind each median of the paper."""

EQUIVALENCE_MARGIN = 0.2
"""Percentage points. Half the larger and most of the smaller published difference; 20 of 10,000
images."""

FOLDERS_ABOVE = 4
"""How many folders above a run directory that of its sweep may be."""


@dataclass(frozen=True)
class SeedPlan:
    """The declared seeds of one comparison.

    Attributes:
        seeds: all of them; 0 to 4 where no sweep has declared any.
        earlier: how many seeds earlier declarations had, ascending.
        margin: percentage points within which two cells are equivalent.
        by_sweep: a sweep has declared the seeds.
    """

    seeds: frozenset[int] = frozenset(range(USUAL_SEEDS))
    earlier: tuple[int, ...] = ()
    margin: float = EQUIVALENCE_MARGIN
    by_sweep: bool = False


@dataclass(frozen=True)
class Design:
    """What sweeps have declared, by the folder above the run directories of a cell."""

    seeds: Mapping[Path, Sequence[frozenset[int]]] = field(default_factory=dict)
    margins: Mapping[Path, float] = field(default_factory=dict)

    def plan(self, cells: Iterable[Path]) -> SeedPlan:
        """The plan of a comparison.

        Args:
            cells: the folders above the run directories of its cells.
        """
        known = [cell for cell in dict.fromkeys(cells) if cell in self.seeds]
        sets = {seeds for cell in known for seeds in self.seeds[cell]}
        if not sets:
            return SeedPlan()
        seeds = frozenset[int]().union(*sets)
        margins = [self.margins[cell] for cell in known if cell in self.margins]
        earlier = tuple(sorted({len(each) for each in sets if len(each) < len(seeds)}))
        return SeedPlan(seeds, earlier, min(margins, default=EQUIVALENCE_MARGIN), by_sweep=True)

    def is_planned(self, cell: Path) -> bool:
        return cell in self.seeds


def read_design(records: Sequence[Record]) -> Design:
    """The design of runs, from the lists that sweeps have left in the folders above them."""
    found: dict[Path, list[Declaration]] = {}
    for cell in dict.fromkeys(record.folder.parent for record in records):
        for above in (cell, *cell.parents)[:FOLDERS_ABOVE]:
            if above not in found:
                found[above] = declarations(above)
    seeds: dict[Path, list[frozenset[int]]] = {}
    margins: dict[Path, float] = {}
    for root, declared in found.items():
        for declaration in declared:
            for cell, those in _seeds_by_cell(root, declaration).items():
                seeds.setdefault(cell, []).append(frozenset(those))
                if declaration.margin is not None:
                    margins[cell] = min(declaration.margin, margins.get(cell, math.inf))
    return Design(seeds, margins)


def _seeds_by_cell(root: Path, declaration: Declaration) -> dict[Path, set[int]]:
    cells: dict[Path, set[int]] = {}
    for name in declaration.runs:
        folder = root / name
        if SEED_FOLDER.fullmatch(folder.name):
            cells.setdefault(folder.parent, set()).add(int(folder.name.removeprefix("seed-")))
    return cells
