"""The cells of a report, and which one a run belongs to: its group, variant and depth.

A run that cannot be read lacks settings. It belongs where its neighbours do, the runs in the same
folder, or else where its path says: `<protocol>/<variant>-<depth>/seed-<seed>`, perhaps with the
name of its changes, such as `lr=0.05`, above the seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from resvar.errors import UserError
from resvar.foldername import folder_name
from resvar.reports.comparable import effective, shown
from resvar.reports.published import Published
from resvar.reports.records import UNREAD, Record, RunState, settings_of
from resvar.reports.search import SEED_FOLDER
from resvar.reports.statistics import Summary
from resvar.settings import NOT_HASHED, Settings, differences, names_of

GroupKey = tuple[str, str]
"""Label and dataset."""

CellKey = tuple[str, int]
"""Variant and depth."""

Finished = dict[CellKey, dict[int, Record]]
"""(variant, depth) → seed → the finished run that counts."""

EXECUTION = tuple(name for name in names_of("execution") if name not in NOT_HASHED)
"""Settings that change bits of a run, but leave it comparable."""


@dataclass(frozen=True)
class Cell:
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
    def runs(self) -> int:
        """How many runs it has, finished or not."""
        return (self.summary.n if self.summary else 0) + len(self.unfinished)

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


def told_apart(records: Sequence[Record]) -> list[Record]:
    """The records, with more in the label where finished runs of a seed differ in their execution.

    Runs with different `precision`, `eval_every` and the like are comparable, unless the names of
    their folders say that this is what distinguishes them.
    """
    names: dict[GroupKey, set[str]] = {}
    first: dict[tuple[GroupKey, CellKey, int], Settings] = {}
    for record in records:
        if record.is_read and record.state is RunState.DONE:
            key, settings = group_key(record), settings_of(record)
            other = first.setdefault((key, cell_key(record), settings.seed), settings)
            differing = [n for n in EXECUTION if getattr(settings, n) != getattr(other, n)]
            names.setdefault(key, set()).update(differing)
    return [
        replace(record, label=_with_more(record, names.get(group_key(record), set())))
        if record.is_read
        else record
        for record in records
    ]


def _with_more(record: Record, names: Set[str]) -> str:
    """The label of a record, with the further settings that its folder's name shows."""
    there = {part.partition("=")[0] for part in record.folder.parent.name.split(",")}
    more = [f"{n}={shown(getattr(settings_of(record), n))}" for n in sorted(names & there)]
    if not more:
        return record.label
    head, _, inside = record.label.removesuffix(")").partition(" (")
    return f"{head} ({', '.join([*([inside] if inside else []), *more])})"


def refuse_two_orderings(records: Sequence[Record]) -> None:
    """A name must mean one ordering, or its runs would share a cell by accident."""
    first: dict[str, Record] = {}
    for record in records:
        settings = settings_of(record)
        other = first.setdefault(settings.variant, record)
        if settings.ordering != settings_of(other).ordering:
            raise UserError(
                f"{other.folder} and {record.folder} call different orderings "
                f"'{settings.variant}': report them separately, or rename one."
            )


def one_per_seed(records: Sequence[Record]) -> tuple[Finished, dict[Path, Path]]:
    """The finished runs that count, and the copies among the others.

    Raises:
        UserError: two finished runs of a seed have different settings.
    """
    finished: Finished = {}
    copies: dict[Path, Path] = {}
    for record in records:
        if record.state is not RunState.DONE:
            continue
        settings = settings_of(record)
        other = finished.setdefault(cell_key(record), {}).setdefault(settings.seed, record)
        if other is record:
            continue
        taken = settings_of(other)
        if effective(settings).hash != effective(taken).hash:
            raise UserError(
                f"{other.folder} and {record.folder} are both {settings.variant} at depth "
                f"{settings.depth} with seed {settings.seed}, but their settings differ "
                f"({'; '.join(differences(settings, taken)) or 'precision'}): report them "
                "separately."
            )
        copies[record.folder] = other.folder
    return finished, copies


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
