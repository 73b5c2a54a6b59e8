"""The findings: runs in comparable groups, their statistics, and the paper's figures.

`build` sorts the records into groups and does the statistics; `tables.py` lays them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

from resvar.models.ordering import PAPER_ORDER, in_paper_order
from resvar.reports.agreement import Agreement, agreements, all_predictions, is_long
from resvar.reports.cells import (
    Cell,
    CellKey,
    cell_key,
    cells_of_unread,
    group_key,
    one_per_seed,
    refuse_two_orderings,
    told_apart,
)
from resvar.reports.comparable import follows_paper
from resvar.reports.design import Design, read_design
from resvar.reports.notes import group_notes, heading, mixed_notes
from resvar.reports.placement_map import PlacementMap, placement_maps
from resvar.reports.pooled import Pooled, pool
from resvar.reports.published import published, usual_sd
from resvar.reports.records import Record, result_of, settings_of
from resvar.reports.search import in_report_order
from resvar.reports.statistics import Comparison, compare, holm, summarise
from resvar.reports.verdicts import V1, V2, V1V2Comparison


@dataclass(frozen=True)
class Contrast:
    """A variant against `original` at one depth.

    Attributes:
        p_holm: the p-value corrected by Holm for the `family` p-values at this depth; of V2 the one
            corrected for the depths (`V1V2Comparison.p_family`).
    """

    variant: str
    depth: int
    comparison: Comparison
    p_holm: float | None
    family: int


@dataclass(frozen=True)
class Group:
    """Comparable runs: one label, one dataset.

    Attributes:
        like_paper: protocol and network are the paper's, so published figures are comparable.
        cells: (variant, depth) → cell, for every variant and depth of the group.
        v1_v2: by depth; none for the sample of CIFAR-10, whose runs say nothing about the paper.
        pooled: V1 against V2 over its depths together, or None.
        maps: of the depths with a run of all five published orderings, or of an unpublished cell.
        agreements: of the predictions, for every cell with predictions.
        records: every run but the unread ones.
        copies: folder of a run that is not counted → folder of the same run, which is.
        mixed: what else differs between the runs of V1 and V2, such as the commit.
        caveats: of the runs, `mixed` first.
        notes: the caveats, and why nothing can be compared; they precede the tables.
    """

    label: str
    dataset: str
    like_paper: bool
    heading: str
    variants: tuple[str, ...]
    depths: tuple[int, ...]
    cells: Mapping[CellKey, Cell]
    contrasts: tuple[Contrast, ...]
    v1_v2: tuple[V1V2Comparison, ...]
    pooled: Pooled | None
    maps: tuple[PlacementMap, ...]
    agreements: tuple[Agreement, ...]
    records: tuple[Record, ...]
    copies: Mapping[Path, Path]
    mixed: tuple[str, ...]
    caveats: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The groups, which are never mixed, and the runs of which nothing can be counted.

    Attributes:
        unread: damaged and unreadable runs, and runs that have not written their settings yet.
    """

    groups: tuple[Group, ...]
    unread: tuple[Record, ...]


def build(records: Sequence[Record]) -> Report:
    """The report on runs, in any order.

    Raises:
        UserError: two folders claim the same cell and seed, or the same variant name, with
            different settings.
    """
    ordered = in_report_order(told_apart(records))
    readable = [record for record in ordered if record.is_read]
    unread = [record for record in ordered if not record.is_read]
    members = {key: list(those) for key, those in groupby(readable, group_key)}  # they are adjacent
    lost = cells_of_unread(unread, members)
    design = read_design(readable)
    groups = [_group(those, lost.get(key, ()), design) for key, those in members.items()]
    return Report(tuple(groups), tuple(unread))


def _group(records: list[Record], lost: Sequence[tuple[CellKey, Record]], design: Design) -> Group:
    """One group.

    Args:
        lost: its runs that cannot be read, with their cells.
    """
    label, dataset = group_key(records[0])
    refuse_two_orderings(records)
    finished, copies = one_per_seed(records)
    names = {settings_of(record).variant for record in records}
    if names & set(PAPER_ORDER):
        names |= set(PAPER_ORDER)
    variants = tuple(in_paper_order(names))
    depths_of_lost = {depth for (variant, depth), _ in lost if variant in variants}
    depths = tuple(sorted({settings_of(record).depth for record in records} | depths_of_lost))
    others: dict[CellKey, list[Record]] = {}
    for key, record in (*((cell_key(record), record) for record in records), *lost):
        seed = record.settings.seed if record.settings else None
        if seed not in finished.get(key, {}):
            others.setdefault(key, []).append(record)
    cells = {
        key: _filled_cell(dataset, *key, finished.get(key, {}), others.get(key, ()))
        for key in product(variants, depths)
    }
    v1_v2 = () if dataset == "sample" else tuple(_v1_v2(cells, depths, records, design))
    by_depth = {pair.depth: pair for pair in v1_v2}
    contrasts = tuple(
        contrast
        for depth in depths
        for contrast in _contrasts(cells, variants, depth, by_depth.get(depth))
    )
    predictions, unread_notes = all_predictions(finished)
    counted = [record for by_seed in finished.values() for record in by_seed.values()]
    mixed = mixed_notes(counted, (V2,), {V1: "V1", V2: "V2"})
    caveats = (*mixed, *group_notes(records, counted, copies, mixed), *unread_notes)
    return Group(
        label=label,
        dataset=dataset,
        like_paper=follows_paper(settings_of(records[0])),
        heading=heading(records[0]),
        variants=variants,
        depths=depths,
        cells=cells,
        contrasts=contrasts,
        v1_v2=v1_v2,
        pooled=pool(v1_v2),
        maps=tuple(placement_maps(dataset, cells, records)),
        agreements=tuple(agreements(predictions, variants, depths, is_long(records[0]))),
        records=tuple(records),
        copies=copies,
        mixed=tuple(mixed),
        caveats=caveats,
        notes=(*caveats, *_nothing_to_compare(cells.values())),
    )


