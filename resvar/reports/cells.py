"""The cells of a report, and which one a run belongs to: its group, variant and depth.

A run that cannot be read lacks settings. It belongs where its neighbours do, the runs in the same
folder, or else where its path says: `<protocol>/<variant>-<depth>/seed-<seed>`, perhaps with the
name of its changes, such as `lr=0.05`, above the seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from resvar.foldername import folder_name
from resvar.reports.published import Published
from resvar.reports.records import SEED_FOLDER, UNREAD, Record, settings_of
from resvar.reports.statistics import Summary

GroupKey = tuple[str, str]
"""Label and dataset."""

CellKey = tuple[str, int]
"""Variant and depth."""


@dataclass(frozen=True)
class Entry:
    """One cell: the finished runs of a variant at a depth, one per seed, and the others.

    Attributes:
        summary: of the test errors; None without a finished run.
        unfinished: runs of seeds without a finished run, and unreadable runs.
        errors: seed → test error of its finished run.
    """

    variant: str
    depth: int
    summary: Summary | None
    published: Published | None
    unfinished: tuple[Record, ...]
    errors: dict[int, float] = field(default_factory=dict)

    @property
    def diverged(self) -> frozenset[int]:
        """The seeds of its runs that diverged."""
        return frozenset(settings_of(r).seed for r in self.unfinished if r.diverged)

    def outcomes(self, seeds: Set[int] | None = None) -> tuple[float, ...]:
        """The test errors by seed, infinite where the run diverged.

        Args:
            seeds: only of these; None: all.
        """
        found = dict.fromkeys(self.diverged, math.inf) | self.errors
        return tuple(found[seed] for seed in sorted(found) if seeds is None or seed in seeds)

    @property
    def unread(self) -> int:
        """How many of its runs cannot be read."""
        return sum(record.state in UNREAD for record in self.unfinished)

    @property
    def known(self) -> int:
        """How many of its runs have a result or might have one: the finished and the unread."""
        return (self.summary.n if self.summary else 0) + self.unread


def group_key(record: Record) -> GroupKey:
    return record.label, settings_of(record).dataset


def cell_key(record: Record) -> CellKey:
    return settings_of(record).variant, settings_of(record).depth


def cells_of_unread(
    unread: Iterable[Record], groups: Mapping[GroupKey, Sequence[Record]]
) -> dict[GroupKey, list[tuple[CellKey, Record]]]:
    """The runs that cannot be read, by group and with their cell; without those of no known cell.

    Args:
        groups: the runs that were read.
    """
    cells: dict[Path, set[tuple[GroupKey, CellKey]]] = {}
    for key, members in groups.items():
        for member in members:
            cells.setdefault(member.folder.parent, set()).add((key, cell_key(member)))
    named: dict[str, dict[GroupKey, set[str]]] = {}
    for key, members in groups.items():
        settings = [settings_of(member) for member in members]
        changes = {folder_name(each.changes) for each in settings}
        named.setdefault(settings[0].protocol, {})[key] = changes
    found: dict[GroupKey, list[tuple[CellKey, Record]]] = {}
    for record in unread:
        if record.settings is not None:
            places = {(group_key(record), cell_key(record))}
        else:
            places = cells.get(record.folder.parent) or _named_by(record.folder, named)
        if len(places) == 1:
            ((key, cell),) = places
            found.setdefault(key, []).append((cell, record))
    return found


def _named_by(
    folder: Path, named: Mapping[str, Mapping[GroupKey, set[str]]]
) -> set[tuple[GroupKey, CellKey]]:
    """The cells that the path of a run directory allows; none for a path of another form.

    Args:
        named: protocol → group → the names of changes that its runs have.
    """
    changes = folder.parent.name if "=" in folder.parent.name else None
    above = folder.parent if changes is not None else folder
    if len(above.parts) < 3:
        return set()
    protocol, name = above.parts[-3:-1]
    seed = folder.name
    variant, _, depth = name.rpartition("-")
    if not SEED_FOLDER.fullmatch(seed) or not re.fullmatch("[1-9][0-9]{0,3}", depth):
        return set()
    return {
        (key, (variant, int(depth)))
        for key, known in named.get(protocol, {}).items()
        if changes is None or changes in known
    }
