"""The tables of a group of runs. A new column is a new line in one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from resvar.console import duration, listed, per_second, percent, plain
from resvar.models.ordering import MAP_PLACES, PAPER_ORDER, map_name
from resvar.reports.cells import Cell
from resvar.reports.findings import Group, Report
from resvar.reports.placement_map import Placement, PlacementMap
from resvar.reports.published import Reproduction, reproductions
from resvar.reports.records import Record, RunState, settings_of
from resvar.reports.statistics import Summary
from resvar.reports.verdicts import V1, V2
from resvar.sequences import chunks
from resvar.table import Filled, Table, TableCell, Value, filled, left, right


def unread_table(report: Report) -> Table:
    """The runs that could not be read, and why."""
    columns = (
        left("folder", folder_cell),
        left("state", lambda record: record.word),
        left("reason", reason, wrap=24),
    )
    title = "Not counted: files that cannot be read, or contradict each other"
    return filled(title, columns, report.unread, kind="runs")


def error_tables(group: Group, abreast: int) -> list[Table]:
    """Test errors next to the published ones, `abreast` depths in a table."""
    return [_error_table(group, depths) for depths in chunks(group.depths, abreast)]


def _error_table(group: Group, depths: Sequence[int]) -> Table:
    columns = [left("variant", row_name), left("figure", panel, drop=2)]
    for depth in depths:
        columns += _error_columns(group, depth)
    names = " and ".join(f"ResNet-{depth}" for depth in depths)
    notes = ["Test error at the last iteration, in percent; sd: standard deviation; n: seeds."]
    notes += _lost(group, depths)
    if group.like_paper:
        notes.append(
            "median − paper: in percentage points; inside: the published figure is between the "
            "lowest and the highest of our runs."
        )
        notes += _chances(group) if depths[-1] == group.depths[-1] else ()
    notes += _sources(group, depths)
    return filled(f"Test error (%), {names}", columns, group.variants, notes, "errors")


def _error_columns(group: Group, depth: int) -> Iterator[Filled]:
    """The columns of one depth; their items are variants."""

    def column(title: str, value: Callable[[Cell], Value], **more: Any) -> Filled:
        def cell(variant: str) -> Value:
            return value(group.cells[variant, depth])

        return right(f"{depth}:\n{title}", cell, **more)

    yield column("median", lambda e: f"{e.summary.median:.2f}" if e.summary else None)
    yield column("mean ± sd", lambda e: mean_and_sd(e.summary) if e.summary else None, drop=1)
    yield column("n", lambda e: seeds(e) if e.summary else TableCell(seeds(e), grey=True), wrap=7)
    cells = (group.cells[variant, depth] for variant in group.variants)
    figures = [cell.published for cell in cells if cell.published]
    if not figures:
        return
    paper = "paper\n(median)" if all(figure.runs for figure in figures) else "paper"
    yield column(paper, lambda e: published_cell(e, group), foreign=not group.like_paper)
    if group.like_paper:
        yield column("median\n− paper", _minus_paper)


def _lost(group: Group, depths: Sequence[int]) -> Iterator[str]:
    """How many runs of which cells could not be read."""
    lost = [
        f"{cell.unread} of {cell.known} of {cell.variant} at ResNet-{cell.depth}"
        for cell in group.cells.values()
        if cell.depth in depths and cell.unread
    ]
    if lost:
        yield f"Runs that could not be read and are not counted: {'; '.join(lost)}."


def mean_and_sd(summary: Summary) -> str:
    return f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ± {summary.sd:.2f}")


def seeds(cell: Cell) -> str:
    """How many runs are finished, and the states of the others: `3; 1 stopped`, `missing`.

    Where some cannot be read: `1 of 3; 2 unreadable`.
    """
    others = states_text(cell.unfinished)
    if cell.summary is None:
        return others or "missing"
    counted = f"{cell.summary.n}" + (f" of {cell.known}" if cell.unread else "")
    return f"{counted}; {others}" if others else counted


def published_cell(cell: Cell, group: Group) -> Value:
    figure = cell.published
    return TableCell(f"{figure.test_error:.2f}", grey=not group.like_paper) if figure else None


def _minus_paper(cell: Cell) -> str | None:
    """`+0.12, inside`: our median − the published figure, which is inside the range of our runs."""
    if cell.summary is None or cell.published is None:
        return None
    values, theirs = cell.summary.values, cell.published.test_error
    text = f"{cell.summary.median - theirs:+.2f}"
    if len(values) == 1:
        return text
    return f"{text}, {'inside' if min(values) <= theirs <= max(values) else 'outside'}"


def _chances(group: Group) -> Iterator[str]:
    """How often a published median would be inside if the reproduction were perfect."""
    chances = [
        (cell.summary.n, chance_inside(cell.summary.n, cell.published.runs))
        for cell in group.cells.values()
        if cell.summary and cell.summary.n > 1
        if cell.published and cell.published.runs and cell.published.runs % 2
    ]
    if chances:
        each = [f"{percent(100 * chance, 0)} at n = {n}" for n, chance in sorted(set(chances))]
        together = percent(100 * math.prod(chance for _, chance in chances), 0)
        more = f", and all {len(chances)} of them with {together}" if len(chances) > 1 else ""
        yield (
            "If our runs and the paper's had the same distribution, a published median would be "
            f"inside with a probability of {', '.join(each)}{more}."
        )


def chance_inside(n: int, runs: int) -> float:
    """The probability that the median of some runs is in the range of `n` others of the same kind.

    Ranked together, all orders of the n + `runs` errors are equally likely. The median is below the
    range where the first (`runs` + 1) / 2 of them are not of the n; it is above as often.

    Args:
        runs: an odd number.
    """
    return 1 - 2 * math.comb(n + (runs - 1) // 2, n) / math.comb(n + runs, n)


def _sources(group: Group, depths: Sequence[int]) -> Iterator[str]:
    """A line per source of the published figures at these depths, the most frequent one first.

    A source of less than half of a depth's figures names the variants.
    """
    at = {
        depth: {v: f for v in group.variants if (f := group.cells[v, depth].published)}
        for depth in depths
    }
    found: dict[tuple[str, str], dict[int, list[str]]] = {}
    for depth, figures in at.items():
        for variant, figure in figures.items():
            cells = found.setdefault((figure.source, figure.note), {})
            cells.setdefault(depth, []).append(variant)
    for (source, note), cells in sorted(
        found.items(), key=lambda item: -sum(map(len, item[1].values()))
    ):
        names = [
            f"ResNet-{depth}"
            if 2 * len(variants) >= len(at[depth])
            else f"{listed(variants)} at ResNet-{depth}"
            for depth, variants in cells.items()
        ]
        yield f"paper, {', '.join(names)}: {source}; {note}."
    if found and not group.like_paper:
        yield (
            "The published figures are for orientation only: these runs do not follow the "
            "paper's protocol."
        )


def others_table(group: Group) -> Iterator[Table]:
    """What others measured for the cells of a group that follows the paper, beside ours."""
    found = [
        (cell, result)
        for depth in group.depths
        for variant in group.variants
        if (cell := group.cells[variant, depth]) and group.like_paper
        for result in reproductions(group.dataset, variant, depth)
    ]
    if not found:
        return
    columns = (
        right("depth", lambda pair: pair[0].depth),
        left("variant", lambda pair: row_name(pair[0].variant)),
        right(
            "ours\n(median)", lambda pair: pair[0].summary and pair[0].summary.median, ".2f", drop=2
        ),
        right("theirs", lambda pair: pair[1].test_error, ".2f"),
        right("runs", lambda pair: pair[1].runs),
        left("epoch", lambda pair: pair[1].epoch, drop=1),
        left("by", lambda pair: _owner(pair[1])),
    )
    notes = [
        "theirs: the median of the runs where there are several; epoch best: the lowest of all "
        "epochs, chosen on the test images, and so optimistic; –: not stated."
    ]
    notes += dict.fromkeys(
        f"{_owner(result)}: {result.source}. Not the paper's protocol: {result.differs}."
        for _, result in found
    )
    yield filled("Others' test errors (%), for orientation only", columns, found, notes)


def _owner(result: Reproduction) -> str:
    return result.by.partition("/")[0]


def map_table(found: PlacementMap) -> Table:
    """BN's place by row, ReLU's place by column."""

    def column(relu: str) -> Filled:
        def cell(bn: str) -> TableCell:
            here = [p for p in found.placements if (p.bn, p.relu) == (bn, relu)]
            return _map_cell(here)

        return left(f"ReLU at\n{relu}", cell, wrap=16)

    notes = [
        "Median test error at the last iteration, in percent (n: seeds); *: the lowest, which does "
        "not by itself mean that it is better.",
        "lead: before the first convolution; trail: after the last; after_add: after the addition. "
        "Unpublished orderings are named after their places, such as bn-lead-relu-after-add.",
    ]
    if found.outside:
        names = ", ".join(found.outside)
        notes.append(f"Not on this map, which has one BN and then one ReLU: {names}.")
    title = f"Where BN and ReLU go: test error (%), ResNet-{found.depth}"
    columns = (left("BN at", str), *map(column, MAP_PLACES))
    return filled(title, columns, MAP_PLACES, notes, "map")


def _map_cell(placements: Sequence[Placement]) -> TableCell:
    lines = [line for placement in placements for line in _placement_lines(placement)]
    return TableCell(
        "\n".join(lines),
        grey=not any(placement.cell.summary for placement in placements),
        strong=any(placement.best for placement in placements),
    )


def _placement_lines(placement: Placement) -> Iterator[str]:
    """The ordering, its median with n, and the published figure where there is one."""
    cell = placement.cell
    own_name = cell.variant != map_name(placement.bn, placement.relu)
    yield row_name(cell.variant) if own_name else "not published"
    median = f"{cell.summary.median:.2f} ({seeds(cell)})" if cell.summary else seeds(cell)
    yield median + (" *" if placement.best else "")
    if cell.published is not None:
        yield f"paper {cell.published.test_error:.2f}"


def run_table(group: Group) -> Table:
    def result(key: str) -> Callable[[Record], Value]:
        """A field of the result; of the progress, while the run is unfinished."""
        return lambda r: r.result[key] if r.result else getattr(r.progress, key, None)

    varied = len({record.label for record in group.records}) > 1
    columns = (
        left("variant", lambda r: TableCell(settings_of(r).variant, folder=r.folder)),
        right("depth", lambda r: settings_of(r).depth),
        *([left("settings", lambda r: r.label, wrap=12)] if varied else []),
        right("seed", lambda r: settings_of(r).seed),
        right("test\nerror", result("test_error"), ".2f"),
        right("best\n(optimistic)", result("best_test_error"), ".2f", drop=2),
        right("train\nloss", result("train_loss"), ".4f", drop=2),
        right("iterations", _iterations_done, ",d", drop=1),
        right("time", lambda r: _duration(result("seconds")(r))),
        right("images/s", lambda r: _speed_text(result("images_per_second")(r)), drop=3),
        left("device", result("device"), drop=5),
        left("precision", result("precision"), drop=4),
        left("commit", lambda r: r.result and (r.result["commit"] or "")[:7], drop=6),
        left(
            "state",
            lambda r: "copy, not counted" if r.folder in group.copies else states_text([r]),
            wrap=10,
        ),
        left("folder", folder_cell, drop=7),
    )
    notes = [
        "best: the lowest test error of all evaluations; it is chosen on the test images, and so "
        "optimistic."
    ]
    for record in group.records:
        if record.state is RunState.FAILED:
            notes.append(f"{record.folder.as_posix()} {states_text([record])}: {reason(record)}")
    return filled("Every run", columns, group.records, notes, "runs")


# --- the words in a cell --------------------------------------------------------------------------


def row_name(variant: str) -> str:
    """`original (V1)`, `full-preact (V2)`, and every other variant by its name."""
    return f"{variant} ({'V1' if variant == V1 else 'V2'})" if variant in (V1, V2) else variant


def panel(variant: str) -> str | None:
    """The panel of the paper's figure 4, such as `4(e)`."""
    return f"4({'abcde'[PAPER_ORDER.index(variant)]})" if variant in PAPER_ORDER else None


