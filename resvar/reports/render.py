"""A report in each of its formats: here the tables as Markdown, as LaTeX and on the terminal.

CSV and JSON come from `data.py`, the page from `html.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from resvar.console import drawn_text, plain
from resvar.errors import UserError, unknown
from resvar.reports.data import report_csv, report_json
from resvar.reports.findings import Report
from resvar.reports.tables import error_tables, group_tables, unread_table
from resvar.reports.variations import MOST_ABREAST, grids, is_tabulated
from resvar.sequences import chunks
from resvar.table import (
    EXTRA,
    WIDE,
    Column,
    Prose,
    Table,
    TableCell,
    natural_width,
    print_table,
    without,
)

if TYPE_CHECKING:
    from rich.console import Console


def render_report(report: Report, format: str) -> str:
    """The report as `table` (plain text), `markdown`, `csv`, `latex`, `json` or `html`.

    Raises:
        UserError: the format is unknown.
    """
    if format not in RENDERERS:
        otherwise = f"; choose from {', '.join(RENDERERS)}."
        raise UserError(unknown("report format", format, RENDERERS, otherwise))
    return RENDERERS[format](report)


def _sections(
    report: Report, abreast: int = 2, cells: int = MOST_ABREAST
) -> Iterator[tuple[str, tuple[str, ...], list[Table]]]:
    """Heading, notes and tables of every part of a report."""
    found = grids(report.groups)
    for grid in found:
        yield plain(grid.heading), tuple(map(plain, grid.notes)), grid.tables(cells)
    for group in report.groups:
        if is_tabulated(group) and any(group in grid.groups.values() for grid in found):
            continue
        yield plain(group.heading), tuple(map(plain, group.notes)), group_tables(group, abreast)
    if report.unread:
        yield "Runs that could not be read", (), [unread_table(report)]


def _as_markdown(report: Report) -> str:
    lines = ["# Where should BatchNorm and ReLU go? A resvar report", ""]
    for heading, notes, made in _sections(report):
        lines += [f"## {_markdown_text(heading)}", ""]
        lines += markdown_notes(notes)
        for table in made:
            lines += [f"### {_markdown_text(table.title)}", "", *markdown_table(table)]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> list[str]:
    """The lines of a table and of the notes below it."""
    rules = ("---:" if column.align == "right" else "---" for column in table.columns)
    return [
        _markdown_row(_markdown_text(column.name) for column in table.columns),
        _markdown_row(rules),
        *(_markdown_row(_markdown_cell(cell) for cell in row) for row in table.rows),
        "",
        *markdown_notes(table.notes),
    ]


def _markdown_row(cells: Iterator[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(cell: TableCell) -> str:
    text = "<br>".join(_markdown_text(line) for line in cell.lines)
    return f"**{text}**" if cell.strong else text


def markdown_notes(notes: Sequence[str]) -> list[str]:
    """Notes as a list, and an empty line."""
    return [*(f"- {_markdown_text(note)}" for note in notes), ""] if notes else []


def _markdown_text(text: str) -> str:
    """Text with all markup escaped; no part of it becomes a list or a link by itself."""
    escaped = re.sub(r"([\\`*_\[\]<>|&~$#])", r"\\\1", text)
    escaped = re.sub(r"^(\d*)(?=[-+.)]\s)", r"\1\\", escaped)
    return re.sub(r"(?i)(?:(?<=http)|(?<=https)|(?<=ftp))(?=:)|(?<=www)(?=\.)", r"\\", escaped)


# --- LaTeX

_LATEX_ROWS = 40  # what fits on a page


def _as_latex(report: Report) -> str:
    lines = ["% A resvar report. It needs \\usepackage{booktabs}."]
    for heading, notes, made in _sections(report, abreast=1, cells=2):
        lines += ["", f"% {heading}"]
        for index, table in enumerate(made):
            more = notes if index == 0 else ()
            title = f"{heading}. {table.title}"
            for rows in chunks(table.rows, _LATEX_ROWS):
                lines += _latex_table(Table(title, table.columns, rows, more + table.notes))
    return "\n".join(lines) + "\n"


def _latex_table(table: Table) -> list[str]:
    """A float that fits the column of an `article`: titles break, and some columns are dropped."""
    table = without(table, EXTRA)
    form = "".join(r"p{.45\linewidth}" if c.wrap else c.align[0] for c in table.columns)

    def row(cells: Sequence[TableCell]) -> str:
        aligned = zip(cells, table.columns, strict=True)
        text = [_latex_cell(cell, "t", column) for cell, column in aligned]
        gap = r" \addlinespace" if any(len(cell.lines) > 1 for cell in cells) else ""
        return " & ".join(text) + r" \\" + gap

    titles = [_latex_cell(TableCell(column.title), "b", column) for column in table.columns]

    return [
        r"\begin{table}[htbp]",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{form}}}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
        *(row(cells) for cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip {_latex_text(note)}" for note in table.notes),
        r"\end{table}",
    ]


def _latex_cell(cell: TableCell, aligned: Literal["t", "b"], column: Column) -> str:
    """The text of a cell; several lines are aligned with their neighbours at top or bottom."""
    lines = [_latex_text(line) for line in cell.lines]
    if cell.strong:
        lines = [rf"\textbf{{{line}}}" for line in lines]
    if len(lines) == 1:
        return lines[0]
    stacked = r" \\ ".join(lines)
    form = rf"[{aligned}]{{@{{}}{column.align[0]}@{{}}}}"
    return rf"\begin{{tabular}}{form}{stacked}\end{{tabular}}"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", "×": r"$\times$", "–": "--", "→": r"$\to$", "−": "$-$", "…": r"\dots{}",
    "[": "{[}",
    "*": "{*}", "`": r"\textasciigrave{}",
}  # fmt: skip
"""`[` and `*` are braced, since at the start of a row they are syntax."""


def _latex_text(text: str) -> str:
    """Text with all commands escaped; letters that pdfLaTeX lacks become their code point."""
    safe = "".join(_LATEX.get(c) or (c if ord(c) < 0x180 else f"U+{ord(c):04X}") for c in text)
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", safe)  # a minus is longer than a hyphen


# --- the terminal


def print_report(report: Report, console: Console) -> None:
    """Print the report, fitted to a terminal; anywhere else nothing is broken or left out."""
    width = console.width if console.is_terminal else WIDE
    wide = (table for group in report.groups for table in error_tables(group, 2))
    abreast = 2 if all(natural_width(table) <= width for table in wide) else 1
    found = grids(report.groups)
    cells = next(
        n
        for n in range(MOST_ABREAST, 0, -1)
        if n == 1
        or all(natural_width(table) <= width for grid in found for table in grid.error_tables(n))
    )
    for heading, notes, made in _sections(report, abreast, cells):
        console.print(Prose(heading, "bold"), crop=False)
        for note in notes:
            console.print(Prose(note, "dim", 2), crop=False)
        for table in made:
            console.print()
            print_table(table, console)
        console.print()


def _plain_text(report: Report) -> str:
    return drawn_text(lambda console: print_report(report, console))


def _html(report: Report) -> str:
    from resvar.reports.html import render_html  # only this format needs Jinja

    return render_html(report)


RENDERERS: dict[str, Callable[[Report], str]] = {
    "table": _plain_text,
    "markdown": _as_markdown,
    "csv": report_csv,
    "latex": _as_latex,
    "json": report_json,
    "html": _html,
}
"""Format → renderer. To add one, add a line; `_sections` yields headings and tables."""
