"""What a network turned out to be: the verdict as data, as sentences and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from resvar.console import listed
from resvar.identification.differences import Deviation
from resvar.identification.structure import Step, Structure
from resvar.identification.twin import FunctionDistance
from resvar.models.architecture import Architecture
from resvar.models.names import title
from resvar.models.ordering import Ordering

Shape = tuple[int, int, int]

MODULES_SHOWN = 4
"""Modules of a difference; the others are counted."""

DIFFERENCES_SHOWN = 12
"""Differences; the others are counted."""


@dataclass(frozen=True)
class Identification:
    """What a network is.

    Attributes:
        known: whether resvar builds the same network, with the choices of the papers.
        published: whether it is known, and of a published depth.
        ordering: the ordering, or the nearest one.
        architecture: the numbers that were read from the network.
        nearest: the nearest architecture that has a name.
        differences: from the nearest ordering and architecture; empty for a known network.
        notes: what is worth knowing but not a difference.
        comparison: with resvar's own network and the same weights; None if the layers differ.
        structure: stem, units and head, layer by layer.
        input: channels, height and width of the images on which it was run.
        num_classes: number of logits.
        parameters: of the whole module.
    """

    known: bool
    published: bool
    ordering: Ordering
    architecture: Architecture
    nearest: Architecture
    differences: tuple[Deviation, ...]
    notes: tuple[str, ...]
    comparison: FunctionDistance | None
    structure: Structure
    input: Shape
    num_classes: int
    parameters: int

    @property
    def network(self) -> str:
        """The name of the nearest network, such as `ResNet-110`."""
        return title(self.nearest)

    def __str__(self) -> str:
        """The verdict and the differences, a line each."""
        return "\n".join(verdict_lines(self, "the network"))


def verdict_lines(found: Identification, subject: str) -> Iterator[str]:
    """What the network is, and each difference."""
    name = f"{found.ordering.name}, {found.network}"
    if found.known:
        how = (
            "as published" if found.published else "built by the papers' rules, though not in them"
        )
        yield f"{subject} is {name}, {how}."
    else:
        far = len(found.differences) > DIFFERENCES_SHOWN
        what = "a residual network of another family" if far else "not a network of the papers"
        yield f"{subject} is {what}; nearest: {name}."
        yield from (f"differs: {_sentence(each)}" for each in found.differences[:DIFFERENCES_SHOWN])
        if (more := len(found.differences) - DIFFERENCES_SHOWN) > 0:
            yield f"differs: in {more} more respects (see --format json)."
    yield from (f"note: {note}." for note in found.notes)
    if found.comparison is not None and found.comparison.equal:
        yield _comparison_sentence(found.comparison, found.ordering.name)


def as_dict(found: Identification, subject: str) -> dict[str, Any]:
    """The answer in the types of JSON."""
    architecture, comparison = found.architecture, found.comparison
    return {
        "network": subject,
        "known": found.known,
        "published": found.published,
        "ordering": found.ordering.name,
        "nearest": found.network,
        "family": architecture.family,
        "stem": architecture.stem,
        "depth": architecture.depth,
        "unit": architecture.unit,
        "units": [stage.units for stage in architecture.stages],
        "widths": [stage.out for stage in architecture.stages],
        "inner_widths": [stage.inner for stage in architecture.stages],
        "cardinality": architecture.cardinality,
        "base_width": architecture.base_width,
        "shortcut": architecture.shortcut,
        "stride_on": architecture.stride_on,
        "num_classes": found.num_classes,
        "parameters": found.parameters,
        "input": list(found.input),
        "differences": [
            {"text": difference.text, "modules": list(difference.modules)}
            for difference in found.differences
        ],
        "notes": list(found.notes),
        "comparison": None
        if comparison is None
        else {
            "logits": _finite(comparison.logits),
            "gradients": _finite(comparison.gradients),
            "training_logits": _finite(comparison.training_logits),
            "precision": comparison.precision,
        },
        "layers": {
            "stem": _op_names(found.structure.stem),
            "units": [
                {
                    "module": unit.name,
                    "before_split": _op_names(unit.before),
                    "branch": _op_names(unit.branch),
                    "shortcut": _op_names(unit.shortcut),
                }
                for unit in found.structure.units
            ],
            "head": _op_names(found.structure.head),
        },
    }


# --- sentences ---


def _sentence(difference: Deviation) -> str:
    where = f" ({shortlist(difference.modules)})" if difference.modules else ""
    return f"{difference.text}{where}."


def shortlist(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MODULES_SHOWN} more" if len(names) > MODULES_SHOWN else ""
    return f"{', '.join(names[:MODULES_SHOWN])}{more}"


def _comparison_sentence(comparison: FunctionDistance, ordering: str) -> str:
    equal = f"to {comparison.largest:.0e}" if comparison.largest else "to the last bit"
    compared = listed(list(comparison.values))
    return (
        f"With the same random weights, resvar's {ordering} gives the same {compared}: equal "
        f"{equal} ({comparison.precision})."
    )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: null for gradients that do not arrive."""
    return value if value is not None and isfinite(value) else None


def _op_names(steps: Sequence[Step]) -> list[str]:
    return [step.op for step in steps]
