"""The findings: runs in comparable groups, their statistics, and the paper's figures.

`build` sorts the records into groups and does the statistics; `tables.py` lays them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path

from resvar.config import NOT_HASHED, Settings, differences, effective
from resvar.errors import UserError
from resvar.models.ordering import (
    MAP_PLACES,
    PAPER_ORDER,
    find_ordering,
    in_paper_order,
    known_variants,
)
from resvar.reports.agreement import (
    FEWEST_EPOCHS,
    Agreement,
    Predictions,
    agreement,
    scored_predictions,
)
from resvar.reports.cells import CellKey, Entry, GroupKey, cell_key, cells_of_unread, group_key
from resvar.reports.design import Design, read_design
from resvar.reports.notes import group_notes, heading, mixed_notes
from resvar.reports.pooled import Pooled, pool
from resvar.reports.published import published, usual_sd
from resvar.reports.records import (
    Record,
    RunState,
    follows_paper,
    in_report_order,
    result_of,
    settings_of,
    with_more,
)
from resvar.reports.statistics import Comparison, compare, holm, summarise
from resvar.reports.verdicts import V1, V2, V1V2Comparison
from resvar.settings import names_of


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
class Placement:
    """An ordering on the 3 × 3 map, with its results at one depth.

    Attributes:
        bn, relu: their places, such as `trail` and `after_add`.
        best: it has the lowest median of several on the map.
    """

    bn: str
    relu: str
    entry: Entry
    best: bool


@dataclass(frozen=True)
class PlacementMap:
    """The results at one depth by the places of BN and ReLU.

    Attributes:
        placements: row by row, BN's place first; at least one in each of the nine cells.
        outside: variants with runs at this depth but without a cell on the map.
    """

    depth: int
    placements: tuple[Placement, ...]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Comparable runs: one label, one dataset.

    Attributes:
        like_paper: protocol and network are the paper's, so published figures are comparable.
        entries: (variant, depth) → cell, for every variant and depth of the group.
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
    entries: Mapping[tuple[str, int], Entry]
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
    ordered = in_report_order(_told_apart(records))
    readable = [record for record in ordered if record.is_read]
    unread = [record for record in ordered if not record.is_read]
    members = {key: list(those) for key, those in groupby(readable, group_key)}
    lost = cells_of_unread(unread, members)
    design = read_design(readable)
    groups = [_group(those, lost.get(key, ()), design) for key, those in members.items()]
    return Report(tuple(groups), tuple(unread))


def _told_apart(records: Sequence[Record]) -> list[Record]:
    """The records, with more in the label where finished runs of a seed differ in their execution.

    Runs with different `precision`, `eval_every` and the like are comparable, unless the names of
    their folders say that this is what distinguishes them.
    """
    names: dict[GroupKey, set[str]] = {}
    first: dict[tuple[GroupKey, CellKey, int], Settings] = {}
    for record in records:
        if record.is_read and record.state is RunState.DONE:
            key, settings = group_key(record), settings_of(record)
            other = first.setdefault((key, cell_key(record), settings.seed), settings)
            differing = [n for n in EXECUTION if getattr(settings, n) != getattr(other, n)]
            names.setdefault(key, set()).update(differing)
    return [
        replace(record, label=with_more(record, names.get(group_key(record), set())))
        if record.is_read
        else record
        for record in records
    ]


EXECUTION = tuple(name for name in names_of("execution") if name not in NOT_HASHED)


def _group(records: list[Record], lost: Sequence[tuple[CellKey, Record]], design: Design) -> Group:
    """One group.

    Args:
        lost: its runs that cannot be read, with their cells.
    """
    label, dataset = group_key(records[0])
    _refuse_two_orderings(records)
    finished, copies = _one_per_seed(records)
    names = {settings_of(record).variant for record in records}
    if names & set(PAPER_ORDER):
        names |= set(PAPER_ORDER)
    variants = tuple(in_paper_order(names))
    depths_of_lost = {depth for (variant, depth), _ in lost if variant in variants}
    depths = tuple(sorted({settings_of(record).depth for record in records} | depths_of_lost))
    entries = {
        cell: _entry(dataset, *cell, finished.get(cell, {})) for cell in product(variants, depths)
    }
    for cell, record in (*((cell_key(record), record) for record in records), *lost):
        seed = record.settings.seed if record.settings else None
        if cell in entries and seed not in finished.get(cell, {}):
            entries[cell] = replace(entries[cell], unfinished=(*entries[cell].unfinished, record))
    v1_v2 = () if dataset == "sample" else tuple(_v1_v2(entries, depths, records, design))
    by_depth = {pair.depth: pair for pair in v1_v2}
    contrasts = tuple(
        contrast
        for depth in depths
        for contrast in _contrasts(entries, variants, depth, by_depth.get(depth))
    )
    predictions, unread = _predictions(finished)
    counted = [record for by_seed in finished.values() for record in by_seed.values()]
    mixed = mixed_notes(counted, (V2,), {V1: "V1", V2: "V2"})
    caveats = (*mixed, *group_notes(records, counted, copies, mixed), *unread)
    return Group(
        label=label,
        dataset=dataset,
        like_paper=follows_paper(settings_of(records[0])),
        heading=heading(records[0]),
        variants=variants,
        depths=depths,
        entries=entries,
        contrasts=contrasts,
        v1_v2=v1_v2,
        pooled=pool(v1_v2),
        maps=tuple(_maps(dataset, entries, records)),
        agreements=tuple(_agreements(predictions, variants, depths, _is_long(records[0]))),
        records=tuple(records),
        copies=copies,
        mixed=tuple(mixed),
        caveats=caveats,
        notes=(*caveats, *_nothing_to_compare(entries.values())),
    )


def _refuse_two_orderings(records: Sequence[Record]) -> None:
    """A name must mean one ordering, or its runs would share a cell by accident."""
    first: dict[str, Record] = {}
    for record in records:
        settings = settings_of(record)
        other = first.setdefault(settings.variant, record)
        if settings.ordering != settings_of(other).ordering:
            raise UserError(
                f"{other.folder} and {record.folder} call different orderings "
                f"'{settings.variant}': report them separately, or rename one."
            )


Finished = dict[CellKey, dict[int, Record]]
"""(variant, depth) → seed → the finished run that counts."""


def _one_per_seed(records: Sequence[Record]) -> tuple[Finished, dict[Path, Path]]:
    """The finished runs that count, and the copies among the others.

    Raises:
        UserError: two finished runs of a seed have different settings.
    """
    finished: Finished = {}
    copies: dict[Path, Path] = {}
    for record in records:
        if record.state is not RunState.DONE:
            continue
        settings = settings_of(record)
        other = finished.setdefault(cell_key(record), {}).setdefault(settings.seed, record)
        if other is record:
            continue
        taken = settings_of(other)
        if effective(settings).hash != effective(taken).hash:
            raise UserError(
                f"{other.folder} and {record.folder} are both {settings.variant} at depth "
                f"{settings.depth} with seed {settings.seed}, but their settings differ "
                f"({'; '.join(differences(settings, taken)) or 'precision'}): report them "
                "separately."
            )
        copies[record.folder] = other.folder
    return finished, copies


def _entry(dataset: str, variant: str, depth: int, runs: Mapping[int, Record]) -> Entry:
    errors = {seed: float(result_of(record)["test_error"]) for seed, record in runs.items()}
    summary = summarise(list(errors.values())) if errors else None
    return Entry(variant, depth, summary, published(dataset, variant, depth), (), errors)


def _contrasts(
    entries: Mapping[tuple[str, int], Entry],
    variants: Sequence[str],
    depth: int,
    v1_v2: V1V2Comparison | None,
) -> Iterator[Contrast]:
    """Every variant with results against `original` at one depth.

    Args:
        v1_v2: the comparison of V2, which has a correction of its own; None: as any other.
    """
    base = entries[V1, depth].outcomes() if V1 in variants else ()
    found = {
        variant: compare(base, outcomes)
        for variant in variants
        if base and variant != V1 and (outcomes := entries[variant, depth].outcomes())
    }
    p_values = {v: c.p for v, c in found.items() if c.p is not None and not (v == V2 and v1_v2)}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for variant, comparison in found.items():
        if variant == V2 and v1_v2 is not None:
            if v1_v2.comparison is not None:
                yield Contrast(V2, depth, v1_v2.comparison, v1_v2.p_family, v1_v2.depths)
        else:
            yield Contrast(variant, depth, comparison, adjusted.get(variant), len(p_values))


def _v1_v2(
    entries: Mapping[tuple[str, int], Entry],
    depths: Sequence[int],
    records: Sequence[Record],
    design: Design,
) -> Iterator[V1V2Comparison]:
    """V1 against V2 at the depths with a run of one of them, in the family of those with both."""
    pairs = {d: (entries[V1, d], entries[V2, d]) for d in depths if (V1, d) in entries}
    cells = {depth: _cell_folders(records, depth) for depth in pairs}
    with_both = [
        depth
        for depth, sides in pairs.items()
        if all(
            entry.summary or entry.unfinished or any(map(design.is_planned, folders))
            for entry, folders in zip(sides, cells[depth], strict=True)
        )
    ]
    like_paper = follows_paper(settings_of(records[0]))
    sd = usual_sd(settings_of(records[0]).dataset)
    for depth, (v1, v2) in pairs.items():
        if v1.known or v1.unfinished or v2.known or v2.unfinished:
            plan = design.plan([*cells[depth][0], *cells[depth][1]])
            yield V1V2Comparison(depth, v1, v2, plan, max(1, len(with_both)), like_paper, sd)


def _cell_folders(records: Sequence[Record], depth: int) -> tuple[list[Path], list[Path]]:
    """The folders of the runs of V1 and of V2, and those beside the runs of the other one."""
    found: list[Path] = []
    for record in records:
        settings = settings_of(record)
        if settings.depth == depth and settings.variant in (V1, V2):
            found.append(record.folder.parent)
    names = [f"{variant}-{depth}" for variant in (V1, V2)]
    v1, v2 = (
        [Path(*(name if part in names else part for part in cell.parts)) for cell in found]
        for name in names
    )
    return v1, v2


def _predictions(
    finished: Finished,
) -> tuple[dict[tuple[str, int], list[Predictions]], list[str]]:
    """The predictions by cell, and notes about predictions that do not count."""
    found: dict[tuple[str, int], list[Predictions]] = {}
    unread: dict[str, list[str]] = {}
    for cell, by_seed in finished.items():
        for seed, record in by_seed.items():
            error = result_of(record)["test_error"]
            read = scored_predictions(record.folder, seed, settings_of(record).dataset, error)
            if isinstance(read, str):
                unread.setdefault(read, []).append(record.folder.as_posix())
            else:
                found.setdefault(cell, []).append(read)
    notes = []
    for why, folders in unread.items() if found or set(unread) != {"missing"} else ():
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        notes.append(
            f"Agreement of predictions leaves out {folders[0]}{more}: predictions.npy is {why}."
        )
    return found, notes


def _agreements(
    predictions: Mapping[tuple[str, int], Sequence[Predictions]],
    variants: Sequence[str],
    depths: Sequence[int],
    trained_out: bool,
) -> Iterator[Agreement]:
    """Cell by cell; none at a depth whose runs predict different numbers of images."""
    for depth in depths:
        here = {v: predictions[v, depth] for v in variants if (v, depth) in predictions}
        if len({len(run.predictions) for runs in here.values() for run in runs}) == 1:
            yield from (agreement(v, depth, here, V1, trained_out) for v in here)


def _is_long(record: Record) -> bool:
    """Whether a run has as many epochs of CIFAR-10 as independent errors take."""
    settings = settings_of(record)
    return settings.iterations * settings.batch_size >= FEWEST_EPOCHS * 50_000


def _maps(
    dataset: str, entries: Mapping[tuple[str, int], Entry], records: Sequence[Record]
) -> Iterator[PlacementMap]:
    """A map for each depth with all published orderings or an unpublished one.

    The places of BN and ReLU come from the settings of the runs, not from the variant's name.
    """
    positions = {name: find_ordering(name).position for name in known_variants()}
    shipped_at = {at: name for name, at in positions.items()}
    in_the_paper = {positions[name] for name in PAPER_ORDER}
    positions |= {settings_of(r).variant: settings_of(r).ordering.position for r in records}
    for depth in dict.fromkeys(depth for _, depth in entries):
        here = [e for e in entries.values() if e.depth == depth and (e.summary or e.unfinished)]
        taken = {positions[entry.variant] for entry in here} - {None}
        if not (taken - in_the_paper or taken >= in_the_paper):
            continue
        cells: dict[tuple[str, str], list[Entry]] = {}
        for at in product(MAP_PLACES, MAP_PLACES):
            cells[at] = [entry for entry in here if positions[entry.variant] == at]
            name, held = shipped_at[at], [entry.variant for entry in cells[at]]
            figure = published(dataset, name, depth)
            if name not in held and (figure or not held):
                cells[at].insert(0, Entry(name, depth, None, figure, ()))
        outside = tuple(e.variant for e in here if positions[e.variant] is None)
        yield PlacementMap(depth, tuple(_placements(cells)), outside)


def _placements(cells: Mapping[tuple[str, str], Sequence[Entry]]) -> Iterator[Placement]:
    """The entries of the map's cells; the lowest median is marked."""
    entries = [entry for held in cells.values() for entry in held]
    medians = {e.variant: round(e.summary.median, 6) for e in entries if e.summary}
    lowest = min(medians.values()) if len(medians) > 1 else None
    for (bn, relu), held in cells.items():
        for entry in held:
            best = lowest is not None and medians.get(entry.variant) == lowest
            yield Placement(bn, relu, entry, best)


def _nothing_to_compare(entries: Iterable[Entry]) -> Iterator[str]:
    """Depths at which variants have results, but `original` has none."""
    finished = [entry for entry in entries if entry.outcomes()]
    with_base = {entry.depth for entry in finished if entry.variant == V1}
    if bare := sorted({entry.depth for entry in finished} - with_base):
        names = ", ".join(f"ResNet-{depth}" for depth in bare)
        yield f"No run of {V1} is finished at {names}, so nothing is compared with it there."
