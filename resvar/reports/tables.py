"""A group of runs as neutral tables: titles, columns, cells and notes, for any renderer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resvar.console import plain
from resvar.models.ordering import MAP_PLACES, PAPER_ORDER, map_name
from resvar.reports.findings import (
    V1,
    V2,
    Entry,
    Group,
    Placement,
    PlacementMap,
    Report,
    V1V2Comparison,
)
from resvar.reports.published import Published
from resvar.reports.records import (
    Record,
    State,
    settings_of,
)
from resvar.reports.statistics import (
    Comparison,
    Summary,
)
from resvar.sequences import chunks


@dataclass(frozen=True)
class Column:
    """A column; a line break in its title is where a narrow page may break it.

    Attributes:
        drop: 0 for a column that always stays; where a page is too narrow, the columns with the
            highest numbers go first.
        wrap: its text is long, and may be broken.
    """

    title: str
    align: Literal["left", "right"] = "right"
    drop: int = 0
    wrap: bool = False

    @property
    def name(self) -> str:
        """The title in one line."""
        return self.title.replace("\n", " ")


@dataclass(frozen=True)
class Cell:
    """A text, perhaps of several lines.

    Attributes:
        grey: it stands for something that is not there, or not ours.
        strong: it is the one to look at.
        folder: a run directory that the text names, for those who can follow a link.
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
    """A table that any renderer can write; notes stand below it.

    Attributes:
        kind: what it is about, for those who choose where it stands.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    kind: Literal["errors", "map", "verdict", "runs", "other"] = "other"


NOTHING = Cell("–", grey=True)


def tables(group: Group, abreast: int = 2) -> list[Table]:
    """The tables of a group: test errors, maps, comparisons with original, V1 and V2, agreement of
    predictions, every run.

    Args:
        abreast: depths whose test errors share a table.
    """
    made = error_tables(group, abreast)
    made += [_map_table(found, group.like_paper) for found in group.maps]
    if group.contrasts:
        made.append(_contrast_table(group))
    if group.duels:
        made.append(_duel_table(group))
    made += _difference_tables(group)
    if any(found.pairing or found.predicted_sd is not None for found in group.agreements):
        made.append(_agreement_table(group))
    return [*made, _run_table(group)]


def damaged_table(report: Report) -> Table:
    """The runs that could not be read, and why."""
    return Table(
        "Not counted: files that cannot be read, or contradict one another",
        (Column("folder", "left", wrap=True), Column("reason", "left", wrap=True)),
        tuple((_folder(r), _text(reason(r))) for r in report.damaged),
    )


def error_tables(group: Group, abreast: int) -> list[Table]:
    return [_error_table(group, depths) for depths in chunks(group.depths, abreast)]


def _error_table(group: Group, depths: Sequence[int]) -> Table:
    """The test errors at a few depths beside the published ones."""
    paper = "paper" if group.like_paper else "paper\n(not comparable)"
    columns = [Column("variant", "left"), Column("figure", "left")]
    titles = ["median", "mean ± sd", "n", paper]
    if group.like_paper:
        titles.append("median\n- paper")
    for depth in depths:
        columns += [Column(f"{depth}:\n{title}") for title in titles]
    rows = []
    for variant in group.variants:
        row = [Cell(row_name(variant)), Cell(_figure(variant))]
        for depth in depths:
            row += _error_cells(group.entries[variant, depth], group.like_paper)
        rows.append(tuple(row))
    names = " and ".join(f"ResNet-{depth}" for depth in depths)
    notes = ["Test error in percent of the last iteration; sd: standard deviation; n: seeds."]
    if group.like_paper:
        notes.append(
            "median - paper: in percentage points; inside: the published median lies between the "
            "lowest and the highest of our runs."
        )
    notes += _sources(group, depths)
    return Table(f"Test error (%), {names}", tuple(columns), tuple(rows), tuple(notes), "errors")


def _error_cells(entry: Entry, like_paper: bool) -> list[Cell]:
    """Median, mean ± sd, n and the published figure; where comparable, ours beside it."""
    summary, others = entry.summary, standing(entry.unfinished)
    figure = entry.published
    theirs = Cell(f"{figure.test_error:.2f}", grey=not like_paper) if figure else NOTHING
    if summary is None:
        missing = [NOTHING, NOTHING, Cell(others or "missing", grey=True), theirs]
        return [*missing, NOTHING] if like_paper else missing
    spread = "" if summary.sd is None else f" ± {summary.sd:.2f}"
    n = f"{summary.n}; {others}" if others else f"{summary.n}"
    cells = [Cell(f"{summary.median:.2f}"), Cell(f"{summary.mean:.2f}{spread}"), Cell(n), theirs]
    return [*cells, _beside_paper(summary, figure)] if like_paper else cells


def _beside_paper(summary: Summary, figure: Published | None) -> Cell:
    """`+0.12, inside`: our median less the published one, and whether that lies within our runs."""
    if figure is None:
        return NOTHING
    text = f"{summary.median - figure.test_error:+.2f}"
    if summary.n == 1:
        return Cell(text)
    inside = min(summary.values) <= figure.test_error <= max(summary.values)
    return Cell(f"{text}, {'inside' if inside else 'outside'}")


def _sources(group: Group, depths: Sequence[int]) -> Iterator[str]:
    """A line per source of the published figures at these depths."""
    found: dict[Published, list[int]] = {}
    for depth in depths:
        for variant in group.variants:
            figure = group.entries[variant, depth].published
            if figure is not None:
                key = Published(0, figure.source, figure.runs)
                found.setdefault(key, []).append(depth)
    for figure, where in found.items():
        runs = f"median of {figure.runs} runs" if figure.runs else "number of runs not said"
        names = ", ".join(f"ResNet-{depth}" for depth in dict.fromkeys(where))
        yield f"paper, {names}: {figure.source}; {runs}."
    if found and not group.like_paper:
        yield (
            "The published figures are for orientation only: these runs were not made as the "
            "paper's were."
        )


def _map_table(found: PlacementMap, like_paper: bool) -> Table:
    """BN's place from row to row, that of ReLU from column to column."""
    columns = [Column("BN at", "left")]
    columns += [Column(f"ReLU at\n{place}", "left") for place in MAP_PLACES]
    rows = []
    for bn in MAP_PLACES:
        row = [Cell(bn)]
        for relu in MAP_PLACES:
            here = [p for p in found.placements if (p.bn, p.relu) == (bn, relu)]
            row.append(_map_cell(here, like_paper))
        rows.append(tuple(row))
    notes = [
        "Median test error in percent of the last iteration (n: seeds); *: the lowest, which alone "
        "does not say that it is better.",
        "lead: before the first convolution; trail: after the last; after_add: after the addition. "
        "What is not published is named after its places, such as bn-lead-relu-after-add.",
    ]
    if found.outside:
        names = ", ".join(found.outside)
        notes.append(f"Not on this map, which has one BN and then one ReLU: {names}.")
    title = f"Where BN and ReLU stand: test error (%), ResNet-{found.depth}"
    return Table(title, tuple(columns), tuple(rows), tuple(notes), "map")


