"""Neutral tables: titles, columns, cells and notes, for any renderer; here for the terminal.

A table made by `filled` has one line per column: its title, the value that it takes from an item
of the table, and the format of a number.

A terminal that is too narrow for a table breaks titles and long texts between words. If that does
not suffice, columns are left out, those with the highest `drop` first, and a note names them. If
no column is left that may go, paths and lists are broken after a `/` or a comma; if even that does
not suffice, each row becomes a paragraph. Nothing is ever cut, and no word or number is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from resvar.streams import columns_of, folded, plain, unbroken

Kind = Literal["errors", "map", "verdict", "runs", "other"]


@dataclass(frozen=True)
class Column:
    """A column; a line break in its title is where a narrow page may break it.

    Attributes:
        drop: 0 for a column that always stays; where a page is too narrow, the columns with the
            highest numbers are left out first.
        wrap: the least width to which its texts may be broken between words; 0: never.
        short: its title in a table that does not fit.
        foreign: its figures are not comparable with the others.
    """

    title: str
    align: Literal["left", "right"] = "right"
    drop: int = 0
    wrap: int = 0
    short: str = ""
    foreign: bool = False

    @property
    def name(self) -> str:
        """The title on one line."""
        return self.title.replace("\n", " ")


@dataclass(frozen=True)
class TableCell:
    """A text, perhaps of several lines.

    Attributes:
        grey: it marks an absence, or a figure that is not comparable.
        strong: the best of its table.
        folder: a run directory that the text names, for a renderer with links.
        across: how many of its first lines run over the columns to the right; what the other cells
            contain begins below them.
    """

    text: str
    grey: bool = False
    strong: bool = False
    folder: Path | None = None
    across: int = 0

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


def left(title: str, value: Callable[[Any], Value], drop: int = 0, wrap: int = 0) -> Filled:
    """A column of texts."""
    return Filled(Column(title, "left", drop, wrap), value)


def right(
    title: str,
    value: Callable[[Any], Value],
    form: str = "",
    drop: int = 0,
    wrap: int = 0,
    short: str = "",
    foreign: bool = False,
) -> Filled:
    """A column of numbers."""
    return Filled(Column(title, "right", drop, wrap, short, foreign), value, form)


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


# --- the terminal ---------------------------------------------------------------------------------

WIDE = 5_000
"""Columns where the output is not a terminal: nothing is broken or left out."""

GAP = 2
"""Columns between two columns of a table."""

BRACKETS = ("⎡", "⎢", "⎣")

EXTRA = 3
"""Columns with this `drop` or a higher one are left out on paper and in paragraphs too."""


def print_table(table: Table, console: Console) -> None:
    """Print a table with its title and notes."""
    console.print(TerminalTable(table), crop=False)


def draw_parts(parts: Iterable[str | Prose | Table], console: Console) -> None:
    """Print sentences and tables."""
    for part in parts:
        drawn = TerminalTable(part) if isinstance(part, Table) else part
        console.print(Prose(drawn) if isinstance(drawn, str) else drawn, crop=False)


@dataclass(frozen=True)
class Prose:
    """A text whose lines are broken between words; a rich renderable."""

    text: str
    style: str = ""
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in folded(self.text, usable_width(console, options) - self.indent):
            yield _single_line(" " * self.indent + line, self.style)


@dataclass(frozen=True)
class TerminalTable:
    """A table with its title and notes, fitted to the width of the terminal; a rich renderable."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = usable_width(console, options)
        if self.table.title:
            yield Prose(self.table.title, "bold")
        shown, widths = fitted(self.table, width)
        if widths is None:
            shown = without(self.table, EXTRA)
            yield from _stacked(shown, width)
        else:
            yield from _aligned(shown, widths)
        for note in shown.notes:
            yield Prose(note, "dim", 2)
        for note in columns_left_out(self.table, shown):
            yield Prose(note, "dim", 2)


