"""The first screen of a report: the question, the test errors, the verdicts, what is missing.

A report on the terminal shows this and nothing else, unless all of it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from resvar.console import listed, plain, pluralize
from resvar.reports.cells import Cell
from resvar.reports.findings import Group, Report
from resvar.reports.notes import DATASET_NAMES
from resvar.reports.records import Record, RunState
from resvar.reports.tables import published_cell, row_name
from resvar.reports.variations import MOST_ABREAST, Grid, grids, is_tabulated
from resvar.sequences import chunks
from resvar.table import Filled, Prose, Table, TableCell, Value, filled, left, natural_width, right

QUESTION = "Where should BatchNorm and ReLU go?"

MOST_TABLES = 4
"""Groups with a table of their own; if there are more, only the first has one."""

MOST_LINES = 8
"""Further groups and grids with a line each; one more line counts the rest."""


def first_screen(report: Report, width: int) -> Iterator[str | Prose | Table]:
    """Its lines and tables, for a terminal of `width` columns.

    A group has a table of its own, unless a grid says all about it: a table of groups that differ
    in one or two settings (`variations.py`).
    """
    found = grids(report.groups)
    main = [group for group in report.groups if not is_tabulated(group)]
    if not main and not found:
        main = list(report.groups)
    if len(main) > MOST_TABLES:
        main = main[:1]
    yield Prose(QUESTION, "bold")
    for number, group in enumerate(main):
        if number:
            yield ""
        yield from _shown_group(group, width, all_variants=number == 0)
    others = [(grid.heading, list(grid.groups.values())) for grid in found]
    in_grids = [group for _, groups in others for group in groups]
    if found and not main:
        yield from _shown_grid(found[0], width)
        del others[0]
    lone = [group for group in report.groups if group not in main and group not in in_grids]
    yield from _lines([*others, *((_short_name(group), [group]) for group in lone)])
    yield from unread_counts(report)
    yield Prose(f"resvar report --full shows {listed(_the_rest(report))}.", "dim")


def verdict_sentences(group: Group) -> Iterator[str]:
    """The verdict on V1 and V2 at each depth; depths with the same one share a sentence."""
    depths: dict[str, list[str]] = {}
    for pair in group.v1_v2:
        depths.setdefault(pair.sentence, []).append(f"ResNet-{pair.depth}")
    for sentence, names in depths.items():
        yield f"{listed(names)}: {sentence}"


def missing_counts(group: Group) -> Iterator[str]:
    """One sentence on the cells and runs without a result, if there are any."""
    cells = group.cells.values()
    empty = [cell for cell in cells if cell.summary is None]
    parts = [f"{len(empty)} of {len(cells)} cells have no finished run"] if empty else []
    if states := _states(r for r in group.records if r.state is not RunState.DONE):
        parts.append(states)
    if parts:
        yield f"Missing: {'; '.join(parts)}."


def unread_counts(report: Report) -> Iterator[str]:
    """One sentence on the runs that are not counted, if there are any."""
    if report.unread:
        states = _states(report.unread)
        yield f"Not counted, because their files are unreadable or incomplete: {states}."


def _states(records: Iterable[Record]) -> str:
    """`2 runs stopped, 1 diverged`."""
    counts = Counter(record.word for record in records)
    texts = [f"{count:,} {word}" for word, count in counts.items()]
    if texts:
        count, _, word = texts[0].partition(" ")
        texts[0] = f"{count} run{'s' * (count != '1')} {word}"
    return ", ".join(texts)


def _the_rest(report: Report) -> list[str]:
    """What the report says beyond its first screen."""
    groups = report.groups
    notes = sum(len(group.notes) for group in groups)
    return [
        "every run",
        *(["the comparisons with original"] if any(g.contrasts for g in groups) else []),
        *(["the maps of BN and ReLU"] if any(g.maps for g in groups) else []),
        *([f"{pluralize(notes, 'note')} on these runs"] if notes else []),
    ]


# --- with a table ---------------------------------------------------------------------------------


def _shown_group(group: Group, width: int, all_variants: bool) -> Iterator[str | Prose | Table]:
    yield Prose(plain(group.heading), "bold")
    shown = [
        variant
        for variant in group.variants
        if all_variants or any(group.cells[variant, depth].runs for depth in group.depths)
    ]
    for abreast in range(len(group.depths), 0, -1):
        made = [short_table(group, shown, part) for part in chunks(group.depths, abreast)]
        if all(natural_width(table) <= width for table in made):
            break
    yield from made
    yield Prose(short_note(group), "dim", 2)
    yield from verdict_sentences(group)
    yield from map(plain, group.mixed)
    yield from missing_counts(group)


def short_table(group: Group, variants: Sequence[str], depths: Sequence[int]) -> Table:
    """The test errors in few columns: median, sd, n, and the paper's figure."""
    columns = chain.from_iterable(_short_columns(group, depth) for depth in depths)
    return filled("", [left("variant", row_name), *columns], variants, kind="errors")


