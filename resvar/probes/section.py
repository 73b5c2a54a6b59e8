"""What `resvar probe` saved in run directories, as sections of an HTML report. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from resvar.errors import UserError
from resvar.probes.findings import Probe, read_probe
from resvar.probes.outcome import Outcome
from resvar.probes.pictures import inline_svg, pictures
from resvar.probes.render import verdict_table
from resvar.probes.verdicts import judge, read_cells
from resvar.reports.records import Record, read_records
from resvar.reports.tables import Cell, Table

TITLE = "Why: what the signal does along the depth"


def sections(folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Title and HTML of a section on the probed runs at or below `folders`.

    Empty where none was probed. The verdicts are worked out anew from what was measured. A probe
    that cannot be read, or that belongs to other settings than its run, is named in the section.

    Raises:
        UserError: there is no run at all.
    """
    records = read_records(folders)
    probes, problems = _saved_probes(records)
    if not probes and not problems:
        return []
    cells = read_cells(records)
    outcome = Outcome(probes, cells, judge(probes, cells))
    parts = [f"<p>{escape(problem)}</p>" for problem in problems]
    if probes:
        parts.append(_html_table(verdict_table(outcome.verdicts)))
        parts += [
            f"<figure>{inline_svg(picture)}<figcaption>{escape(picture.title)}</figcaption></figure>"
            for picture in pictures(outcome)
        ]
    return [(TITLE, "\n".join(parts))]


def _saved_probes(records: Sequence[Record]) -> tuple[list[Probe], list[str]]:
    probes, problems = [], []
    for record in records:
        if record.settings is None:
            continue
        try:
            probe = read_probe(record.folder)
        except UserError as error:
            problems.append(str(error))
            continue
        if probe is None:
            continue
        if probe.config_hash == record.settings.hash:
            probes.append(probe)
        else:
            problems.append(
                f"{record.folder}: its probe belongs to a run with other settings; "
                f"`resvar probe {record.folder}` makes a new one."
            )
    return probes, problems


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(column.name)}</th>" for column in table.columns)
    body = "\n".join(f"<tr>{''.join(_html_cell(cell) for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<table><caption>{escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table>\n<ul>{notes}</ul>"
    )


def _html_cell(cell: Cell) -> str:
    text = "<br>".join(escape(line) for line in cell.lines)
    return f"<td>{f'<strong>{text}</strong>' if cell.strong else text}</td>"