@dataclass(frozen=True)
class Parts:
    """As many texts as fit on the line, in their order; a rich renderable."""

    texts: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _single_line(self._fitting(options.max_width), "")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, columns_of(self._fitting(options.max_width))))

    def _fitting(self, width: int) -> str:
        line = ""
        for text in filter(None, self.texts):
            longer = f"{line}  {text}" if line else text
            if columns_of(longer) > width:
                break
            line = longer
        return line


def natural_width(table: Table) -> int:
    """The columns that a table takes if nothing in it is broken or left out."""
    widths = [max(map(columns_of, texts)) for texts in _texts(table)]
    return sum(widths) + GAP * (len(widths) - 1)


def usable_width(console: Console, options: ConsoleOptions) -> int:
    return options.max_width if console.is_terminal else WIDE


def fitted(table: Table, width: int) -> tuple[Table, list[int] | None]:
    """The table without the columns that do not fit `width`, and the widths of the others.

    Titles become short. Paths and lists are broken only where leaving out columns is not enough.

    Returns:
        None for the widths if the table cannot fit.
    """
    if natural_width(table) > width:
        columns = (replace(column, title=column.short or column.title) for column in table.columns)
        table = replace(table, columns=tuple(columns))
    drops = sorted({column.drop for column in table.columns} - {0}, reverse=True)
    narrower = [table, *(without(table, least) for least in drops)]
    for longest, each in product((_longest_word, _longest_piece), narrower):
        if (widths := _widths(each, width, longest)) is not None:
            return each, widths
    return table, None


def columns_left_out(table: Table, shown: Table) -> Iterator[str]:
    """A note on the columns of a table that are not shown."""
    highest = max(column.drop for column in shown.columns)
    if dropped := [column.name for column in table.columns if column.drop > highest]:
        yield f"Left out for width: {', '.join(dropped)}."


def without(table: Table, drop: int) -> Table:
    """The table without the columns whose `drop` is this or higher."""
    kept = [index for index, column in enumerate(table.columns) if column.drop < drop]
    columns = tuple(table.columns[index] for index in kept)
    return replace(
        table, columns=columns, rows=tuple(tuple(row[i] for i in kept) for row in table.rows)
    )


def _texts(table: Table) -> Iterator[list[str]]:
    """All lines of each column, the title's included."""
    for index, column in enumerate(table.columns):
        cells = (line for row in table.rows for line in row[index].lines[row[index].across :])
        yield [*column.title.split("\n"), *cells]


