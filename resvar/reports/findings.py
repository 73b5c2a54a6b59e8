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
from resvar.reports.agreement import Agreement, Predictions, agreement, scored_predictions
from resvar.reports.cells import CellKey, GroupKey, cell_key, cells_of_unread, group_key
from resvar.reports.notes import group_notes, heading, mixed_notes
from resvar.reports.published import Published, published
from resvar.reports.records import (
    UNREAD,
    Record,
    RunState,
    follows_paper,
    in_report_order,
    result_of,
    settings_of,
    with_more,
)
from resvar.reports.statistics import (
    Comparison,
    Summary,
    V1V2Verdict,
    compare,
    holm,
    pooled_sd,
    seeds_needed,
    summarise,
    verdict,
)
from resvar.settings import names_of

V1, V2 = "original", "full-preact"


@dataclass(frozen=True)
class Entry:
    """One cell: the finished runs of a variant at a depth, one per seed, and the others.

    Attributes:
        summary: of the test errors; None without a finished run.
        unfinished: runs of seeds without a finished run, and unreadable runs.
    """

    variant: str
    depth: int
    summary: Summary | None
    published: Published | None
    unfinished: tuple[Record, ...]

    @property
    def unread(self) -> int:
        """How many of its runs cannot be read."""
        return sum(record.state in UNREAD for record in self.unfinished)

    @property
    def known(self) -> int:
        """How many of its runs have a result or might have one: the finished and the unread."""
        return (self.summary.n if self.summary else 0) + self.unread


@dataclass(frozen=True)
class Contrast:
    """A variant against `original` at one depth.

    Attributes:
        p_holm: the p-value corrected by Holm for the `family` p-values at this depth.
    """

    variant: str
    depth: int
    comparison: Comparison
    p_holm: float | None
    family: int


@dataclass(frozen=True)
class V1V2Comparison:
    """V1 against V2 at one depth; the comparison is None if one of them has no finished run."""

    depth: int
    v1: Entry
    v2: Entry
    comparison: Comparison | None
    verdict: V1V2Verdict

    @property
    def sd(self) -> float | None:
        """The standard deviation between seeds, pooled over both; None if one has a single run."""
        if self.v1.summary is None or self.v2.summary is None:
            return None
        return pooled_sd(self.v1.summary, self.v2.summary)

    @property
    def seeds_needed(self) -> int | None:
        """Seeds of each that detect the paper's difference at this `sd`; see `statistics`."""
        if self.sd is None or self.published_difference is None:
            return None
        return seeds_needed(self.published_difference, self.sd)

    @property
    def published_difference(self) -> float | None:
        """V2 − V1 in the paper, in points with its two decimals."""
        if self.v1.published is None or self.v2.published is None:
            return None
        return round(self.v2.published.test_error - self.v1.published.test_error, 2)


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
    groups = [_group(those, lost.get(key, ())) for key, those in members.items()]
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


def _group(records: list[Record], lost: Sequence[tuple[CellKey, Record]]) -> Group:
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
    contrasts = tuple(c for depth in depths for c in _contrasts(entries, variants, depth))
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
        v1_v2=() if dataset == "sample" else tuple(_v1_v2(entries, contrasts, depths)),
        maps=tuple(_maps(dataset, entries, records)),
        agreements=tuple(_agreements(predictions, variants, depths)),
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
    errors = [result_of(record)["test_error"] for record in runs.values()]
    figure = published(dataset, variant, depth)
    return Entry(variant, depth, summarise(errors) if errors else None, figure, ())


def _contrasts(
    entries: Mapping[tuple[str, int], Entry], variants: Sequence[str], depth: int
) -> Iterator[Contrast]:
    """Every variant with a finished run against `original` at one depth."""
    base = entries[V1, depth].summary if V1 in variants else None
    if base is None:
        return
    found = {
        variant: compare(base.values, summary.values)
        for variant in variants
        if variant != V1 and (summary := entries[variant, depth].summary) is not None
    }
    p_values = [comparison.p for comparison in found.values() if comparison.p is not None]
    adjusted = iter(holm(p_values))
    for variant, comparison in found.items():
        p_holm = None if comparison.p is None else next(adjusted)
        yield Contrast(variant, depth, comparison, p_holm, len(p_values))


def _v1_v2(
    entries: Mapping[tuple[str, int], Entry],
    contrasts: Sequence[Contrast],
    depths: Sequence[int],
) -> Iterator[V1V2Comparison]:
    comparisons = {c.depth: c.comparison for c in contrasts if c.variant == V2}
    for depth in depths:
        if (V1, depth) in entries:
            v1, v2, comparison = entries[V1, depth], entries[V2, depth], comparisons.get(depth)
            found = verdict(v1.summary, v2.summary, comparison)
            yield V1V2Comparison(depth, v1, v2, comparison, found)


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
) -> Iterator[Agreement]:
    """Cell by cell; none at a depth whose runs predict different numbers of images."""
    for depth in depths:
        here = {v: predictions[v, depth] for v in variants if (v, depth) in predictions}
        if len({len(run.predictions) for runs in here.values() for run in runs}) == 1:
            yield from (agreement(variant, depth, here, V1) for variant in here)


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
    finished = [entry for entry in entries if entry.summary]
    with_base = {entry.depth for entry in finished if entry.variant == V1}
    if bare := sorted({entry.depth for entry in finished} - with_base):
        names = ", ".join(f"ResNet-{depth}" for depth in bare)
        yield f"No run of {V1} is finished at {names}, so nothing is compared with it there."