def states_text(records: Sequence[Record]) -> str:
    """The states of runs: `running 43 %`, `stopped at 12 of 400`, `diverged at iteration 12`, …"""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(record.word, []).append(record)
    return ", ".join(
        f"{len(those)} {kind}" if len(those) > 1 else kind + _how_far(those[0])
        for kind, those in kinds.items()
    )


def _how_far(record: Record) -> str:
    progress = record.progress
    if progress is None or record.state is RunState.DONE:
        return ""
    if record.state is RunState.RUNNING:
        return f" {percent(100 * progress.share, 0)}"
    if record.diverged:
        return f" at iteration {progress.iteration}"
    return f" at {progress.iteration} of {progress.iterations}"


def _iterations_done(record: Record) -> int | None:
    if record.result:
        return int(record.result["iterations"])
    return record.progress.iteration if record.progress else None


def folder_cell(record: Record) -> TableCell:
    return TableCell(plain(record.folder.as_posix()), folder=record.folder)


def _duration(seconds: Any) -> str | None:
    return None if seconds is None else duration(seconds)


def _speed_text(speed: Any) -> str | None:
    return None if speed is None else per_second(speed)


def reason(record: Record) -> str:
    """Why a run failed or cannot be read, without the folder, which has its own cell."""
    return record.message.removeprefix(f"{record.folder}: ").replace(f"{record.folder}/", "")
