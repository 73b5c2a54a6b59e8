"""A report in each of its formats: here the tables as Markdown, as LaTeX and on the terminal.

CSV and JSON come from `data.py`, the page from `html.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Literal

from resvar.console import drawn_text, listed, plain
from resvar.errors import UserError, unknown
from resvar.reports.data import report_csv, report_json
from resvar.reports.findings import Report
from resvar.reports.first_screen import (
    QUESTION,
    first_screen,
    missing_counts,
    short_note,
    short_table,
)
from resvar.reports.parts import group_tables
from resvar.reports.tables import error_tables, unread_table
from resvar.reports.variations import MOST_ABREAST, grids, is_tabulated
from resvar.sequences import chunks
from resvar.table import (
    EXTRA,
    WIDE,
    Column,
    Kind,
    Prose,
    Table,
    TableCell,
    columns_left_out,
    draw_parts,
    fitted,
    natural_width,
    title_lines,
    without,
)

if TYPE_CHECKING:
    from rich.console import Console


REPORT_PARTS: dict[str, tuple[Kind, ...]] = {
    "table": ("errors",),
    "verdicts": ("verdict",),
    "comparisons": ("map", "other"),
    "runs": ("runs",),
}
"""Part of a report → the tables in it."""


def render_report(report: Report, format: str, full: bool = False, what: Sequence[str] = ()) -> str:
    """The report as `table` (plain text), `markdown`, `csv`, `latex`, `json` or `html`.

    Args:
        full: everything, not only the first screen; the other formats than `table` always are.
        what: the parts to render, from `REPORT_PARTS`; none: as the format usually does.

    Raises:
        UserError: the format or a part is unknown, or the format cannot render these parts.
    """
    if format not in RENDERERS:
        otherwise = f"; choose from {', '.join(RENDERERS)}."
        raise UserError(unknown("report format", format, RENDERERS, otherwise))
    require_parts(format, what)
    return RENDERERS[format](report, full, what)


def require_parts(format: str, what: Sequence[str]) -> None:
    """Refuse parts of a report that are unknown, or that a format cannot render.

    Raises:
        UserError: one of these reasons.
    """
    for name in what:
        if name not in REPORT_PARTS:
            otherwise = f"; choose from {', '.join(REPORT_PARTS)}."
            raise UserError(unknown("part of a report", name, REPORT_PARTS, otherwise))
    if what and format in ("html", "json"):
        raise UserError(f"--what is not for {format}, which always contains the whole report.")
    if len(set(what)) > 1 and format == "csv":
        raise UserError(f"--what {','.join(what)}: CSV has one table; choose one part.")


@dataclass(frozen=True)
class Chapter:
    """A group of runs, or a grid: a heading, then notes and tables in their order."""

    heading: str
    parts: tuple[tuple[str, ...] | Table, ...]


def chapters(
    report: Report, what: Sequence[str], abreast: int = 2, cells: int = MOST_ABREAST
) -> Iterator[Chapter]:
    """The report, or some parts of it; of a group first what `first_screen` shows of it.

    Args:
        abreast: depths whose test errors share a table.
        cells: columns of a grid that share one.
    """
    wanted = [kind for part in what or REPORT_PARTS for kind in REPORT_PARTS[part]]
    for chapter in _all_chapters(report, abreast, cells):
        parts = [p for p in chapter.parts if not isinstance(p, Table) or p.kind in wanted]
        if any(isinstance(part, Table) for part in parts):
            yield replace(chapter, parts=tuple(parts))


def _all_chapters(report: Report, abreast: int, cells: int) -> Iterator[Chapter]:
    found = grids(report.groups)
    for group in report.groups:
        if is_tabulated(group) and any(group in grid.groups.values() for grid in found):
            continue
        made = group_tables(group, abreast)
        first = [table for table in made if table.kind in ("errors", "verdict")]
        notes = tuple(map(plain, (*missing_counts(group), *group.notes)))
        others = [table for table in made if table not in first]
        yield Chapter(plain(group.heading), (*first, notes, *others))
    for grid in found:
        yield Chapter(plain(grid.heading), (tuple(map(plain, grid.notes)), *grid.tables(cells)))
    if report.unread:
        yield Chapter("Runs that could not be read", (unread_table(report),))


def _nothing(what: Sequence[str]) -> str:
    return f"These runs have no {listed(list(what))}."


def _as_markdown(report: Report, what: Sequence[str]) -> str:
    lines = [f"# {QUESTION} A resvar report", ""]
    made = list(chapters(report, what))
    for chapter in made:
        lines += [f"## {_markdown_text(chapter.heading)}", ""]
        for part in chapter.parts:
            if isinstance(part, Table):
                lines += [f"### {_markdown_text(part.title)}", "", *markdown_table(part)]
            else:
                lines += markdown_notes(part)
    lines += [] if made else [_nothing(what)]
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
_LATEX_COLUMNS = 82  # letters of 7 points in the line of an `article`


def _as_latex(report: Report, what: Sequence[str]) -> str:
    lines = ["% A resvar report. It needs \\usepackage{booktabs}."]
    made = list(_main_tables(report) if set(what) == {"table"} else _latex_chapters(report, what))
    labels: Counter[str] = Counter()
    for heading, tables in made:
        lines += ["", f"% {heading}"]
        for table in tables:
            for rows in chunks(table.rows, _LATEX_ROWS):
                label = _latex_label(table.title)
                labels[label] += 1
                label += f"-{labels[label]}" if labels[label] > 1 else ""
                lines += _latex_table(replace(table, rows=rows), label)
    lines += [] if made else ["", f"% {_nothing(what)}"]
    return "\n".join(lines) + "\n"


def _main_tables(report: Report) -> Iterator[tuple[str, list[Table]]]:
    """The test errors of each group in one table, or of a grid."""
    found = grids(report.groups)
    for group in report.groups:
        if is_tabulated(group) and any(group in grid.groups.values() for grid in found):
            continue
        heading = plain(group.heading)
        notes = tuple(map(plain, (short_note(group), *missing_counts(group), *group.notes)))
        title = f"{heading}. Test error (%)"
        yield (
            heading,
            [
                replace(short_table(group, group.variants, depths), title=title, notes=notes)
                for depths in chunks(group.depths, 2)
            ],
        )
    for grid in found:
        heading = plain(grid.heading)
        yield (
            heading,
            [replace(table, title=f"{heading}. {table.title}") for table in grid.error_tables(2)],
        )


def _latex_chapters(report: Report, what: Sequence[str]) -> Iterator[tuple[str, list[Table]]]:
    """All tables of each chapter; its notes are those of the first one."""
    for chapter in chapters(report, what, abreast=1, cells=2):
        tables = [part for part in chapter.parts if isinstance(part, Table)]
        notes = chain.from_iterable(p for p in chapter.parts if not isinstance(p, Table))
        tables[0] = replace(tables[0], notes=(*notes, *tables[0].notes))
        yield (
            chapter.heading,
            [replace(table, title=f"{chapter.heading}. {table.title}") for table in tables],
        )


def _latex_label(title: str) -> str:
    """`tab:resvar-cifar-10-protocol-paper-test-error-resnet-110`."""
    short = re.sub(r": not the paper's.*?(?=\. |$)|\(.*?\)", "", title)
    return f"tab:resvar-{re.sub('[^a-z0-9]+', '-', short.lower()).strip('-')}"


def _latex_table(table: Table, label: str) -> list[str]:
    """A float that fits the column of an `article`, as on a terminal of `_LATEX_COLUMNS`."""
    most = without(table, EXTRA)
    shown, widths = fitted(most, _LATEX_COLUMNS)
    if widths is None:  # then the texts of every column may be broken
        columns_of_text = (replace(column, wrap=1) for column in shown.columns)
        shown = replace(shown, columns=tuple(columns_of_text))
        widths = [_LATEX_COLUMNS // len(shown.columns)] * len(shown.columns)
    columns = list(zip(shown.columns, zip(*shown.rows, strict=True), widths, strict=True))
    form = "".join(_latex_column(*column) for column in columns)

    def row(cells: Sequence[TableCell]) -> str:
        aligned = zip(cells, shown.columns, strict=True)
        text = [_latex_cell(cell, "t", column) for cell, column in aligned]
        gap = r" \addlinespace" if any(len(cell.lines) > 1 for cell in cells) else ""
        return " & ".join(text) + r" \\" + gap

    titles = [
        _latex_cell(TableCell("\n".join(title_lines(column.title, width))), "b", column)
        for column, _, width in columns
    ]

    return [
        r"\begin{table}[htbp]",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_latex_text(table.title)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{@{{}}{form}@{{}}}}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
        *(row(cells) for cells in shown.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(
            rf"\par\smallskip {_latex_text(note)}"
            for note in (*table.notes, *columns_left_out(most, shown))
        ),
        r"\end{table}",
    ]


def _latex_column(column: Column, cells: Sequence[TableCell], width: int) -> str:
    """`l` or `r`; a paragraph where texts are longer than the width."""
    if column.wrap and any(len(line) > width for cell in cells for line in cell.lines):
        return rf"p{{{width / _LATEX_COLUMNS:.2f}\linewidth}}"
    return column.align[0]


def _latex_cell(cell: TableCell, aligned: Literal["t", "b"], column: Column) -> str:
    """The text of a cell; several lines are aligned with their neighbours at top or bottom."""
    lines = [_latex_text(line) for line in cell.lines]
    if cell.folder is not None:
        lines = [line.replace("/", r"/\allowbreak{}") for line in lines]
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


def print_report(
    report: Report, console: Console, full: bool = False, what: Sequence[str] = ()
) -> None:
    """Print the report, fitted to a terminal; anywhere else nothing is broken or left out.

    Args:
        full: everything, not only the first screen.
        what: the parts to print, from `REPORT_PARTS`; none: the first screen, or everything.
    """
    width = console.width if console.is_terminal else WIDE
    if not (full or what):
        draw_parts(first_screen(report, width), console)
        return
    wide = (table for group in report.groups for table in error_tables(group, 2))
    abreast = 2 if all(natural_width(table) <= width for table in wide) else 1
    found = grids(report.groups)
    cells = next(
        n
        for n in range(MOST_ABREAST, 0, -1)
        if n == 1
        or all(natural_width(table) <= width for grid in found for table in grid.error_tables(n))
    )
    draw_parts([Prose(QUESTION, "bold"), ""], console)
    made = list(chapters(report, what, abreast, cells))
    draw_parts([] if made else [_nothing(what)], console)
    for chapter in made:
        draw_parts([Prose(chapter.heading, "bold")], console)
        for part in chapter.parts:
            if isinstance(part, Table):
                draw_parts(["", part], console)
            elif part:
                draw_parts(["", *(Prose(note, "dim", 2) for note in part)], console)
        draw_parts([""], console)


def _as_text(report: Report, full: bool, what: Sequence[str]) -> str:
    return drawn_text(lambda console: print_report(report, console, full, what))


def _html(report: Report) -> str:
    from resvar.reports.html import render_html  # only this format needs Jinja

    return render_html(report)


RENDERERS: dict[str, Callable[[Report, bool, Sequence[str]], str]] = {
    "table": _as_text,
    "markdown": lambda report, _, what: _as_markdown(report, what),
    "csv": lambda report, _, what: report_csv(report, *what[:1]),
    "latex": lambda report, _, what: _as_latex(report, what),
    "json": lambda report, *_: report_json(report),
    "html": lambda report, *_: _html(report),
}
"""Format → renderer. To add one, add a line; `chapters` yields headings and tables."""
