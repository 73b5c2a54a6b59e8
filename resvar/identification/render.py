"""An identification for a terminal: the layers that the signal meets, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from resvar.identification.answer import Identification, shortlist, verdict_lines
from resvar.identification.differences import words
from resvar.identification.reading import changes_shape, stride
from resvar.identification.structure import Step, Structure
from resvar.models.architecture import Architecture
from resvar.table import Prose, Table, filled, left, print_table, right


def print_identification(found: Identification, subject: str, console: Console) -> None:
    """The layers of the network, then the verdict."""
    print_table(_layers_table(found), console)
    console.print()
    console.print(Prose(_network_facts(found)), crop=False)
    console.print()
    for number, line in enumerate(verdict_lines(found, subject)):
        style = ("green" if found.known else "yellow") if number == 0 else ""
        console.print(Prose(line, style), crop=False)


# --- the layers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """The units with the same layers, or the stem, or the head."""

    modules: str
    count: int | None
    before: str
    branch: str
    shortcut: str


def _layers_table(found: Identification) -> Table:
    """A row for each form of a unit, in the order in which the signal meets the first of each."""
    structure = found.structure
    forms: dict[tuple[str, str, str], list[str]] = {}
    for unit in structure.units:
        form = _path(unit.before), _path(unit.branch), _path(unit.shortcut) or "identity"
        forms.setdefault(form, []).append(unit.name)
    rows = [
        _Row("stem", None, "", _path(structure.stem), ""),
        *(_Row(shortlist(names), len(names), *form) for form, names in forms.items()),
        _Row("head", None, "", _path(structure.head), ""),
    ]
    columns = (
        left("module", lambda row: row.modules, wrap=14),
        right("units", lambda row: row.count),
        left("before the split", lambda row: row.before, wrap=8),
        left("branch", lambda row: row.branch, wrap=16),
        left("shortcut", lambda row: row.shortcut, wrap=10),
    )
    return filled("The layers that the signal meets", columns, rows)


def _path(steps: Sequence[Step]) -> str:
    return " · ".join(_layer(step) for step in steps)


def _layer(step: Step) -> str:
    if step.op != "conv":
        return words([step.op])
    kernel = "×".join(map(str, step.weight_shape[2:]))
    groups = f" in {step.groups} groups" if step.groups > 1 else ""
    return f"{kernel}{groups}{f' /{stride(step)}' if stride(step) > 1 else ''}"


# --- sentences ------------------------------------------------------------------------------------


def _network_facts(found: Identification) -> str:
    network = found.architecture
    counts = ", ".join(str(stage.units) for stage in network.stages)
    widths = ", ".join(str(stage.out) for stage in network.stages)
    kind = "basic units" if network.unit == "basic" else "bottlenecks"
    return (
        f"{network.depth} layers on the main path: {network.stem} stem, stages of {counts} {kind} "
        f"with {widths} channels{_grouped(network)}, linear layer. "
        f"{_changing(found.structure)}{_strided(network)}. "
        f"{found.parameters:,} parameters, {found.num_classes:,} classes; run on images of "
        f"{'×'.join(map(str, found.input))}."
    )


def _changing(structure: Structure) -> str:
    changing = [unit for unit in structure.units if changes_shape(unit)]
    projecting = sum(unit.projects for unit in changing)
    if not changing:
        return "No shortcut changes the shape"
    share = {0: "without projections", len(changing): "by projection"}
    how = share.get(projecting, f"{projecting} of them by projection")
    changes = "shortcut changes" if len(changing) == 1 else "shortcuts change"
    return f"{len(changing)} {changes} the shape, {how}"


def _strided(network: Architecture) -> str:
    if network.unit == "basic":
        return ""
    return f"; the stride is on the {'3×3' if network.stride_on == '3x3' else 'first 1×1'}"


def _grouped(architecture: Architecture) -> str:
    if architecture.cardinality == 1:
        return ""
    return f", {architecture.cardinality} groups of {architecture.base_width} in the first stage"
