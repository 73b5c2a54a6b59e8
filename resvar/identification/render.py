"""An identification for a terminal: the layers that the signal meets, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console

from resvar.identification.answer import Identification, verdict_lines
from resvar.identification.differences import words
from resvar.identification.reading import changes_shape, stride
from resvar.identification.structure import Step, UnitFound
from resvar.models.architecture import Architecture
from resvar.table import Prose, Table, filled, left, print_table, right


def print_identification(found: Identification, subject: str, console: Console) -> None:
    """The layers of the network, then the verdict."""
    print_table(_layers_table(found), console)
    console.print()
    console.print(Prose(_facts(found)), crop=False)
    console.print()
    for number, line in enumerate(verdict_lines(found, subject)):
        style = ("green" if found.known else "yellow") if number == 0 else ""
        indent = "  " if line.startswith("differs") else ""
        console.print(Prose(indent + line, style), crop=False)


# --- the layers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """Consecutive units with the same layers, or stem or head."""

    modules: str
    count: int | None
    before: str
    branch: str
    shortcut: str


def _layers_table(found: Identification) -> Table:
    structure = found.structure
    rows = [_Row("stem", None, "", _path(structure.stem), "")]
    for _, group in groupby(structure.units, key=_form):
        units = list(group)
        modules = units[0].name if len(units) == 1 else f"{units[0].name} … {units[-1].name}"
        rows.append(_Row(modules, len(units), *_form(units[0])))
    rows.append(_Row("head", None, "", _path(structure.head), ""))
    columns = (
        left("module", lambda row: row.modules, wrap=14),
        right("units", lambda row: row.count if row.count is not None else ""),
        left("before the split", lambda row: row.before, wrap=8),
        left("branch", lambda row: row.branch, wrap=16),
        left("shortcut", lambda row: row.shortcut, wrap=10),
    )
    return filled("The layers that the signal meets", columns, rows)


def _form(unit: UnitFound) -> tuple[str, str, str]:
    return _path(unit.before), _path(unit.branch), _path(unit.shortcut) or "identity"


def _path(steps: Sequence[Step]) -> str:
    return " · ".join(_layer(step) for step in steps)


def _layer(step: Step) -> str:
    if step.op != "conv":
        return words([step.op])
    kernel = "×".join(map(str, step.weight_shape[2:]))
    groups = f" in {step.groups} groups" if step.groups > 1 else ""
    strided = f" /{stride(step)}" if stride(step) > 1 else ""
    return f"{kernel}, {step.channels_out}{groups}{strided}"


# --- sentences ------------------------------------------------------------------------------------


def _facts(found: Identification) -> str:
    network = found.architecture
    counts = ", ".join(str(stage.units) for stage in network.stages)
    widths = ", ".join(str(stage.out) for stage in network.stages)
    kind = "basic units" if network.unit == "basic" else "bottlenecks"
    changing = [unit for unit in found.structure.units if changes_shape(unit)]
    projecting = sum(unit.projects for unit in changing)
    return (
        f"{network.depth} layers on the main path: {network.stem} stem, stages of {counts} {kind} "
        f"with {widths} channels{_grouped(network)}, linear layer. "
        f"{len(changing)} shortcuts change the shape, {projecting} of them by projection. "
        f"{found.parameters:,} parameters, {found.num_classes:,} classes; run on images of "
        f"{'×'.join(map(str, found.input))}."
    )


def _grouped(architecture: Architecture) -> str:
    if architecture.cardinality == 1:
        return ""
    return f", {architecture.cardinality} groups of {architecture.base_width} in the first stage"
