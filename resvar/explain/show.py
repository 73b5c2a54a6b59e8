"""`resvar show`: a network explained: its unit drawn, its stage table, its layers and its cost.

One or several orderings of one network, or two networks side by side with what differs marked; for
a terminal, as JSON, or as Markdown. Nothing is trained, and no weight is drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from resvar.console import console_for_output
from resvar.errors import UserError
from resvar.explain.complexity import Complexity, Difference, StageRow, describe, differences
from resvar.explain.drawing import Drawing, Figure, figures_svg
from resvar.files import read_yaml, shipped, write_text
from resvar.models.architecture import plan
from resvar.models.names import named, title
from resvar.models.ordering import PLACES, Ordering, find_ordering

DEFAULT_VARIANT = "full-preact"
DEFAULT_DEPTH = {"cifar": 164, "imagenet": 50}
ALMOST = 0.05
"""Sums that differ by less than this part of themselves are called almost equal."""

CAPTIONS = {"original": " · V1", "full-preact": " · V2"}

Pair = tuple[str, StageRow | None, StageRow | None]
"""The name of a stage with its row in each of two networks."""

LESSON = """\
The signal x runs down. The shortcut carries it past the branch, and ⊕ adds the
two. Between two convolutions there are always BN and ReLU. An ordering says
where one more BN and one more ReLU stand: before the first convolution (lead),
after the last (trail), or after the addition (after_add). The published
variants differ in nothing else."""

LESSON_NEXT = (
    ("resvar show --variant original,full-preact", "two orderings side by side"),
    ("resvar show --family imagenet --depth 50", "ResNet-50"),
    ("resvar show --compare resnet50 resnext50_32x4d", "what differs, at what cost"),
    ("resvar show --variant mine.yaml --out unit.svg", "your ordering, as a figure"),
)


def show(
    variants: str | None = None,
    options: Mapping[str, Any] | None = None,
    compare: tuple[str, str] | None = None,
    num_classes: int | None = None,
    format: str = "table",
    out: Path | None = None,
) -> None:
    """Print a network, or the comparison of two; with `out`, draw the unit into a file as well.

    Args:
        variants: names or YAML files of orderings, separated by commas.
        options: arguments of `plan` by name; those that are None were not given.
        compare: two names such as `resnet50`, see `resvar.models.names`.
        format: `table`, `json` or `markdown`.
        out: an SVG file.

    Raises:
        UserError: there is no such ordering, network or name, or `out` cannot be written.
    """
    if out is not None and out.suffix.lower() != ".svg":
        raise UserError(
            f"--out {out}: the unit is drawn as SVG, so the name must end in .svg; to keep the "
            "text, send it to a file with '>'."
        )
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if compare is not None:
        networks = _two(compare, variants, given, num_classes)
    else:
        networks = _one_in_several_orderings(variants, given, num_classes)
    if out is not None:
        _write_figure(out, networks)
    if format == "json":
        print(json.dumps(_json(networks, compare is not None), indent=2, ensure_ascii=False))
    elif format == "markdown":
        print("\n".join(_markdown(networks, compare is not None)))
    else:
        console = console_for_output(highlight=False)
        if compare is not None:
            print_comparison(networks[0], networks[1], console)
        else:
            print_networks(networks, console)
            if not given and variants is None:
                _teach(console)
    if out is not None:
        print(f"Wrote {out}", file=sys.stdout if format == "table" else sys.stderr)


# --- which networks -------------------------------------------------------------------------------


def _one_in_several_orderings(
    variants: str | None, given: Mapping[str, Any], num_classes: int | None
) -> list[Complexity]:
    depth = given.get("depth", DEFAULT_DEPTH[given.get("family", "cifar")])
    orderings = _orderings(variants) or [find_ordering(DEFAULT_VARIANT)]
    arguments = {**given, "depth": depth}
    return [_described(ordering, arguments, num_classes) for ordering in orderings]


def _two(
    names: tuple[str, str],
    variants: str | None,
    given: Mapping[str, Any],
    num_classes: int | None,
) -> list[Complexity]:
    """Two networks by name; `given` choices hold for both, two variants one for each."""
    for option in ("depth", "family", "cardinality", "base_width"):
        if option in given:
            raise UserError(
                f"--compare names whole networks: leave out --{option.replace('_', '-')}, or put "
                "it into a name, such as resnext50_32x4d."
            )
    orderings = _orderings(variants)
    if len(orderings) > 2:
        raise UserError(f"--compare takes one variant or two, one for each, not {len(orderings)}.")
    networks = []
    for index, name in enumerate(names):
        arguments = named(name)
        usual = find_ordering(arguments.pop("variant"))
        ordering = orderings[min(index, len(orderings) - 1)] if orderings else usual
        del arguments["num_classes"]  # the stem says, and it may be another
        networks.append(_described(ordering, {**arguments, **given}, num_classes))
    return networks


def _orderings(variants: str | None) -> list[Ordering]:
    names = [] if variants is None else [name.strip() for name in variants.split(",")]
    if "" in names:
        raise UserError("--variant: a name is empty; write it as original,full-preact.")
    return [find_ordering(name) for name in names]


def _described(
    ordering: Ordering, arguments: Mapping[str, Any], num_classes: int | None
) -> Complexity:
    try:
        architecture = plan(**arguments)
    except UserError as error:
        # Settings of a run are given with --set, those of this command by options of their own.
        raise UserError(str(error).replace("(--set unit=…)", "(--unit …)")) from error
    return describe(ordering, architecture, num_classes)


# --- the unit -------------------------------------------------------------------------------------


def figure(network: Complexity) -> Figure:
    """The unit of a network as something to draw."""
    architecture = network.architecture
    return Figure(
        network.ordering, caption(network.ordering), architecture.unit, architecture.cardinality
    )


def caption(ordering: Ordering) -> str:
    """Which figure of the paper an ordering is: `figure 4(a) · V1`; empty for any other."""
    file = shipped("variants").get(ordering.name)
    letter = read_yaml(file).get("figure") if file is not None else None
    return f"figure {letter}{CAPTIONS.get(ordering.name, '')}" if letter else ""


def _write_figure(out: Path, networks: Sequence[Complexity]) -> None:
    try:
        write_text(out, figures_svg(_figures(networks)))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}).") from error


def _figures(networks: Sequence[Complexity]) -> list[Figure]:
    """The units of all networks, equal ones once; of different networks under their names."""
    figures = dict.fromkeys(map(figure, networks))
    if len(figures) == 1 or len({network.architecture for network in networks}) == 1:
        return list(figures)
    return [replace(figure(network), caption=title(network.architecture)) for network in networks]


# --- for a terminal -------------------------------------------------------------------------------


def print_networks(networks: Sequence[Complexity], console: Console) -> None:
    """One network in one or several orderings: units, stages, counts."""
    network, several = networks[0], len(networks) > 1
    console.print(Text(_heading(network, several), style="bold"))
    console.print(Text(_choices(network), style="dim"), end="\n\n")
    console.print(Drawing(_figures(networks)))
    console.print()
    console.print(_stage_table(network, with_parameters=not several))
    if several:
        console.print(_orderings_table(networks))
    console.print(_sums(network, with_parameters=not several))


def _heading(network: Complexity, several: bool = False) -> str:
    name = title(network.architecture)
    return f"{name} in several orderings" if several else f"{name}, {network.ordering.name}"


def _choices(network: Complexity) -> str:
    """What was chosen, in one line."""
    architecture = network.architecture
    strided = "first" if architecture.stride_on == "first" else "3×3"
    shortcut = {"pad": "padded (A)", "project": "projected (B)"}[architecture.shortcut]
    return (
        f"{architecture.unit} units · shortcuts {shortcut} where the shape changes · "
        f"stride on the {strided} convolution · {network.num_classes} classes"
    )


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
    """A unit as table 1 of the ResNet paper shows it: a convolution a line, in tall brackets."""
    if not row.units:
        return Text(row.unit)
    labels = [str(conv) for conv in row.convolutions]
    width = max(map(len, labels))
    last = len(labels) - 1
    lines = [row.about] if row.about else []
    for index, label in enumerate(labels):
        left, right = "⎡⎤" if index == 0 else "⎣⎦" if index == last else "⎢⎥"
        times = f" × {row.units}" if index == len(labels) // 2 else ""
        lines.append(f"{left}{label:<{width}}{right}{times}")
    return Text("\n".join(lines))


def _orderings_table(networks: Sequence[Complexity]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("variant", "lead", "trail", "after_add", "stem"):
        table.add_column(name)
    table.add_column("parameters", justify="right")
    for network in networks:
        ordering = network.ordering
        places = (ordering.lead, ordering.trail, ordering.after_add, ordering.stem)
        table.add_row(ordering.name, *map(_ops, places), f"{network.parameters:,}")
    return table


def _ops(ops: Sequence[str]) -> str:
    return " ".join(ops) or "–"


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


def _teach(console: Console) -> None:
    console.print()
    console.print(Text(LESSON), end="\n\n")
    console.print(Text("Go on with", style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for command, meaning in LESSON_NEXT:
        grid.add_row(command, Text(meaning, style="dim"))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))


def rounded(number: int) -> str:
    """`25.56 M`, `4.09 G`, `0.27 M`; the number itself where two decimals would not show it."""
    if number >= 10**9:
        return f"{number / 10**9:,.2f} G"
    return f"{number / 10**6:.2f} M" if number >= 10**5 else f"{number:,}"


# --- two networks, for a terminal -----------------------------------------------------------------


def print_comparison(a: Complexity, b: Complexity, console: Console) -> None:
    """Two networks side by side; a row in which they differ is marked with ≠ and says how."""
    found = differences(a, b)
    console.print(Text(f"{_heading(a)}  ↔  {_heading(b)}", style="bold"), end="\n\n")
    if len(_figures([a, b])) > 1:
        console.print(Drawing(_figures([a, b])))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column(_column(a, b), min_width=_widest_unit(a))
    table.add_column(_column(b, a), min_width=_widest_unit(b))
    table.add_column("what differs", min_width=13)
    for name, one, other in _paired(a, b):
        marks = [difference.text for difference in found if difference.stage == name]
        table.add_row(
            _where(name, one, other),
            _stacked(one) if one else "–",
            _stacked(other) if other else "–",
            _marked(marks),
            style="" if marks else "dim",
        )
    table.add_section()
    for name, one_sum, other_sum, mark in _compared_sums(a, b):
        table.add_row(name, one_sum, other_sum, _marked([mark] if mark else []))
    console.print(table)
    for difference in found:
        if difference.stage == "network":
            console.print(_marked([difference.text]))
    if not found:
        console.print("They are the same network.")


def _widest_unit(network: Complexity) -> int:
    """Characters of the longest line in brackets: those must not be broken."""
    stacks = (_stacked(row).plain.splitlines() for row in network.stages if row.units)
    return max(len(line) for lines in stacks for line in lines if line[0] in "⎡⎢⎣")


def _column(network: Complexity, other: Complexity) -> str:
    """A network's name, with its ordering where that tells it from the other."""
    name = title(network.architecture)
    same = network.ordering == other.ordering
    return name if same else f"{name}, {network.ordering.name}"


