"""The report as one self-contained HTML page: no network, no other file.

It begins with one screen about the leading group of runs: the question, the verdict at each depth,
the test errors, what is missing. Everything else is in folded sections, which need no script.

`render_html` puts the tables of `resvar.reports.tables`, the curves, the list of runs, where they
were made and how to repeat them into the template in `page/`. Jinja escapes every text; style and
script are inline and allowed by their hash; nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from resvar.console import duration, listed, plain
from resvar.reports.cells import GroupKey
from resvar.reports.charts import COLOURS, Chart, charts
from resvar.reports.curves import points_per_curve
from resvar.reports.findings import Group, Report
from resvar.reports.first_screen import (
    QUESTION,
    missing_counts,
    unread_counts,
    verdict_sentences,
)
from resvar.reports.naming import GroupName, group_names
from resvar.reports.parts import group_tables
from resvar.reports.provenance import FACTS, Environments, cells_text, commands, environments
from resvar.reports.records import Record, RunState, settings_of
from resvar.reports.tables import folder_cell, reason, unread_table
from resvar.reports.variations import grids
from resvar.rundir import CONFIG
from resvar.table import NOTHING, Filled, Table, filled, left
from resvar.version import __version__

PAGE = Path(__file__).parent / "page"
WHOLE = re.compile(
    r"(V2 − V1|\d[\d.,]* [×±] \S+|\b[np] [=<] [\d.]*\d|[\d.]+ %|[+-]\d[\d.]* to [+-]\d[\d.]*"
    r"|(?<![^\s(])[A-Za-z]\w*(?:-\w+){1,4}(?![\w/=-]))"
)
"""`5 × abc`, `6.61 ± 0.16`, `n = 5`, `95 %`, `-0.7 to +0.1`, and names such as `ResNet-110`."""

LONGEST_WHOLE = 32
"""Characters of such a text; a longer one may be broken."""

MOST_NOTES = 3
"""Notes that precede a table; more are folded."""


@dataclass(frozen=True)
class Image:
    """A figure in SVG, with colours for a dark page; shown as an image, so that no script runs."""

    title: str
    svg: str
    caption: str = ""

    @property
    def source(self) -> str:
        """The figure as a data URL, which keeps its ids and styles separate from the page's."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, notes, charts, figures and tables, in this order.

    Attributes:
        group: label and dataset of the group that it belongs to; None: it follows all groups.
    """

    title: str
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Image, ...] = ()
    charts: tuple[Chart, ...] = ()
    group: GroupKey | None = None


@dataclass(frozen=True)
class Page:
    """The content of the page in addition to the report.

    Attributes:
        out: the file to write, from which links to runs start. None: the working folder.
        folders: the arguments of `resvar report`, for the command that repeats the page.
        waiting: runs that a sweep has planned but not started.
        sections: further parts, in this order.
        refresh: seconds between two reloads; None: the page does not reload.
    """

    out: Path | None = None
    folders: tuple[Path, ...] = ()
    waiting: int = 0
    sections: tuple[Section, ...] = ()
    refresh: float | None = None


def render_html(report: Report, page: Page | None = None) -> str:
    """The page. The same runs give the same text."""
    page = page or Page()
    style, script = (
        (PAGE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    named = _in_page_order(report.groups)
    most = points_per_curve(report.groups)
    records = [record for group in report.groups for record in group.records]
    context = {
        "title": QUESTION,
        "version": __version__,
        "policy": _policy(style, script),
        "style": Markup(style),
        "script": Markup(script),
        "page": page,
        "facts": _fact_counts(report, page),
        "groups": [
            _group_parts(f"group-{number}", group, name, page.sections, most)
            for number, (group, name) in enumerate(named, 1)
        ],
        "sections": [
            *(
                Section(plain(grid.heading), tuple(map(plain, grid.notes)), tuple(grid.tables()))
                for grid in grids(report.groups)
            ),
            *(section for section in page.sections if section.group is None),
        ],
        "missing": _missing_parts(report, named, page),
        "environments": _environment_parts(environments(records)),
        "repeat": _repeat(named, page),
        "link": _linker(page.out),
        "colours": COLOURS,
        "most_notes": MOST_NOTES,
        "is_grey": _is_grey,
    }
    return _templates().get_template("report.html.j2").render(context)


Named = list[tuple[Group, GroupName]]
"""The groups in the order of the page, each with its name."""


def _in_page_order(groups: Sequence[Group]) -> Named:
    """The paper's protocol and network first; the sample of CIFAR-10, which says least, last."""
    order = sorted(groups, key=lambda group: (not group.like_paper, group.dataset == "sample"))
    return list(zip(order, group_names(order), strict=True))


