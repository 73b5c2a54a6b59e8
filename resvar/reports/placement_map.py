"""The 3 × 3 map: the results at one depth by the places of BN and ReLU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from resvar.models.ordering import MAP_PLACES, PAPER_ORDER, find_ordering, known_variants
from resvar.reports.cells import Cell, CellKey
from resvar.reports.published import published
from resvar.reports.records import Record, settings_of


@dataclass(frozen=True)
class Placement:
    """An ordering on the 3 × 3 map, with its results at one depth.

    Attributes:
        bn, relu: their places, such as `trail` and `after_add`.
        best: it has the lowest median of several on the map.
    """

    bn: str
    relu: str
    cell: Cell
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


def placement_maps(
    dataset: str, cells: Mapping[CellKey, Cell], records: Sequence[Record]
) -> Iterator[PlacementMap]:
    """A map for each depth with all published orderings or an unpublished one.

    The places of BN and ReLU come from the settings of the runs, not from the variant's name.
    """
    positions = {name: find_ordering(name).position for name in known_variants()}
    shipped_at = {at: name for name, at in positions.items()}
    in_the_paper = {positions[name] for name in PAPER_ORDER}
    positions |= {settings_of(r).variant: settings_of(r).ordering.position for r in records}
    for depth in dict.fromkeys(depth for _, depth in cells):
        here = [e for e in cells.values() if e.depth == depth and e.runs]
        taken = {positions[cell.variant] for cell in here} - {None}
        if not (taken - in_the_paper or taken >= in_the_paper):
            continue
        squares: dict[tuple[str, str], list[Cell]] = {}
        for at in product(MAP_PLACES, MAP_PLACES):
            squares[at] = [cell for cell in here if positions[cell.variant] == at]
            name, held = shipped_at[at], [cell.variant for cell in squares[at]]
            figure = published(dataset, name, depth)
            if name not in held and (figure or not held):
                squares[at].insert(0, Cell(name, depth, None, figure, ()))
        outside = tuple(e.variant for e in here if positions[e.variant] is None)
        yield PlacementMap(depth, tuple(_placements(squares)), outside)


def _placements(squares: Mapping[tuple[str, str], Sequence[Cell]]) -> Iterator[Placement]:
    """The cells in the squares of the map; the lowest median is marked."""
    cells = [cell for held in squares.values() for cell in held]
    medians = {e.variant: round(e.summary.median, 6) for e in cells if e.summary}
    lowest = min(medians.values()) if len(medians) > 1 else None
    for (bn, relu), held in squares.items():
        for cell in held:
            best = lowest is not None and medians.get(cell.variant) == lowest
            yield Placement(bn, relu, cell, best)