def _map_cell(placements: Sequence[Placement], like_paper: bool) -> Cell:
    lines = [line for placement in placements for line in _placement_lines(placement, like_paper)]
    return Cell(
        "\n".join(lines),
        grey=not any(placement.entry.summary for placement in placements),
        strong=any(placement.best for placement in placements),
    )


def _placement_lines(placement: Placement, like_paper: bool) -> Iterator[str]:
    """The ordering, its median with n, and the published figure where there is one."""
    entry, others = placement.entry, standing(placement.entry.unfinished)
    own_name = entry.variant != map_name(placement.bn, placement.relu)
    yield row_name(entry.variant) if own_name else "not published"
    if entry.summary is None:
        yield others or "missing"
    else:
        n = f"{entry.summary.n}; {others}" if others else f"{entry.summary.n}"
        yield f"{entry.summary.median:.2f} ({n})" + (" *" if placement.best else "")
    if entry.published is not None:
        warning = "" if like_paper else " (not comparable)"
        yield f"paper {entry.published.test_error:.2f}{warning}"


def _contrast_table(group: Group) -> Table:
    columns = (
        Column("depth"),
        Column("variant", "left"),
        Column("n (original,\nvariant)"),
        Column("difference\nof means"),
        Column("95 % interval\n(Welch)"),
        Column("p\n(permutation)"),
        Column("p\n(Holm)"),
    )
    rows = tuple(
        (
            Cell(f"{contrast.depth}"),
            Cell(row_name(contrast.variant)),
            Cell("{}, {}".format(*contrast.comparison.n)),
            Cell(f"{contrast.comparison.difference:+.2f}"),
            _interval_cell(contrast.comparison),
            _p_cell(contrast.comparison.p),
            _p_cell(contrast.p_holm),
        )
        for contrast in group.contrasts
    )
    notes = ("Percentage points, variant less original: below 0 the variant is better.",)
    return Table("Compared with original (V1)", columns, rows, notes + _limits(group))


