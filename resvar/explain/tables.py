"""Tables of one network, of its orderings, or of two networks, for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from resvar.explain.complexity import (
    Complexity,
    StageRow,
    conv_label,
    network_differences,
    ops_label,
    paired_rows,
)
from resvar.explain.drawing import Drawing
from resvar.models.names import title
from resvar.models.ordering import PLACES
from resvar.table import Filled, Prose, Table, TableCell, filled, left, print_table, right

SHORTCUTS = {"pad": "padded (A)", "project": "projected (B)"}
"""The letters are those of the ResNet paper."""

ALMOST = 0.05
"""Totals with a smaller relative difference are marked almost equal."""


# --- one network ----------------------------------------------------------------------------------


def print_networks(networks: Sequence[Complexity], drawing: Drawing, console: Console) -> None:
    """Print one network in one or several orderings: units, stages, counts."""
    network, several = networks[0], len(networks) > 1
    name = f"{title(network.architecture)} in several orderings"
    console.print(Prose(name if several else network_heading(network), "bold"), crop=False)
    console.print(Prose(_choices_label(network), "dim"), crop=False)
    console.print()
    console.print(drawing)
    console.print()
    print_table(_stage_table(network, with_parameters=not several), console)
    console.print()
    if several:
        print_table(_orderings_table(networks), console)
        console.print()
    console.print(_sums(network, with_parameters=not several))


def _stage_table(network: Complexity, with_parameters: bool) -> Table:
    columns = (
        left("stage", lambda row: row.name),
        left("output", lambda row: f"{row.size}×{row.size}", drop=1),
        left("unit", lambda row: TableCell(_in_brackets(row)), wrap=16),
        *([right("parameters", lambda row: row.parameters, ",d")] if with_parameters else []),
        right("multiply-adds", lambda row: short_number(row.multiply_adds)),
    )
    return filled("", columns, network.stages)


def _in_brackets(row: StageRow) -> str:
    """A unit with its count on the middle line, below what comes before it."""
    if not row.units:
        return row.unit
    lines = tall_brackets(row)
    lines[len(lines) // 2] += f" × {row.units}"
    return "\n".join([row.about, *lines] if row.about else lines)


def tall_brackets(row: StageRow) -> list[str]:
    """A unit as in table 1 of the ResNet paper: one convolution per line, in tall brackets."""
    labels = [conv_label(conv) for conv in row.convolutions]
    width, between = max(map(len, labels)), len(labels) - 2
    starts, ends = "⎡" + "⎢" * between + "⎣", "⎤" + "⎥" * between + "⎦"
    return [f"{starts[i]}{label:<{width}}{ends[i]}" for i, label in enumerate(labels)]


def _orderings_table(networks: Sequence[Complexity]) -> Table:
    def place(name: str) -> Filled:
        return left(name, lambda n: ops_label(getattr(n.ordering, name)))

    columns = (
        left("variant", lambda n: n.ordering.name),
        *map(place, ("lead", "trail", "after_add", "stem")),
        right("parameters", lambda n: n.parameters, ",d"),
    )
    return filled("", columns, networks)


def _sums(network: Complexity, with_parameters: bool) -> Grid:
    size = network.input[1]
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_row("layers", network.layer_sum)
    grid.add_row("", Text("convolutions of the main path, and the linear layer", style="dim"))
    if with_parameters:
        grid.add_row("parameters", f"{network.parameters:,}  ({short_number(network.parameters)})")
    adds = network.multiply_adds
    grid.add_row("multiply-adds", f"{adds:,}  ({short_number(adds)})")
    about = f"for one image of {size}×{size}: every convolution, and the linear layer"
    grid.add_row("", Text(about, style="dim"))
    for label, line in zip(("by stride", ""), _by_stride(network), strict=False):
        grid.add_row(label, line)
    return grid


def _by_stride(network: Complexity) -> Iterator[str]:
    """The multiply-adds with either stride, where the paper prints those of the other one."""
    if (paper := network.published) is None:
        return
    counts = network.multiply_adds_by_stride
    table = paper["source"].partition(", ")[2]
    yield f"{short_number(counts['3x3'])} on the 3×3, torchvision's choice"
    yield f"{short_number(counts['first'])} on the first 1×1; {table}: {paper['multiply_adds']}"


def networks_as_markdown(networks: Sequence[Complexity]) -> Iterator[str]:
    """The lines of a section for each network."""
    for index, network in enumerate(networks):
        yield from [""] if index else []
        yield from _network_as_markdown(network)


def _network_as_markdown(network: Complexity) -> Iterator[str]:
    yield from (f"### {network_heading(network)}", "", f"{_choices_label(network)}.", "")
    places = [ops_label(getattr(network.ordering, place)) for place in PLACES]
    yield from pipe_table(PLACES, [places])
    yield ""
    yield from pipe_table(
        ("stage", "output", "channels", "unit", "layers", "parameters", "multiply-adds"),
        [
            [
                row.name, f"{row.size}×{row.size}", str(row.channels), _in_one_line(row),
                row.layer_product, f"{row.parameters:,}", f"{row.multiply_adds:,}",
            ]
            for row in network.stages
        ],
    )  # fmt: skip
    yield from ("", f"- layers: {network.layer_sum}")
    for name in ("parameters", "multiply_adds"):
        count = getattr(network, name)
        yield f"- {name.replace('_', '-')}: {count:,} ({short_number(count)})"
    yield from (f"  - stride: {line}" for line in _by_stride(network))


def _in_one_line(row: StageRow) -> str:
    return f"{row.about}, {row.unit}" if row.units and row.about else row.unit


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"


def network_heading(network: Complexity) -> str:
    return f"{title(network.architecture)}, {network.ordering.name}"


def _choices_label(network: Complexity) -> str:
    """The choices of the architecture in one line."""
    architecture = network.architecture
    strided = "first" if architecture.stride_on == "first" else "3×3"
    shortcut = SHORTCUTS[architecture.shortcut]
    return (
        f"{architecture.unit} units · shortcuts {shortcut} where the shape changes · "
        f"stride on the {strided} convolution · {network.num_classes} classes"
    )


def short_number(number: int) -> str:
    """`25.56 M`, `4.09 G`, `0.27 M`; all digits below 100,000."""
    if number >= 10**9:
        return f"{number / 10**9:,.2f} G"
    return f"{number / 10**6:.2f} M" if number >= 10**5 else f"{number:,}"


# --- two networks ---------------------------------------------------------------------------------


def print_comparison(
    a: Complexity, b: Complexity, drawing: Drawing | None, console: Console
) -> None:
    """Print two networks side by side; ≠ marks a row that differs, and says how."""
    headings = f"{network_heading(a)}  ↔  {network_heading(b)}"
    console.print(Prose(headings, "bold"), crop=False)
    console.print()
    if drawing is not None:
        console.print(drawing)
        console.print()
    columns = (
        left("stage", lambda row: TableCell("\n".join(filter(None, row[:2])))),
        left(_distinct_name(a, b), lambda row: _compared_cell(row[2][0]), wrap=16),
        left(_distinct_name(b, a), lambda row: _compared_cell(row[2][1]), wrap=16),
        left("what differs", lambda row: _difference_marks(row[3]), wrap=9),
    )
    print_table(filled("", columns, _comparison(a, b)), console)
    console.print()
    found = network_differences(a, b)
    for difference in found:
        if difference.stage == "network":
            console.print(Prose(f"≠ {difference.text}", "bold"), crop=False)
    if not found:
        console.print("They are the same network.")


def comparison_as_markdown(a: Complexity, b: Complexity) -> Iterator[str]:
    """The lines of a section with two networks side by side."""
    yield from (f"### {network_heading(a)} ↔ {network_heading(b)}", "")
    rows = [
        [
            ", ".join(filter(None, (name, size))),
            *(_in_one_line(cell) if isinstance(cell, StageRow) else cell for cell in cells),
            ", ".join(f"**≠ {text}**" for text in texts),
        ]
        for name, size, cells, texts in _comparison(a, b)
    ]
    yield from pipe_table(
        ("stage", _distinct_name(a, b), _distinct_name(b, a), "what differs"), rows
    )
    whole = [found.text for found in network_differences(a, b) if found.stage == "network"]
    if whole:
        yield ""
        yield from (f"- **≠ {text}**" for text in whole)


def _comparison(
    a: Complexity, b: Complexity
) -> Iterator[tuple[str, str, list[StageRow | str], list[str]]]:
    """For each row, then each total: name, common output size, both cells, the differences."""
    found = network_differences(a, b)
    for name, *rows in paired_rows(a, b):
        sizes = {row.size for row in rows if row}
        size = f"{min(sizes)}×{min(sizes)}" if len(sizes) == 1 else ""
        texts = [difference.text for difference in found if difference.stage == name]
        yield name, size, [row or "–" for row in rows], texts
    more = b.layers - a.layers
    yield "layers", "", [str(a.layers), str(b.layers)], [f"{more:+d} layers"] if more else []
    for name in ("parameters", "multiply_adds"):
        one, other = getattr(a, name), getattr(b, name)
        almost = ", almost equal" if abs(other / one - 1) < ALMOST else ""
        texts = [f"× {other / one:.3f}{almost}"] if one != other else []
        yield name.replace("_", "-"), "", [f"{one:,}", f"{other:,}"], texts


def _distinct_name(network: Complexity, other: Complexity) -> str:
    """The name of a network, with its ordering if the other network has a different one."""
    same = network.ordering == other.ordering
    return title(network.architecture) if same else network_heading(network)


def _compared_cell(value: StageRow | str) -> TableCell:
    return TableCell(_in_brackets(value) if isinstance(value, StageRow) else value)


def _difference_marks(texts: Sequence[str]) -> TableCell:
    return TableCell("\n".join(f"≠ {text}" for text in texts), strong=True)