def short_note(group: Group) -> str:
    """What the columns of `short_table` are, and of how many runs the published medians."""
    note = "Median test error (%) of n seeds, and their sd"
    depths: dict[str, list[str]] = {}
    for cell in group.cells.values():
        if (figure := cell.published) is not None:
            text = f"median of {figure.runs} runs" if figure.runs else "number of runs not stated"
            depths.setdefault(text, []).append(f"ResNet-{cell.depth}")
    if len(depths) == 1:
        return f"{note}; paper: {next(iter(depths))}."
    texts = [f"{text} ({listed(list(dict.fromkeys(at)))})" for text, at in depths.items()]
    return f"{note}; paper: {', '.join(texts)}." if texts else f"{note}."


def _short_columns(group: Group, depth: int) -> Iterator[Filled]:
    """The columns of one depth; their items are variants."""

    def column(title: str, value: Callable[[Cell], Value]) -> Filled:
        return right(
            f"{depth}:\n{title}", lambda variant: value(group.cells[variant, depth]), ".2f"
        )

    yield column("median", lambda e: e.summary.median if e.summary else None)
    yield column("sd", lambda e: e.summary.sd if e.summary else None)
    yield column("n", _seeds)
    if any(group.cells[variant, depth].published for variant in group.variants):
        yield column("paper", lambda e: published_cell(e, group))


def _seeds(cell: Cell) -> TableCell:
    """`5`, or `4 of 5` where a run is not finished or cannot be read."""
    n = cell.summary.n if cell.summary else 0
    text = f"{n} of {cell.runs}" if cell.unfinished else f"{n}"
    return TableCell(text, grey=n == 0)


def _shown_grid(grid: Grid, width: int) -> Iterator[Prose | Table]:
    yield Prose(plain(grid.heading), "bold")
    for abreast in range(MOST_ABREAST, 0, -1):
        made = grid.error_tables(abreast)
        if all(natural_width(table) <= width for table in made):
            break
    yield from made


# --- in a line ------------------------------------------------------------------------------------


def _lines(others: Sequence[tuple[str, Sequence[Group]]]) -> Iterator[str]:
    """A line each, by name; if there are many, one line counts the rest."""
    if others:
        yield ""
    for name, groups in others[:MOST_LINES]:
        yield f"{plain(name)}: {_in_short(groups)}."
    told, rest = (
        {group.heading: group for _, groups in part for group in groups}
        for part in (others[:MOST_LINES], others[MOST_LINES:])
    )
    if more := [rest[heading] for heading in rest if heading not in told]:
        yield f"{pluralize(len(more), 'further group')} of settings: {_in_short(more)}."


def _in_short(groups: Sequence[Group]) -> str:
    """The runs by state, the range of their medians, and the verdicts."""
    texts = [_states(record for group in groups for record in group.records)]
    medians = [e.summary.median for group in groups for e in group.cells.values() if e.summary]
    if medians:
        low, high = (f"{value:.2f}" for value in (min(medians), max(medians)))
        texts.append(f"test error {low} %" if low == high else f"medians {low} to {high} %")
    words = {pair.word for group in groups for pair in group.v1_v2 if pair.comparison}
    return "; ".join([*texts, *([f"V1 and V2: {', '.join(sorted(words))}"] if words else [])])


def _short_name(group: Group) -> str:
    return f"{DATASET_NAMES.get(group.dataset, group.dataset)}, protocol {group.label}"
