"""The cell that a run belongs to: its group (label and dataset), variant and depth.

A run that cannot be read lacks settings. It belongs where its neighbours do, the runs in the same
folder, or else where its path says: `<protocol>/<variant>-<depth>/seed-<seed>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from resvar.reports.records import SEED_FOLDER, Record, settings_of

GroupKey = tuple[str, str]
"""Label and dataset."""

CellKey = tuple[str, int]
"""Variant and depth."""


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
    protocols: dict[str, set[GroupKey]] = {}
    for key, members in groups.items():
        protocols.setdefault(settings_of(members[0]).protocol, set()).add(key)
    found: dict[GroupKey, list[tuple[CellKey, Record]]] = {}
    for record in unread:
        if record.settings is not None:
            places = {(group_key(record), cell_key(record))}
        else:
            places = cells.get(record.folder.parent) or _named_by(record.folder, protocols)
        if len(places) == 1:
            ((key, cell),) = places
            found.setdefault(key, []).append((cell, record))
    return found


def _named_by(
    folder: Path, protocols: Mapping[str, set[GroupKey]]
) -> set[tuple[GroupKey, CellKey]]:
    """The cells that the path of a run directory allows; none for a path of another form."""
    if len(folder.parts) < 3:
        return set()
    protocol, name, seed = folder.parts[-3:]
    variant, _, depth = name.rpartition("-")
    if not SEED_FOLDER.fullmatch(seed) or not re.fullmatch("[1-9][0-9]{0,3}", depth):
        return set()
    return {(key, (variant, int(depth))) for key in protocols.get(protocol, ())}