def _limits(group: Group) -> tuple[str, ...]:
    """What the comparisons cannot say, and how the p-values were made."""
    notes, silent = [], dict[str, list[str]]()
    for contrast in group.contrasts:
        if contrast.comparison.reason:
            name = f"{contrast.variant} at ResNet-{contrast.depth}"
            silent.setdefault(contrast.comparison.reason, []).append(name)
    for reason, names in silent.items():
        notes.append(f"What cannot be said: {reason} ({', '.join(names)}).")
    tested = [c for c in group.contrasts if c.comparison.p is not None]
    if not tested:
        return tuple(notes)
    families = {c.depth: c.family for c in tested}
    text = ", ".join(f"{size} at ResNet-{depth}" for depth, size in families.items())
    random = [c.comparison.resamples for c in tested if c.comparison.resamples is not None]
    how = f"over {random[0]:,} random partitions where n is large" if random else "exact"
    notes.append(
        f"p: two-sided permutation test of the difference of means, {how}; corrected by Holm for "
        f"the comparisons of a depth ({text})."
    )
    floors = {c.comparison.n: c.comparison.smallest_p or 0 for c in tested}
    for (first, second), floor in sorted(floors.items()):
        if floor > 0.05:
            notes.append(
                f"With n = {first} and {second} this test cannot give a p below {floor:.2f}, "
                "however large the difference."
            )
    return tuple(notes)


def _duel_table(group: Group) -> Table:
    columns = (
        Column("depth"),
        Column("V1 mean"),
        Column("V2 mean"),
        Column("V2 - V1"),
        Column("95 % interval\n(Welch)"),
        *(
            Column(f"paper\n{title}" + ("" if group.like_paper else "\n(not comparable)"))
            for title in ("V1", "V2", "V2 - V1")
        ),
        Column("verdict", "left"),
    )
    rows = []
    for duel in group.duels:
        ours = [_mean_cell(duel.v1), _mean_cell(duel.v2)]
        comparison, theirs = duel.comparison, duel.published_difference
        figures = [duel.v1.published, duel.v2.published]
        grey = not group.like_paper
        rows.append(
            (
                Cell(f"{duel.depth}"),
                *ours,
                Cell(f"{comparison.difference:+.2f}") if comparison else NOTHING,
                _interval_cell(comparison) if comparison else NOTHING,
                *(Cell(f"{f.test_error:.2f}", grey) if f else NOTHING for f in figures),
                Cell(f"{theirs:+.2f}", grey) if theirs is not None else NOTHING,
                Cell(duel.verdict.word),
            )
        )
    notes = [f"ResNet-{duel.depth}: {duel.verdict.sentence}" for duel in group.duels]
    notes += [sentence for duel in group.duels for sentence in _seeds_needed(duel)]
    if not group.like_paper:
        notes.append(f"These verdicts are about runs of protocol {group.label} alone.")
    title = "V1 (original) against V2 (full-preact)"
    return Table(title, columns, tuple(rows), tuple(plain(note) for note in notes), "verdict")


def _seeds_needed(duel: V1V2Comparison) -> Iterator[str]:
    """How many seeds would show the paper's difference, where two seeds of each tell the spread."""
    if duel.sd is None or duel.published_difference is None:
        return
    wanted = duel.seeds_needed
    number = f"{wanted:,}" if wanted is not None else "more than a million"
    yield (
        f"ResNet-{duel.depth}: to see the paper's difference of {duel.published_difference:+.2f} "
        f"points with 80 % power at the spread measured here (sd {duel.sd:.2f}) would take "
        f"{number} seeds of each."
    )


def _difference_tables(group: Group) -> Iterator[Table]:
    """On how many test images the runs of two variants differ, a table for each depth."""
    for depth in group.depths:
        here = [found for found in group.agreements if found.depth == depth]
        if not any(found.across or found.within is not None for found in here):
            continue
        columns = [Column("variant", "left"), *(Column(found.variant) for found in here)]
        rows = []
        for found in here:
            shares = {found.variant: found.within, **found.across}
            cells = [_number(shares[other.variant], ".2f") for other in here]
            rows.append((Cell(row_name(found.variant)), *cells))
        notes = [
            "Percent of test images that two runs put into different classes, mean over pairs of "
            "runs; on the diagonal between the seeds of one variant, which is the yardstick."
        ]
        title = f"Where predictions differ (%), ResNet-{depth}"
        yield Table(title, tuple(columns), tuple(rows), tuple(notes))


def _agreement_table(group: Group) -> Table:
    """Single runs against those of original, image by image: it says something even at one seed."""
    columns = (
        Column("depth"),
        Column("variant", "left"),
        Column("runs"),
        Column("seed\ncompared"),
        Column("only original\nright"),
        Column("only it\nright"),
        Column("p\n(McNemar)"),
        Column("sd\npredicted"),
    )
    rows = []
    for found in group.agreements:
        pair = found.pairing
        rows.append(
            (
                Cell(f"{found.depth}"),
                Cell(row_name(found.variant)),
                Cell(f"{found.n}"),
                _number(pair.seed if pair else None, "d"),
                _number(pair.first_only if pair else None, ",d"),
                _number(pair.second_only if pair else None, ",d"),
                _p_cell(pair.p if pair else None),
                _number(found.predicted_sd, ".2f"),
            )
        )
    notes = []
    if any(found.pairing for found in group.agreements):
        notes.append(
            "McNemar's exact test is about the two single runs of the seed compared, not about "
            "the variants: other seeds may fall otherwise."
        )
    if any(found.predicted_sd is not None for found in group.agreements):
        notes.append(
            "sd predicted: between seeds, in points, if test images fell independently "
            "(arXiv:2304.01910)."
        )
    return Table("Agreement of predictions", columns, tuple(rows), tuple(notes))