def _policy(style: str, script: str) -> str:
    """The content security policy: this style, this script and images in the page, nothing else."""

    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {allowed(style)}; script-src {allowed(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@lru_cache(maxsize=1)
def _templates() -> Templates:
    made = Templates(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["embedded"] = _embedded
    made.filters["plain"] = plain
    made.filters["whole"] = _whole
    return made


def _embedded(value: Any) -> Markup:
    """JSON for a `<script>` element, which no text in it can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # json.dumps gives ASCII; no markup is left in it


def _whole(text: str) -> Markup:
    """The text as markup in which no line breaks within what `WHOLE` finds."""
    span = Markup('<span class="whole">{}</span>')
    return Markup("").join(
        span.format(piece) if index % 2 and len(piece) <= LONGEST_WHOLE else escape(piece)
        for index, piece in enumerate(WHOLE.split(text))
    )


# --- the parts of the page ------------------------------------------------------------------------


def _group_parts(
    id: str, group: Group, name: GroupName, sections: Iterable[Section], most: int
) -> dict[str, Any]:
    """A group of runs; the ids of its parts start with `id`."""
    made = group_tables(group)

    def of(*kinds: str) -> tuple[Table, ...]:
        return tuple(table for kind in kinds for table in made if table.kind == kind)

    parts = (
        Section("Comparisons", tables=of("verdict", "other")),
        Section("Training curves", charts=tuple(charts(group, id, most))),
        Section("Where BN and ReLU go", tables=of("map")),
        *(section for section in sections if section.group == (group.label, group.dataset)),
        Section("Every run", tables=of("runs")),
    )
    sample = group.dataset == "sample"
    done = sum(record.state is RunState.DONE for record in group.records)
    total = len(group.records)
    medians = [cell.summary.median for cell in group.cells.values() if cell.summary]
    words: dict[str, list[str]] = {}
    for pair in (pair for pair in group.v1_v2 if pair.comparison):
        words.setdefault(pair.word, []).append(str(pair.depth))
    ends = [min(medians), max(medians)] if medians else []
    return {
        "id": id,
        "heading": plain(group.heading),
        "name": plain(name.short),
        "settings": plain(name.settings),
        "depths": listed([str(depth) for depth in group.depths]),
        "count": f"{done:,}" if done == total else f"{done:,} of {total:,}",
        "medians": " to ".join(dict.fromkeys(f"{m:.2f}" for m in ends)),
        "words": "; ".join(f"{word} ({', '.join(at)})" for word, at in words.items()),
        "verdicts": [plain(text).partition(": ") for text in verdict_sentences(group)],
        "no_verdict": "No verdict." if sample else "No run of either is here yet.",
        "notes": [plain(note) for note in group.notes],
        "errors": of("errors"),
        "parts": [part for part in parts if part.tables or part.charts or part.pictures],
    }


def _is_grey(table: Table, index: int) -> bool:
    """Whether all of a column is grey, such as published figures that are not comparable."""
    cells = [row[index] for row in table.rows]
    return all(cell.grey for cell in cells) and any(cell != NOTHING for cell in cells)


def _fact_counts(report: Report, page: Page) -> list[tuple[str, str]]:
    """The number of runs in each state, and their run time."""
    records = [record for group in report.groups for record in group.records]
    counts = Counter(record.state for record in (*records, *report.unread))
    counts[RunState.WAITING] = page.waiting
    facts = [(f"{counts[state]:,}", state.value) for state in RunState if counts[state]]
    time = duration(sum(r.result["seconds"] for r in records if r.result))
    return [*facts, (time, "of run time")] if counts[RunState.DONE] else facts


def _missing_parts(report: Report, named: Named, page: Page) -> dict[str, Any]:
    """Missing results.

    Returns:
        `first`: what is missing in the leading group and of the report, in sentences; `notes`: the
        cells without a run; `tables`: unfinished and unread runs with the reason.
    """
    first = [s for group, _ in named[:1] for s in missing_counts(group)]
    first += unread_counts(report)
    if page.waiting:
        first.append(f"Planned but not started: {page.waiting:,}.")
    notes = [f"{name.short}: {note}" for group, name in named for note in _empty_cells(group)]
    unfinished = [r for g, _ in named for r in g.records if r.state is not RunState.DONE]
    made = []
    if unfinished:
        columns = (
            left("run", folder_cell, wrap=20),
            left("state", lambda r: r.word),
            left("iteration", _iteration),
            left("reason", reason, wrap=20),
        )
        made.append(filled("Not finished", columns, unfinished))
    if report.unread:
        made.append(unread_table(report))
    return {"first": [*map(plain, first)], "notes": [*map(plain, notes)], "tables": made}


def _empty_cells(group: Group) -> Iterator[str]:
    """The cells of a group without any run."""
    empty: dict[int, list[str]] = {}
    for (variant, depth), cell in group.cells.items():
        if not cell.runs:
            empty.setdefault(depth, []).append(variant)
    for depth, variants in empty.items():
        yield f"no run of {listed(variants)} at ResNet-{depth}"


def _iteration(record: Record) -> str | None:
    progress = record.progress
    return f"{progress.iteration:,} of {progress.iterations:,}" if progress else None


def _environment_parts(found: Environments) -> dict[str, Any]:
    """The common facts as a list, the differing ones as a table."""

    def column(key: str) -> Filled:
        return left(plain(FACTS.get(key, key)), lambda member: member.facts.get(key))

    runs = left("runs", lambda m: f"{len(m.runs):,}: {cells_text(m.runs)}", wrap=20)
    columns = (runs, *map(column, found.differing))
    several = len(found.all) > 1
    return {
        "common": [(plain(FACTS.get(key, key)), plain(v)) for key, v in found.common.items()],
        "recorded": any(member.facts for member in found.all),
        "several": several,
        "table": filled("Which runs ran where", columns, found.all) if several else None,
        "notes": [plain(note) for note in found.notes],
    }


def _repeat(named: Named, page: Page) -> dict[str, Any]:
    """The commands that repeat the data, the runs of each group, one run, and the page."""
    import shlex

    records = [record for group, _ in named for record in group.records]
    datasets = {r.settings.dataset for r in records if r.settings}
    data = [
        "resvar data" + ("" if name == "cifar10" else f" --dataset {name}")
        for name in sorted(datasets & {"cifar10", "cifar100"})
    ]
    folders = sorted(folder.as_posix() for folder in page.folders)
    out = ["--out", page.out.as_posix()] if page.out else []
    again = shlex.join(["resvar", "report", *folders, "--format", "html", *out])
    config = (records[0].folder / CONFIG).as_posix() if records else ""
    return {
        "data": "\n".join(data),
        "groups": [(plain(name.short), "\n".join(lines)) for name, lines in _run_commands(named)],
        "one": plain(shlex.join(["resvar", "train", "--config", config, "--out", "again"])),
        "report": plain(again),
    }


def _run_commands(named: Named) -> Iterator[tuple[GroupName, list[str]]]:
    """The commands of each group; two groups never write to the same run directories."""
    taken: set[Path] = set()
    for number, (group, name) in enumerate(named, 1):
        own = [record for record in group.records if record.folder not in group.copies]
        folders = {settings_of(record).directory for record in own}
        root = f"runs-{number}" if folders & taken else "runs"
        yield name, [plain(line) for line in commands(own, root)]
        taken |= folders


def _linker(out: Path | None) -> Any:
    """A function from a run directory to a relative URL of its `config.yaml`, or None."""
    start = os.path.abspath(out.parent if out is not None else ".")  # noqa: PTH100 - links stay

    def link(folder: Path) -> str | None:
        if not os.path.lexists(folder / CONFIG):
            return None
        target = os.path.abspath(folder / CONFIG)  # noqa: PTH100 - as the browser resolves it
        try:
            relative = os.path.relpath(target, start)
        except ValueError:  # another drive of a Windows machine
            return Path(target).as_uri()
        return "/".join(quote(os.fsencode(part), safe="") for part in Path(relative).parts)

    return link