def _paired(a: Complexity, b: Complexity) -> Iterator[Pair]:
    """Rows of the same name; None where a network has no such row."""
    rows_a, rows_b = ({row.name: row for row in network.stages} for network in (a, b))
    for row in max(a.stages, b.stages, key=len):
        yield row.name, rows_a.get(row.name), rows_b.get(row.name)


def _where(name: str, one: StageRow | None, other: StageRow | None) -> str:
    """A stage with its output size, where both have the same."""
    sizes = {row.size for row in (one, other) if row is not None}
    return f"{name}\n{(size := sizes.pop())}×{size}" if len(sizes) == 1 else name


def _marked(texts: Sequence[str]) -> Text:
    return Text("\n".join(f"≠ {text}" for text in texts), style="bold yellow")


def _compared_sums(a: Complexity, b: Complexity) -> Iterator[tuple[str, str, str, str]]:
    """Layers, parameters and multiply-adds of both, and how they compare; no words if equal."""
    more = b.layers - a.layers
    yield "layers", str(a.layers), str(b.layers), f"{more:+d} layers" if more else ""
    for name in ("parameters", "multiply_adds"):
        one, other = getattr(a, name), getattr(b, name)
        label = name.replace("_", "-")
        yield label, f"{one:,}", f"{other:,}", _ratio(one, other)