def _widths(table: Table, width: int, longest: Callable[[str], int]) -> list[int] | None:
    """The width of each column, so that the table fits; None if it cannot.

    Titles are broken first, then the texts of columns with `wrap`; the longest share what is left.

    Args:
        longest: the width of what must not be broken in a line of a cell.
    """
    wanted = [max(map(columns_of, texts)) for texts in _texts(table)]
    free = width - GAP * (len(wanted) - 1)
    if sum(wanted) <= free:
        return wanted
    widths = []
    for column, texts, natural in zip(table.columns, _texts(table), wanted, strict=True):
        cells = texts[column.title.count("\n") + 1 :]
        if column.wrap:
            least = max([min(column.wrap, natural), *map(longest, cells)])
        else:
            least = max(map(columns_of, cells), default=0)
        widths.append(max(least, *map(columns_of, title_lines(column.title, 1))))
    free -= sum(widths)
    if free < 0:
        return None
    missing = [natural - least for natural, least in zip(wanted, widths, strict=True)]
    order = sorted(range(len(widths)), key=missing.__getitem__)
    prose = [index for index in order if table.columns[index].wrap]
    for index in [*prose, *order]:  # whole texts before whole titles
        if missing[index] <= free:
            widths[index] += missing[index]
            free -= missing[index]
            missing[index] = 0
    broken = [index for index in prose if missing[index]]
    for rest, index in zip(range(len(broken), 0, -1), broken, strict=True):
        more = min(missing[index], 2 * free // (rest + 1))
        widths[index] += more
        free -= more
    for index in [index for index in order if index not in prose]:  # a title on fewer lines
        more = min(missing[index], free)
        widths[index] += more
        free -= more
    return widths


def _longest_word(text: str) -> int:
    """The width of the longest word of a line of a cell, whole paths and lists included."""
    return columns_of(text) if text[:1] in BRACKETS else max(map(columns_of, unbroken(text)))


def _longest_piece(text: str) -> int:
    """The width of the longest piece of a line of a cell that `folded` never breaks."""
    return max(map(columns_of, _cell_lines(text, 1)))


def _cell_lines(text: str, width: int) -> list[str]:
    """A line of a cell, broken between words; what is drawn in tall brackets is not broken."""
    return [text] if text[:1] in BRACKETS else folded(text, width)


def title_lines(title: str, width: int) -> list[str]:
    """A title in lines, broken where it says so and between words."""
    return [line for part in title.split("\n") for line in folded(part, width)]


def _aligned(table: Table, widths: Sequence[int]) -> Iterator[Text]:
    """The lines of the table in columns."""
    columns = table.columns
    titles = [title_lines(c.title, width) for c, width in zip(columns, widths, strict=True)]
    height = max(map(len, titles))
    above = [[""] * (height - len(title)) + title for title in titles]
    yield from _row(columns, widths, above, ["dim" if c.foreign else "bold" for c in columns])
    yield _single_line("─" * (sum(widths) + GAP * (len(widths) - 1)), "")
    rows = [_row_lines(row, widths) for row in table.rows]
    several = any(len(cell.lines) > 1 for row in table.rows for cell in row)
    spaced = several or any(len(lines) > 2 for row in rows for lines in row)
    for number, (row, cells) in enumerate(zip(rows, table.rows, strict=True)):
        if spaced and number:
            yield _single_line("", "")
        yield from _row(columns, widths, row, [_style(cell) for cell in cells])


def _row_lines(row: Sequence[TableCell], widths: Sequence[int]) -> list[list[str]]:
    """The lines of each cell of a row, broken to the widths of the columns."""
    found: list[list[str]] = []
    above = 0
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
        rest = sum(widths[index:]) + GAP * (len(widths) - index - 1)
        wide = [line for text in cell.lines[: cell.across] for line in _cell_lines(text, rest)]
        below = cell.lines[cell.across :] if cell.text or not above else []
        narrow = [line for text in below for line in _cell_lines(text, width)]
        found.append((wide or [""] * above) + narrow)
        above = max(above, len(wide))
    return found


def _row(
    columns: Sequence[Column],
    widths: Sequence[int],
    cells: Sequence[Sequence[str]],
    styles: Sequence[str],
) -> Iterator[Text]:
    for number in range(max(map(len, cells))):
        line = _single_line("", "")
        for column, width, lines, style in zip(columns, widths, cells, styles, strict=True):
            text = lines[number] if number < len(lines) else ""
            space = " " * (width - columns_of(text))
            line.append(" " * GAP if column is not columns[0] else "")
            line.append(space + text if column.align == "right" else text + space, style)
        line.rstrip()
        yield line


def _stacked(table: Table, width: int) -> Iterator[Text]:
    """A paragraph for each row: its first cell, then the others with their titles."""
    for number, row in enumerate(table.rows):
        first, *others = zip((column.name for column in table.columns), row, strict=True)
        if number or table.title:
            yield _single_line("", "")
        for line in folded(" ".join(filter(None, (first[0], *first[1].lines))), width):
            yield _single_line(line, "bold")
        short = [
            f"{title}: {cell.text}" for title, cell in others if len(cell.lines) == 1 and cell.text
        ]
        for line in folded(f"  {'  '.join(short)}", width) if short else ():
            yield _single_line(line, "")
        for title, cell in others:
            if len(cell.lines) > 1:
                for line in (f"  {title}:", *(f"    {line}" for line in cell.lines)):
                    yield from (_single_line(part, _style(cell)) for part in folded(line, width))


def _single_line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ignore", end="\n")


def _style(cell: TableCell) -> str:
    return "bold" if cell.strong else "dim" if cell.grey else ""
