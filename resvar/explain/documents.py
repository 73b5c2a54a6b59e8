"""Networks as JSON and as Markdown, and the labels that the terminal's tables use as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from resvar.explain.complexity import (
    CHOICES,
    Complexity,
    Difference,
    StageRow,
    network_differences,
    ops_label,
    paired_rows,
)
from resvar.models.names import title
from resvar.models.ordering import PLACES

ALMOST = 0.05
"""Sums with a smaller relative difference are called almost equal."""


# --- JSON -----------------------------------------------------------------------------------------


def network_as_dict(network: Complexity) -> dict[str, Any]:
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
        **{name: getattr(architecture, name) for name in CHOICES},
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
            {"kernel": conv.kernel, "channels": conv.channels_out, "groups": conv.groups}
            for conv in row.convolutions
        ],
        "layers": row.layers,
        "parameters": row.parameters,
        "multiply_adds": row.multiply_adds,
    }


def comparison_as_dict(a: Complexity, b: Complexity) -> dict[str, Any]:
    """`networks` (two), `differences` (`stage, what, a, b, text`), and `ratios`, second to first.

    `stage` is the name of a stage or `network`.
    """
    sums = ("layers", "parameters", "multiply_adds")
    return {
        "networks": [network_as_dict(a), network_as_dict(b)],
        "differences": [asdict(found) for found in network_differences(a, b)],
        "ratios": {name: round(getattr(b, name) / getattr(a, name), 6) for name in sums},
    }


# --- Markdown -------------------------------------------------------------------------------------


def networks_as_markdown(networks: Sequence[Complexity]) -> Iterator[str]:
    """The lines of a section for each network."""
    for index, network in enumerate(networks):
        yield from [""] if index else []
        yield from _network_as_markdown(network)


def _network_as_markdown(network: Complexity) -> Iterator[str]:
    yield from (f"### {network_heading(network)}", "", f"{choices_label(network)}.", "")
    places = [ops_label(getattr(network.ordering, place)) for place in PLACES]
    yield from _pipes(PLACES, [places])
    yield ""
    yield from _pipes(
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
        yield f"- {name.replace('_', '-')}: {count:,} ({rounded(count)})"


def comparison_as_markdown(a: Complexity, b: Complexity) -> Iterator[str]:
    """The lines of a section with two networks side by side."""
    yield from (f"### {network_heading(a)} ↔ {network_heading(b)}", "")
    found = network_differences(a, b)
    rows = []
    for name, one, other in paired_rows(a, b):
        where = ", ".join(filter(None, (name, common_size(one, other))))
        cells = [_in_one_line(row) if row else "–" for row in (one, other)]
        rows.append([where, *cells, ", ".join(map(_mark, texts_of(name, found)))])
    for name, *sums, text in compared_sums(a, b):
        rows.append([name, *sums, _mark(text) if text else ""])
    yield from _pipes(("stage", distinct_name(a, b), distinct_name(b, a), "what differs"), rows)
    if whole := texts_of("network", found):
        yield ""
        yield from (f"- {_mark(text)}" for text in whole)


def _mark(text: str) -> str:
    return f"**≠ {text}**"


def _in_one_line(row: StageRow) -> str:
    return f"{row.about}, {row.unit}" if row.units and row.about else row.unit


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"


# --- labels of every format -----------------------------------------------------------------------


def network_heading(network: Complexity) -> str:
    return f"{title(network.architecture)}, {network.ordering.name}"


def distinct_name(network: Complexity, other: Complexity) -> str:
    """The name of a network, with its ordering unless the other has the same."""
    same = network.ordering == other.ordering
    return title(network.architecture) if same else network_heading(network)


def choices_label(network: Complexity) -> str:
    """The choices of the architecture in one line."""
    architecture = network.architecture
    strided = "first" if architecture.stride_on == "first" else "3×3"
    shortcut = {"pad": "padded (A)", "project": "projected (B)"}[architecture.shortcut]
    return (
        f"{architecture.unit} units · shortcuts {shortcut} where the shape changes · "
        f"stride on the {strided} convolution · {network.num_classes} classes"
    )


def rounded(number: int) -> str:
    """`25.56 M`, `4.09 G`, `0.27 M`; all digits below 100,000."""
    if number >= 10**9:
        return f"{number / 10**9:,.2f} G"
    return f"{number / 10**6:.2f} M" if number >= 10**5 else f"{number:,}"


def texts_of(stage: str, found: Sequence[Difference]) -> list[str]:
    """The differences of one row, or of the `network`."""
    return [difference.text for difference in found if difference.stage == stage]


def common_size(one: StageRow | None, other: StageRow | None) -> str:
    """`32×32` if all rows have this output; empty if they differ."""
    sizes = {row.size for row in (one, other) if row is not None}
    return f"{min(sizes)}×{min(sizes)}" if len(sizes) == 1 else ""


def compared_sums(a: Complexity, b: Complexity) -> Iterator[tuple[str, str, str, str]]:
    """Name, both values and the difference of each sum; no text for equal ones."""
    more = b.layers - a.layers
    yield "layers", str(a.layers), str(b.layers), f"{more:+d} layers" if more else ""
    for name in ("parameters", "multiply_adds"):
        one, other = getattr(a, name), getattr(b, name)
        almost = ", almost equal" if abs(other / one - 1) < ALMOST else ""
        text = f"× {other / one:.3f}{almost}" if one != other else ""
        yield name.replace("_", "-"), f"{one:,}", f"{other:,}", text
