"""Neutral tables: titles, columns, cells and notes, for any renderer.

A table made by `filled` has one line per column: its title, the value that it takes from an item
of the table, and the format of a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resvar.console import plain

Kind = Literal["errors", "map", "verdict", "runs", "other"]


@dataclass(frozen=True)
class Column:
    """A column; a line break in its title is where a narrow page may break it.

    Attributes:
        drop: 0 for a column that always stays; where a page is too narrow, the columns with the
            highest numbers are dropped first.
        wrap: its texts are long and may be broken.
    """

    title: str
    align: Literal["left", "right"] = "right"
    drop: int = 0
    wrap: bool = False

    @property
    def name(self) -> str:
        """The title on one line."""
        return self.title.replace("\n", " ")


@dataclass(frozen=True)
class TableCell:
    """A text, perhaps of several lines.

    Attributes:
        grey: it marks an absence, or a published figure that is not comparable.
        strong: the best of its table.
        folder: a run directory that the text names, for a renderer with links.
    """

    text: str
    grey: bool = False
    strong: bool = False
    folder: Path | None = None

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")


@dataclass(frozen=True)
class Table:
    """A table that any renderer can write, with notes below it.

    Attributes:
        kind: its subject, by which a renderer places it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    notes: tuple[str, ...] = ()
    kind: Kind = "other"


NOTHING = TableCell("–", grey=True)

Value = TableCell | str | float | None


@dataclass(frozen=True)
class Filled:
    """A column with the function from an item to its value, and the format of a number."""

    column: Column
    value: Callable[[Any], Value]
    form: str = ""

    def cell(self, item: Any) -> TableCell:
        """The value as a cell; `–` for None and for an empty text."""
        value = self.value(item)
        if isinstance(value, TableCell):
            return value
        if value is None or value == "":
            return NOTHING
        return TableCell(plain(value) if isinstance(value, str) else format(value, self.form))


def left(title: str, value: Callable[[Any], Value], drop: int = 0, wrap: bool = False) -> Filled:
    """A column of texts."""
    return Filled(Column(title, "left", drop, wrap), value)


def right(title: str, value: Callable[[Any], Value], form: str = "", drop: int = 0) -> Filled:
    """A column of numbers."""
    return Filled(Column(title, drop=drop), value, form)


def filled(
    title: str,
    columns: Iterable[Filled],
    items: Iterable[Any],
    notes: Iterable[str] = (),
    kind: Kind = "other",
) -> Table:
    """A table with a row per item."""
    columns = tuple(columns)
    rows = tuple(tuple(column.cell(item) for column in columns) for item in items)
    return Table(title, tuple(c.column for c in columns), rows, tuple(map(plain, notes)), kind)
