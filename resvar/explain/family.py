"""The family table: networks side by side, as in table 1 of the ResNet paper (arXiv:1512.03385).

The layers go down; the networks go across, with their units in brackets. Below are the layers, the
parameters, and the FLOPs with the stride of a bottleneck in either place. For a terminal, as
Markdown or as plain values; `resvar.explain.family_picture` draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from resvar.console import listed
from resvar.explain.complexity import TABLE_1, Complexity, StageRow
from resvar.explain.tables import (
    SHORTCUTS,
    network_heading,
    pipe_table,
    short_number,
    tall_brackets,
)
from resvar.models.architecture import Family
from resvar.models.names import kind_title, title
from resvar.table import Column, Prose, Table, TableCell, TerminalTable, fitted, usable_width

FAMILY_TITLES: dict[Family, str] = {"imagenet": "for ImageNet", "cifar": "for CIFAR"}


# --- the rows, for every format -------------------------------------------------------------------


@dataclass(frozen=True)
class FamilyRow:
    """A row of the stage table for several networks; None for one that lacks it."""

    name: str
    stages: tuple[StageRow | None, ...]

    @property
    def size(self) -> str:
        """`56×56`; empty if the networks differ in it."""
        sizes = {stage.size for stage in self.stages if stage}
        return f"{min(sizes)}×{min(sizes)}" if len(sizes) == 1 else ""

    @property
    def common(self) -> str:
        """What comes before the units in every network: `3×3 max pool, stride 2`; or empty."""
        texts = {before_units(stage) for stage in self.stages}
        return texts.pop() if len(texts) == 1 else ""

    @property
    def has_units(self) -> bool:
        return any(stage.units for stage in self.stages if stage)


def before_units(stage: StageRow | None) -> str:
    """A pooling, or all of a row without units; a dash for a network that lacks the row."""
    return "–" if stage is None else stage.about if stage.units else stage.unit


def family_rows(networks: Sequence[Complexity]) -> Iterator[FamilyRow]:
    """The rows from conv1 to head."""
    found = [{stage.name: stage for stage in network.stages} for network in networks]
    for name in max(found, key=len):
        yield FamilyRow(name, tuple(stages.get(name) for stages in found))


def family_totals(networks: Sequence[Complexity]) -> Iterator[tuple[str, list[str]]]:
    """Layers, parameters and FLOPs: the name of each row, and its value for each network."""
    yield "layers", [str(network.layers) for network in networks]
    yield "parameters", [f"{network.parameters:,}" for network in networks]
    counts = [network.multiply_adds_by_stride for network in networks]
    if any(count["3x3"] != count["first"] for count in counts):
        yield "FLOPs, stride on the 3×3", [short_number(count["3x3"]) for count in counts]
        yield "FLOPs, stride on the first 1×1", [short_number(count["first"]) for count in counts]
    else:
        yield "FLOPs", [short_number(count["first"]) for count in counts]
    printed = [network.printed for network in networks]
    if any(printed):
        yield "FLOPs in the paper", [entry["multiply_adds"] if entry else "–" for entry in printed]


def family_notes(networks: Sequence[Complexity]) -> Iterator[str]:
    """What the figures mean, in sentences."""
    sizes = dict.fromkeys(f"{network.input[1]}×{network.input[1]}" for network in networks)
    yield (
        "FLOPs are multiply-adds, as in the paper: of all convolutions and the linear layer, for "
        f"one image of {' or '.join(sizes)}."
    )
    units = {network.architecture.unit for network in networks}
    if "bottleneck" in units:
        basic = " A basic unit has it on its first 3×3." if "basic" in units else ""
        yield (
            "A bottleneck has its stride on the 3×3 in torchvision, and on the first 1×1 in the "
            f"code of the paper's authors.{basic}"
        )
    printed = [entry for network in networks if (entry := network.printed)]
    if printed:
        cut = [entry["multiply_adds"] for entry in printed if "cut" in entry]
        more = f"; {listed(cut)} are truncated there, not rounded" if cut else ""
        yield f"The paper is {TABLE_1}{more}."
    yield _shortcut_note(networks)


def _shortcut_note(networks: Sequence[Complexity]) -> str:
    """Which shortcuts there are, by unit if that decides it, else by network."""
    own = [network.architecture for network in networks]
    kinds = {SHORTCUTS[each.shortcut] for each in own}
    if len(kinds) == 1:
        return f"Shortcuts are {kinds.pop()} where the shape changes."
    units = {"basic": "basic units", "bottleneck": "bottlenecks"}
    by_unit = dict.fromkeys((SHORTCUTS[each.shortcut], units[each.unit]) for each in own)
    if len(by_unit) > len(kinds):
        names = zip(own, family_columns(networks), strict=True)
        by_unit = dict.fromkeys((SHORTCUTS[each.shortcut], name) for each, name in names)
    where = [f"{kind} in {listed([w for k, w in by_unit if k == kind])}" for kind in sorted(kinds)]
    return f"Where the shape changes, shortcuts are {listed(where)}."


def family_title(networks: Sequence[Complexity]) -> str:
    """`ResNet for ImageNet, original`; the names of networks that are not of one family."""
    own = networks[0].architecture
    same = {(n.ordering, n.architecture.cardinality, n.architecture.base_width) for n in networks}
    if len(same) > 1 or not _one_stem(networks):
        return " · ".join(map(network_heading, networks))
    stem = f" with the {own.stem} stem" if own.stem != own.family else ""
    return f"{kind_title(own)} {FAMILY_TITLES[own.family]}{stem}, {networks[0].ordering.name}"


def family_columns(networks: Sequence[Complexity]) -> list[str]:
    """The name of each network, with its stem and its ordering if they differ."""
    own = [network.architecture for network in networks]
    if _one_stem(networks):
        own = [replace(each, stem=each.family) for each in own]
    names = list(map(title, own))
    if len({network.ordering for network in networks}) > 1:
        names = [f"{name}, {n.ordering.name}" for name, n in zip(names, networks, strict=True)]
    return names


def _one_stem(networks: Sequence[Complexity]) -> bool:
    return len({(n.architecture.family, n.architecture.stem) for n in networks}) == 1


def family_as_dict(networks: Sequence[Complexity]) -> dict[str, Any]:
    """`title`, `notes`, and `networks`: each as `Complexity.as_dict`, and what is `printed`."""
    return {
        "title": family_title(networks),
        "notes": list(family_notes(networks)),
        "networks": [{**network.as_dict(), "printed": network.printed} for network in networks],
    }


def family_as_markdown(networks: Sequence[Complexity]) -> Iterator[str]:
    """The lines of a section with one table."""
    yield from (f"### {family_title(networks)}", "")
    rows = []
    for row in family_rows(networks):
        if row.common:
            rows.append([row.name, row.size, *[row.common] * len(networks)])
        if row.has_units or not row.common:
            rows.append([row.name, row.size, *(_family_cell(stage, row) for stage in row.stages)])
    totals = [[name, "", *values] for name, values in family_totals(networks)]
    yield from pipe_table(("layer", "output", *family_columns(networks)), [*rows, *totals])
    yield ""
    yield from (f"- {note}" for note in family_notes(networks))


def _family_cell(stage: StageRow | None, row: FamilyRow) -> str:
    """What a network has in a row, less what all have in common: `56×56, [3×3, 64; …] × 2`."""
    if stage is None:
        return before_units(stage)
    size = "" if row.size else f"{stage.size}×{stage.size}"
    before = "" if row.common else before_units(stage)
    return ", ".join(filter(None, (size, before, stage.unit if stage.units else "")))


# --- in the terminal ------------------------------------------------------------------------------

Layout = Literal["wide", "narrow"]
"""The output size in a column of its own and `× 3` next to the bracket, or both below."""

LAYOUTS: tuple[Layout, ...] = ("wide", "narrow")


@dataclass(frozen=True)
class FamilyTable:
    """A family in as few tables as fit the terminal one below the other; a rich renderable."""

    networks: Sequence[Complexity]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in family_panels(self.networks, usable_width(console, options)):
            yield TerminalTable(table)
            yield Text()
        for note in family_notes(self.networks):
            yield Prose(note, "dim", 2)


def family_panels(networks: Sequence[Complexity], width: int) -> list[Table]:
    """The fewest tables, of about the same number of networks, that fit the width."""
    totals = list(family_totals(networks))
    panels: list[Table] = []
    for count in range(1, len(networks) + 1):
        size = -(-len(networks) // count)
        parts = [slice(first, first + size) for first in range(0, len(networks), size)]
        for layout in LAYOUTS:
            panels = [_panel(networks, totals, part, layout) for part in parts]
            if all(fitted(panel, width)[1] is not None for panel in panels):
                return panels
    return panels


def _panel(
    networks: Sequence[Complexity],
    totals: Sequence[tuple[str, list[str]]],
    part: slice,
    layout: Layout,
) -> Table:
    """The table of a part of the networks."""
    wide = layout == "wide"
    names = [Column(name, "left", wrap=10) for name in family_columns(networks)[part]]
    layer = Column("layer" if wide else "layer\noutput", "left", wrap=10)
    output = [Column("output", "left")] if wide else []
    rows = []
    for row in family_rows(networks[part]):
        labels = [row.name, row.size] if wide else [f"{row.name}\n{row.size}".strip()]
        cells = [_network_cell(stage, row, layout) for stage in row.stages]
        if row.common:
            text = "\n".join(filter(None, (row.common, cells[0].text)))
            cells[0] = TableCell(text, across=1)
        rows.append((*map(TableCell, labels), *cells))
    for name, values in totals:
        labels = [name, ""] if wide else [name]
        rows.append((*map(TableCell, labels), *map(TableCell, values[part])))
    return Table("", (layer, *output, *names), tuple(rows))


def _network_cell(stage: StageRow | None, row: FamilyRow, layout: Layout) -> TableCell:
    """What a network has in a row, less what all have in common."""
    lines = [] if row.common else [before_units(stage)]
    if stage and stage.units:
        brackets = tall_brackets(stage)
        times = f"× {stage.units}"
        if layout == "wide":
            brackets[len(brackets) // 2] += f" {times}"
        else:
            brackets.append(f"{times:^{len(brackets[0])}}".rstrip())
        lines += brackets
    if stage and not row.size:
        lines.insert(0, f"{stage.size}×{stage.size}")
    return TableCell("\n".join(filter(None, lines)))
