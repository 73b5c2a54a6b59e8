"""Networks for a terminal: the unit drawn, the stage table, the sums; or two networks compared."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resvar.explain.complexity import (
    Complexity,
    StageRow,
    conv_label,
    network_differences,
    ops_label,
    paired_rows,
)
from resvar.explain.documents import (
    choices_label,
    common_size,
    compared_sums,
    distinct_name,
    network_heading,
    rounded,
    texts_of,
)
from resvar.explain.drawing import Drawing
from resvar.models.names import title


def print_networks(networks: Sequence[Complexity], drawing: Drawing, console: Console) -> None:
    """One network in one or several orderings: units, stages, counts."""
    network, several = networks[0], len(networks) > 1
    name = f"{title(network.architecture)} in several orderings"
    console.print(Text(name if several else network_heading(network), style="bold"))
    console.print(Text(choices_label(network), style="dim"), end="\n\n")
    console.print(drawing)
    console.print()
    console.print(_stage_table(network, with_parameters=not several))
    if several:
        console.print(_orderings_table(networks))
    console.print(_sums(network, with_parameters=not several))


def print_comparison(
    a: Complexity, b: Complexity, drawing: Drawing | None, console: Console
) -> None:
    """Two networks side by side; ≠ marks a row in which they differ, with the difference."""
    found = network_differences(a, b)
    headings = f"{network_heading(a)}  ↔  {network_heading(b)}"
    console.print(Text(headings, style="bold"), end="\n\n")
    if drawing is not None:
        console.print(drawing)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column(distinct_name(a, b), min_width=_widest_unit(a))
    table.add_column(distinct_name(b, a), min_width=_widest_unit(b))
    table.add_column("what differs", min_width=13)
    for name, one, other in paired_rows(a, b):
        where = "\n".join(filter(None, (name, common_size(one, other))))
        cells = [_stacked(row) if row else "–" for row in (one, other)]
        texts = texts_of(name, found)
        table.add_row(where, *cells, _marked(texts), style="" if texts else "dim")
    table.add_section()
    for name, *sums, text in compared_sums(a, b):
        table.add_row(name, *sums, _marked([text] if text else []))
    console.print(table)
    for text in texts_of("network", found):
        console.print(_marked([text]))
    if not found:
        console.print("They are the same network.")


def _stage_table(network: Complexity, with_parameters: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    table.add_column("output")
    table.add_column("unit", min_width=_widest_unit(network))
    if with_parameters:
        table.add_column("parameters", justify="right")
    table.add_column("multiply-adds", justify="right")
    for row in network.stages:
        counts = [f"{row.parameters:,}"] if with_parameters else []
        size = f"{row.size}×{row.size}"
        table.add_row(row.name, size, _stacked(row), *counts, rounded(row.multiply_adds))
    return table


def _stacked(row: StageRow) -> Text:
    """A unit as in table 1 of the ResNet paper: a convolution per line, in tall brackets."""
    if not row.units:
        return Text(row.unit)
    labels = [conv_label(conv) for conv in row.convolutions]
    width = max(map(len, labels))
    last = len(labels) - 1
    lines = [row.about] if row.about else []
    for index, label in enumerate(labels):
        left, right = "⎡⎤" if index == 0 else "⎣⎦" if index == last else "⎢⎥"
        times = f" × {row.units}" if index == len(labels) // 2 else ""
        lines.append(f"{left}{label:<{width}}{right}{times}")
    return Text("\n".join(lines))


def _widest_unit(network: Complexity) -> int:
    """Characters of the longest line in brackets: such a line must not be broken."""
    stacks = (_stacked(row).plain.splitlines() for row in network.stages if row.units)
    return max(len(line) for lines in stacks for line in lines if line[0] in "⎡⎢⎣")


def _orderings_table(networks: Sequence[Complexity]) -> Table:
    places = ("lead", "trail", "after_add", "stem")
    table = Table("variant", *places, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("parameters", justify="right")
    for network in networks:
        ops = [ops_label(getattr(network.ordering, place)) for place in places]
        table.add_row(network.ordering.name, *ops, f"{network.parameters:,}")
    return table


def _sums(network: Complexity, with_parameters: bool) -> Table:
    size = network.input[1]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_row("layers", network.layer_sum)
    grid.add_row("", Text("convolutions of the main path, and the linear layer", style="dim"))
    if with_parameters:
        grid.add_row("parameters", f"{network.parameters:,}  ({rounded(network.parameters)})")
    adds = network.multiply_adds
    grid.add_row("multiply-adds", f"{adds:,}  ({rounded(adds)})")
    about = f"for one image of {size}×{size}: every convolution, and the linear layer"
    grid.add_row("", Text(about, style="dim"))
    return grid


def _marked(texts: Sequence[str]) -> Text:
    return Text("\n".join(f"≠ {text}" for text in texts), style="bold yellow")
