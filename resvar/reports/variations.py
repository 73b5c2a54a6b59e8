"""Groups of runs that differ in one or two settings only, as one table: a grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from resvar.files import shipped
from resvar.reports.cells import EXECUTION, Cell, CellKey
from resvar.reports.comparable import deviations, effective, shown
from resvar.reports.findings import Group
from resvar.reports.notes import DATASET_NAMES, protocol_note
from resvar.reports.records import settings_of
from resvar.reports.tables import mean_and_sd, run_table, seeds
from resvar.sequences import chunks
from resvar.settings import ARCHITECTURE, TRAINING_HALF, network_deviations
from resvar.table import Filled, Table, TableCell, filled, left, right

MOST_SETTINGS = 2
"""In which the groups of a grid differ: one gives its rows, one its columns."""

MOST_ABREAST = 4
"""Columns of a table after the first one."""

Point = tuple[str, ...]
"""The values of a grid's settings, as `--set` takes them."""


@dataclass(frozen=True)
class Grid:
    """Groups under one protocol and on one dataset, by their values of one or two settings.

    Attributes:
        names: the settings; the one with more values first.
    """

    names: tuple[str, ...]
    groups: Mapping[Point, Group]

    @property
    def heading(self) -> str:
        group = next(iter(self.groups.values()))
        sample = group.dataset == "sample"
        dataset = group.heading if sample else DATASET_NAMES.get(group.dataset, group.dataset)
        protocol = settings_of(group.records[0]).protocol
        return f"{dataset}, protocol {protocol}: {' and '.join(self.names)} varied"

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the groups that have no separate part in a report, once each."""
        notes: list[str] = []
        for group in self._tabulated:
            settings = settings_of(group.records[0])
            own = protocol_note(group.label, settings, TRAINING_HALF)
            common = [name for name in TRAINING_HALF if name not in self.names]
            instead = protocol_note(settings.protocol, settings, common)
            notes += [instead if note == own else note for note in group.caveats]
        return tuple(dict.fromkeys(notes))

    @property
    def cells(self) -> Iterator[tuple[Point, Cell]]:
        """The cells with a run, by point, depth and variant."""
        for point, group in self.groups.items():
            for cell in group.cells.values():
                if cell.runs:
                    yield point, cell

    @property
    def _tabulated(self) -> list[Group]:
        return [group for group in self.groups.values() if is_tabulated(group)]

    def tables(self, abreast: int = MOST_ABREAST) -> list[Table]:
        """The test errors, and the runs of the groups that have no separate part in a report.

        The rows are the values of the first setting. A column is a value of the second one, and a
        variant at a depth; `abreast` of them share a table.
        """
        made = self.error_tables(abreast)
        if own := self._tabulated:
            records = tuple(
                replace(record, label=self._point_name(point))
                for point, group in self.groups.items()
                if group in own
                for record in group.records
            )
            copies = {copy: first for group in own for copy, first in group.copies.items()}
            made.append(run_table(replace(own[0], records=records, copies=copies)))
        return made

    def error_tables(self, abreast: int) -> list[Table]:
        found = {(point, (cell.variant, cell.depth)): cell for point, cell in self.cells}
        keys = list(dict.fromkeys((point[1:], cell) for point, cell in found))
        keys.sort(key=lambda key: (key[1][1], key[1][0], [_rank(value) for value in key[0]]))
        firsts = dict.fromkeys(point[0] for point in self.groups)
        made = []
        for part in chunks(keys, abreast):
            columns: list[Filled] = [left(self.names[0], self._row_name)]
            for rest, cell in part:
                by_value = {value: found.get(((value, *rest), cell)) for value in firsts}
                if len(keys) == 1:
                    columns += _columns(by_value)
                else:
                    columns.append(_column(self._column_name(rest, cell, keys), by_value))
            made.append(filled(self._title(keys), columns, firsts, NOTES, "errors"))
        return made

    def _point_name(self, point: Point) -> str:
        return ", ".join(f"{name}={value}" for name, value in zip(self.names, point, strict=True))

    def _title(self, keys: Sequence[tuple[Point, CellKey]]) -> str:
        title = f"Test error (%) by {' and '.join(self.names)}"
        cells = {cell for _, cell in keys}
        if len(cells) == 1:
            ((variant, depth),) = cells
            title += f", {variant}, ResNet-{depth}"
        return title

    def _column_name(
        self, rest: Point, cell: CellKey, keys: Sequence[tuple[Point, CellKey]]
    ) -> str:
        """What distinguishes a column from its neighbours: the second setting, and the cell."""
        lines = [f"{name}\n= {value}" for name, value in zip(self.names[1:], rest, strict=True)]
        if len({cell for _, cell in keys}) > 1:
            lines.append(f"{cell[0]}\n{cell[1]}")
        return "\n".join(lines)

    def _row_name(self, value: str) -> str:
        """The value; a shipped protocol's own value is marked."""
        name = self.names[0]
        group = next(group for point, group in self.groups.items() if point[0] == value)
        settings = settings_of(group.records[0])
        usual = settings.protocol in shipped("protocols") and name not in (
            deviations(settings) | network_deviations(settings)
        )
        return f"{value} (protocol)" if usual and value != USUAL else value


