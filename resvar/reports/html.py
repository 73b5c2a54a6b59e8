"""The report as one self-contained HTML page: no network, no other file.

`render_html` puts the tables of `resvar.reports.tables`, the curves, the list of runs, where they
were made and how to repeat them into the template in `page/`. Jinja escapes every text; style and
script are inline and allowed by their hash; nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined
from markupsafe import Markup

from resvar.console import duration, plain
from resvar.reports.charts import COLOURS, charts
from resvar.reports.curves import points_per_curve
from resvar.reports.findings import Group, Report
from resvar.reports.notes import DATASET_NAMES
from resvar.reports.parts import group_tables
from resvar.reports.provenance import FACTS, Environments, cells_text, commands, environments
from resvar.reports.records import Record, RunState, settings_of
from resvar.reports.tables import folder_cell, reason, unread_table
from resvar.reports.variations import grids
from resvar.reports.verdicts import V1V2Comparison
from resvar.rundir import CONFIG
from resvar.table import Filled, Table, filled, left
from resvar.version import __version__

PAGE = Path(__file__).parent / "page"
PAGE_TITLE = "Where should BatchNorm and ReLU go?"


@dataclass(frozen=True)
class Image:
    """A figure in SVG; shown as an image, so that no script in it can run."""

    title: str
    svg: str
    caption: str = ""

    @property
    def source(self) -> str:
        """The figure as a data URL, which keeps its ids and styles separate from the page's."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclass(frozen=True)
class Section:
    """A further part of the page, after the groups of runs: a title, tables and figures."""

    title: str
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Image, ...] = ()


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
    most = points_per_curve(report.groups)
    groups = [_group_parts(index, group, most) for index, group in enumerate(report.groups)]
    records = [record for group in report.groups for record in group.records]
    context = {
        "title": PAGE_TITLE,
        "version": __version__,
        "policy": _policy(style, script),
        "style": Markup(style),
        "script": Markup(script),
        "page": page,
        "verdicts": list(_verdicts(report)),
        "facts": _fact_counts(report, page),
        "groups": groups,
        "grids": [
            Section(plain(grid.heading), tuple(map(plain, grid.notes)), tuple(grid.tables()))
            for grid in grids(report.groups)
        ],
        "sections": page.sections,
        "missing": _missing_parts(report, page),
        "environments": _environment_parts(environments(records)),
        "repeat": _repeat(report, page),
        "link": _linker(page.out),
        "colours": COLOURS,
    }
    return _templates().get_template("report.html.j2").render(context)


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
    return made


def _embedded(value: Any) -> Markup:
    """JSON for a `<script>` element, which no text in it can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # json.dumps gives ASCII; no markup is left in it


# --- the parts of the page ------------------------------------------------------------------------


def _group_parts(index: int, group: Group, most: int) -> dict[str, Any]:
    """A group of runs; the ids of its parts start with `id`."""
    id = f"group-{index + 1}"
    made = group_tables(group)

    def of(*kinds: str) -> list[Table]:
        return [table for kind in kinds for table in made if table.kind == kind]

    return {
        "id": id,
        "heading": plain(group.heading),
        "name": plain(_short_name(group)),
        "comparable": group.like_paper,
        "notes": [plain(note) for note in group.notes],
        "first": of("errors", "verdict"),
        "charts": list(charts(group, id, most)),
        "maps": of("map"),
        "others": of("other"),
        "runs": of("runs"),
    }


def _short_name(group: Group) -> str:
    return f"{DATASET_NAMES.get(group.dataset, group.dataset)}, protocol {group.label}"


def _verdicts(report: Report) -> Iterator[tuple[str, str]]:
    """One sentence per group: the verdict on V1 and V2 for each depth."""
    for group in report.groups:
        by_word: dict[str, list[V1V2Comparison]] = {}
        for pair in group.v1_v2:
            by_word.setdefault(pair.word, []).append(pair)
        words = []
        for word, pairs in by_word.items():
            names = [f"ResNet-{pair.depth}" for pair in pairs]
            sentences = {pair.sentence.removeprefix(f"{word}: ") for pair in pairs}
            why = f" ({sentences.pop().rstrip('.')})" if word == "inconclusive" and len(
                sentences) == 1 else ""  # fmt: skip
            words.append(f"{word} at {_listed(names)}{why}")
        where = plain(_short_name(group))
        none = "no verdict." if group.dataset == "sample" else "no run of either is here yet."
        yield where, f"{'; '.join(words)}." if words else none


def _fact_counts(report: Report, page: Page) -> list[tuple[str, str]]:
    """The number of runs in each state, and their run time."""
    records = [record for group in report.groups for record in group.records]
    counts = Counter(record.state for record in (*records, *report.unread))
    counts[RunState.WAITING] = page.waiting
    facts = [(f"{counts[state]:,}", state.value) for state in RunState if counts[state]]
    time = duration(sum(r.result["seconds"] for r in records if r.result))
    return [*facts, (time, "of run time")] if counts[RunState.DONE] else facts


def _missing_parts(report: Report, page: Page) -> tuple[list[str], list[Table]]:
    """Missing results: sentences, and tables of unfinished and unread runs with the reason."""
    notes = []
    for group in report.groups:
        empty: dict[int, list[str]] = {}
        for (variant, depth), entry in group.entries.items():
            if entry.summary is None and not entry.unfinished:
                empty.setdefault(depth, []).append(variant)
        for depth, variants in empty.items():
            notes.append(f"{_short_name(group)}: no run of {_listed(variants)} at ResNet-{depth}.")
    if page.waiting:
        notes.append(f"{page.waiting:,} planned runs are waiting to be started.")
    made = []
    if unfinished := [r for g in report.groups for r in g.records if r.state is not RunState.DONE]:
        columns = (
            left("run", folder_cell, wrap=20),
            left("state", lambda r: r.word),
            left("iteration", _iteration),
            left("reason", reason, wrap=20),
        )
        made.append(filled("Not finished", columns, unfinished))
    if report.unread:
        made.append(unread_table(report))
    return [plain(note) for note in notes], made


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


def _repeat(report: Report, page: Page) -> dict[str, Any]:
    """The commands that repeat the data, the runs of each group, one run, and the page."""
    import shlex

    records = [record for group in report.groups for record in group.records]
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
        "groups": [
            (plain(_short_name(group)), "\n".join(map(plain, lines)))
            for group, lines in _run_commands(report)
        ],
        "one": plain(shlex.join(["resvar", "train", "--config", config, "--out", "again"])),
        "report": plain(again),
    }


def _run_commands(report: Report) -> Iterator[tuple[Group, list[str]]]:
    """The commands of each group; two groups never write to the same run directories."""
    taken: set[Path] = set()
    for index, group in enumerate(report.groups):
        own = [record for record in group.records if record.folder not in group.copies]
        folders = {settings_of(record).directory for record in own}
        yield group, commands(own, f"runs-{index + 1}" if folders & taken else "runs")
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


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