def _ratio(one: int, other: int) -> str:
    if one == other:
        return ""
    almost = ", almost equal" if abs(other / one - 1) < ALMOST else ""
    return f"× {other / one:.3f}{almost}"


# --- as JSON --------------------------------------------------------------------------------------


def as_dict(network: Complexity) -> dict[str, Any]:
    """A network as plain values; names stay as they are, and new ones may come.

    `title, variant, depth, family, unit, stem, cardinality, base_width, shortcut, stride_on,
    num_classes, input` ([channels, height, width]), `layers, layer_sum, parameters, multiply_adds,
    ordering` (ops at `lead, between, trail, after_add`), `stem_ops, projection_has_bn`, and
    `stages`: `name, output` ([channels, height, width]), `unit` (one line), `units`, `convolutions`
    (of one unit: `kernel, channels, groups`), `layers, parameters, multiply_adds`.
    """
    architecture, ordering = network.architecture, network.ordering
    projects = architecture.shortcut == "project"
    return {
        "title": title(architecture),
        "variant": ordering.name,
        "depth": architecture.depth,
        "family": architecture.family,
        "unit": architecture.unit,
        "stem": architecture.stem,
        "cardinality": architecture.cardinality,
        "base_width": architecture.base_width,
        "shortcut": architecture.shortcut,
        "stride_on": architecture.stride_on,
        "num_classes": network.num_classes,
        "input": list(network.input),
        "layers": network.layers,
        "layer_sum": network.layer_sum,
        "parameters": network.parameters,
        "multiply_adds": network.multiply_adds,
        "ordering": {place: list(getattr(ordering, place)) for place in PLACES},
        "stem_ops": list(ordering.stem),
        "projection_has_bn": ordering.projection_has_bn if projects else None,
        "stages": [_stage_as_dict(row) for row in network.stages],
    }