USUAL = "default"
"""The value of a setting of the network that its depth decides."""

NOTES = (
    "Test error at the last iteration, in percent; ±: standard deviation; n: seeds.",
    "If a value is chosen by these test errors, its own test error is optimistic.",
)


def _columns(cells: Mapping[str, Cell | None]) -> Iterator[Filled]:
    """The columns of the only cell; their items are the values of the first setting."""
    yield right("median", lambda value: _figures(cells[value])[0])
    yield right("mean ± sd", lambda value: _figures(cells[value])[1])
    yield right("n", lambda value: _figures(cells[value])[2], wrap=8)


def _column(name: str, cells: Mapping[str, Cell | None]) -> Filled:
    """The column of one cell among several, with its figures below one another."""

    def cell(value: str) -> TableCell | None:
        median, spread, n = _figures(cells[value])
        if median is None:
            return TableCell(n, grey=True) if n else None
        return TableCell(f"median {median}\nmean {spread}\nn = {n}")

    return right(name, cell, wrap=12)


def _figures(cell: Cell | None) -> tuple[str | None, str | None, str | None]:
    """Median, mean ± sd, and n or the state of the runs."""
    if cell is None or cell.summary is None:
        return None, None, seeds(cell) if cell else None
    return f"{cell.summary.median:.2f}", mean_and_sd(cell.summary), seeds(cell)


def is_tabulated(group: Group) -> bool:
    """Whether a grid says all about a group: it changes its protocol and compares no variants."""
    settings = settings_of(group.records[0])
    follows = group.like_paper or group.label == settings.protocol
    return not (follows or group.contrasts or group.maps)


def grids(groups: Sequence[Group]) -> list[Grid]:
    """The grids among groups, largest first; a group may be in several."""
    families: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        key = (settings_of(group.records[0]).protocol, group.dataset)
        families.setdefault(key, []).append(group)
    return [grid for family in families.values() for grid in _grids_of(family)]


def _grids_of(family: Sequence[Group]) -> Iterator[Grid]:
    """The grids of groups under one protocol: the largest one first, then the grids of the rest."""
    named = [n for n in EXECUTION if any(f"{n}=" in group.label for group in family)]
    values = {group.label: _values(group, named) for group in family}
    names = [
        n for n in next(iter(values.values())) if len({each[n] for each in values.values()}) > 1
    ]
    found: list[tuple[tuple[str, ...], list[Group]]] = []
    for count in range(1, MOST_SETTINGS + 1):
        for varied in combinations(names, count):
            alike: dict[Point, list[Group]] = {}
            for group in family:
                rest = tuple(values[group.label][n] for n in names if n not in varied)
                alike.setdefault(rest, []).append(group)
            found += [(varied, groups) for groups in alike.values() if len(groups) > 1]
    open_labels = {group.label for group in family}
    while found:
        found.sort(key=lambda pair: -len(open_labels & {group.label for group in pair[1]}))
        varied, groups = found.pop(0)
        if not open_labels & {group.label for group in groups if group.label != _base(group)}:
            return
        open_labels -= {group.label for group in groups}
        yield _grid(varied, groups, values)


def _grid(
    varied: Sequence[str], groups: Sequence[Group], values: Mapping[str, Mapping[str, str]]
) -> Grid:
    counts = {name: len({values[group.label][name] for group in groups}) for name in varied}
    names = tuple(sorted((n for n in varied if counts[n] > 1), key=lambda name: -counts[name]))
    points = {tuple(values[group.label][name] for name in names): group for group in groups}
    ordered = sorted(points, key=lambda point: [_rank(value) for value in point])
    return Grid(names, {point: points[point] for point in ordered})


def _base(group: Group) -> str:
    """The label of a group that follows its protocol."""
    return settings_of(group.records[0]).protocol


def _values(group: Group, named: Sequence[str]) -> dict[str, str]:
    """The settings that distinguish groups, as text.

    Args:
        named: settings of the execution that do.
    """
    settings = settings_of(group.records[0])
    network: Mapping[str, Any] = network_deviations(settings)
    having = effective(settings)
    return {name: shown(getattr(having, name)) for name in (*TRAINING_HALF, *named)} | {
        name: shown(network[name]) if name in network else USUAL
        for name in ARCHITECTURE
        if name != "depth"
    }


def _rank(value: str) -> tuple[bool, float, str]:
    """Numbers in their order, then texts."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value