def _filled_cell(
    dataset: str, variant: str, depth: int, runs: Mapping[int, Record], others: Sequence[Record]
) -> Cell:
    errors = {seed: float(result_of(record)["test_error"]) for seed, record in runs.items()}
    return Cell(
        variant,
        depth,
        summary=summarise(list(errors.values())) if errors else None,
        published=published(dataset, variant, depth),
        unfinished=tuple(others),
        errors=errors,
    )


def _contrasts(
    cells: Mapping[CellKey, Cell],
    variants: Sequence[str],
    depth: int,
    v1_v2: V1V2Comparison | None,
) -> Iterator[Contrast]:
    """Every variant with results against `original` at one depth.

    Args:
        v1_v2: the comparison of V2, which has a correction of its own; None: as any other.
    """
    base = cells[V1, depth].outcomes() if V1 in variants else ()
    apart = {V1} if v1_v2 is None else {V1, V2}
    found = {
        variant: compare(base, outcomes)
        for variant in variants
        if base and variant not in apart and (outcomes := cells[variant, depth].outcomes())
    }
    p_values = {variant: c.p for variant, c in found.items() if c.p is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for variant in variants:
        if variant in found:
            yield Contrast(variant, depth, found[variant], adjusted.get(variant), len(p_values))
        elif variant == V2 and v1_v2 is not None and v1_v2.comparison is not None:
            yield Contrast(V2, depth, v1_v2.comparison, v1_v2.p_family, v1_v2.depths)


def _v1_v2(
    cells: Mapping[CellKey, Cell],
    depths: Sequence[int],
    records: Sequence[Record],
    design: Design,
) -> Iterator[V1V2Comparison]:
    """V1 against V2 at the depths with a run of one of them, in the family of those with both."""
    pairs = {d: (cells[V1, d], cells[V2, d]) for d in depths if (V1, d) in cells}
    folders = {depth: _cell_folders(records, depth) for depth in pairs}
    with_both = [
        depth
        for depth, sides in pairs.items()
        if all(
            cell.runs or any(map(design.is_planned, beside))
            for cell, beside in zip(sides, folders[depth], strict=True)
        )
    ]
    like_paper = follows_paper(settings_of(records[0]))
    sd = usual_sd(settings_of(records[0]).dataset)
    for depth, (v1, v2) in pairs.items():
        if v1.runs or v2.runs:
            plan = design.plan([*folders[depth][0], *folders[depth][1]])
            yield V1V2Comparison(depth, v1, v2, plan, max(1, len(with_both)), like_paper, sd)


def _cell_folders(records: Sequence[Record], depth: int) -> tuple[list[Path], list[Path]]:
    """The folders above the runs of V1 and of V2.

    Where only one of them has runs, the folder of the other one follows from the name, since a
    sweep may have declared its seeds.
    """
    found: list[Path] = []
    for record in records:
        settings = settings_of(record)
        if settings.depth == depth and settings.variant in (V1, V2):
            found.append(record.folder.parent)
    names = [f"{variant}-{depth}" for variant in (V1, V2)]
    v1, v2 = (
        [Path(*(name if part in names else part for part in folder.parts)) for folder in found]
        for name in names
    )
    return v1, v2


def _nothing_to_compare(cells: Iterable[Cell]) -> Iterator[str]:
    """Depths at which variants have results, but `original` has none."""
    finished = [cell for cell in cells if cell.outcomes()]
    with_base = {cell.depth for cell in finished if cell.variant == V1}
    if bare := sorted({cell.depth for cell in finished} - with_base):
        names = ", ".join(f"ResNet-{depth}" for depth in bare)
        yield f"No run of {V1} is finished at {names}, so nothing is compared with it there."