def _stage_as_dict(row: StageRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "output": [row.channels, row.size, row.size],
        "unit": row.unit,
        "units": row.units,
        "convolutions": [
            {"kernel": conv.kernel, "channels": conv.channels, "groups": conv.groups}
            for conv in row.convolutions
        ],
        "layers": row.layers,
        "parameters": row.parameters,
        "multiply_adds": row.multiply_adds,
    }


def compared_as_dict(a: Complexity, b: Complexity) -> dict[str, Any]:
    """`networks` (two), `differences` (`stage, what, a, b, text`), and `ratios`, second to first.

    `stage` is the name of a stage or `network`.
    """
    sums = ("layers", "parameters", "multiply_adds")
    return {
        "networks": [as_dict(a), as_dict(b)],
        "differences": [_difference_as_dict(found) for found in differences(a, b)],
        "ratios": {name: round(getattr(b, name) / getattr(a, name), 6) for name in sums},
    }


def _difference_as_dict(found: Difference) -> dict[str, Any]:
    return {
        "stage": found.stage, "what": found.what, "a": found.a, "b": found.b, "text": found.text,
    }  # fmt: skip


def _json(networks: Sequence[Complexity], compared: bool) -> Any:
    """An object for one network or a comparison, a list for several orderings."""
    if compared:
        return compared_as_dict(networks[0], networks[1])
    descriptions = [as_dict(network) for network in networks]
    return descriptions if len(descriptions) > 1 else descriptions[0]


# --- as Markdown ----------------------------------------------------------------------------------


def _markdown(networks: Sequence[Complexity], compared: bool) -> Iterator[str]:
    if compared:
        yield from _comparison_as_markdown(networks[0], networks[1])
        return
    for index, network in enumerate(networks):
        yield from [""] if index else []
        yield from _network_as_markdown(network)


def _network_as_markdown(network: Complexity) -> Iterator[str]:
    yield from (f"### {_heading(network)}", "", f"{_choices(network)}.", "")
    ordering = network.ordering
    yield from _pipes(PLACES, [[_ops(getattr(ordering, place)) for place in PLACES]])
    yield ""
    yield from _pipes(
        ("stage", "output", "channels", "unit", "layers", "parameters", "multiply-adds"),
        [
            [
                row.name, f"{row.size}×{row.size}", str(row.channels), _in_one_line(row),
                row.layers_worked_out, f"{row.parameters:,}", f"{row.multiply_adds:,}",
            ]
            for row in network.stages
        ],
    )  # fmt: skip
    yield from ("", f"- layers: {network.layer_sum}")
    for name in ("parameters", "multiply_adds"):
        count = getattr(network, name)
        yield f"- {name.replace('_', '-')}: {count:,} ({rounded(count)})"


def _comparison_as_markdown(a: Complexity, b: Complexity) -> Iterator[str]:
    found = differences(a, b)
    yield from (f"### {_heading(a)} ↔ {_heading(b)}", "")
    rows = []
    for name, one, other in _paired(a, b):
        marks = [f"**≠ {difference.text}**" for difference in found if difference.stage == name]
        cells = [_in_one_line(row) if row else "–" for row in (one, other)]
        rows.append([_where(name, one, other).replace("\n", ", "), *cells, ", ".join(marks)])
    for name, one_sum, other_sum, mark in _compared_sums(a, b):
        rows.append([name, one_sum, other_sum, f"**≠ {mark}**" if mark else ""])
    yield from _pipes(("stage", _column(a, b), _column(b, a), "what differs"), rows)
    if whole := [difference.text for difference in found if difference.stage == "network"]:
        yield ""
        yield from (f"- **≠ {text}**" for text in whole)


def _in_one_line(row: StageRow) -> str:
    return f"{row.about}, {row.unit}" if row.units and row.about else row.unit


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"