def _run_table(group: Group) -> Table:
    columns = (
        Column("variant", "left"),
        Column("depth"),
        Column("seed"),
        Column("test\nerror"),
        Column("best\n(optimistic)"),
        Column("train\nloss"),
        Column("iterations"),
        Column("time"),
        Column("images/s", drop=1),
        Column("device", "left", drop=3),
        Column("precision", "left", drop=2),
        Column("commit", "left", drop=4),
        Column("state", "left"),
        Column("folder", "left", drop=5),
    )
    notes = [
        "best: the lowest error that an evaluation on the test images met; chosen with them, and "
        "so optimistic."
    ]
    for record in group.records:
        if record.state is State.FAILED:
            notes.append(f"{record.folder.as_posix()} {standing([record])}: {reason(record)}")
    rows = tuple(_run_cells(record, group) for record in group.records)
    return Table("Every run", columns, rows, tuple(plain(note) for note in notes), "runs")


def _run_cells(record: Record, group: Group) -> tuple[Cell, ...]:
    settings, result, progress = settings_of(record), record.result or {}, record.progress
    iteration = result.get("iterations", progress.iteration if progress else None)
    seconds = result.get("seconds", progress.seconds if progress else None)
    speed = result.get("images_per_second", progress.images_per_second if progress else None)
    state = "copy, not counted" if record.folder in group.copies else standing([record])
    return (
        Cell(settings.variant, folder=record.folder),
        Cell(f"{settings.depth}"),
        Cell(f"{settings.seed}"),
        _number(result.get("test_error"), ".2f"),
        _number(result.get("best_test_error"), ".2f"),
        _number(result.get("train_loss"), ".4f"),
        _number(iteration, "d"),
        NOTHING if seconds is None else Cell(_duration(seconds)),
        _number(speed, ".0f"),
        _text(result.get("device") or ""),
        _text(result.get("precision") or ""),
        _text((result.get("commit") or "")[:7]),
        Cell(state),
        _folder(record),
    )


# --- the words in a cell --------------------------------------------------------------------------


def row_name(variant: str) -> str:
    """`original (V1)`, `full-preact (V2)`, and every other variant by its name."""
    return f"{variant} ({'V1' if variant == V1 else 'V2'})" if variant in (V1, V2) else variant


def _figure(variant: str) -> str:
    """The panel of the paper's figure 4, such as `4(e)`."""
    return f"4({'abcde'[PAPER_ORDER.index(variant)]})" if variant in PAPER_ORDER else "–"


def standing(records: Sequence[Record]) -> str:
    """How runs stand: `running 43 %`, `stopped at 12 of 400`, `diverged at iteration 12`, …"""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault("diverged" if record.diverged else str(record.state), []).append(record)
    return ", ".join(
        f"{len(those)} {kind}" if len(those) > 1 else kind + _how_far(those[0])
        for kind, those in kinds.items()
    )


def _how_far(record: Record) -> str:
    progress = record.progress
    if progress is None or record.state is State.DONE:
        return ""
    if record.state is State.RUNNING:
        return f" {100 * progress.share:.0f} %"
    if record.diverged:
        return f" at iteration {progress.iteration}"
    return f" at {progress.iteration} of {progress.iterations}"


def _interval_cell(comparison: Comparison) -> Cell:
    if comparison.interval is None:
        return NOTHING
    return Cell("{:+.2f} to {:+.2f}".format(*comparison.interval))


def _mean_cell(entry: Entry) -> Cell:
    return Cell(f"{entry.summary.mean:.2f}") if entry.summary else NOTHING


def _p_cell(p: float | None) -> Cell:
    return NOTHING if p is None else Cell("< 0.001" if p < 0.001 else f"{p:.3f}")


def _number(value: float | None, form: str) -> Cell:
    return NOTHING if value is None else Cell(format(value, form))


def _text(value: str) -> Cell:
    return Cell(plain(value)) if value else NOTHING


def _folder(record: Record) -> Cell:
    return Cell(plain(record.folder.as_posix()), folder=record.folder)


def _duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def reason(record: Record) -> str:
    """Why a run failed or is damaged, without the folder that stands beside it."""
    return record.message.replace(f"{record.folder}/", "")
