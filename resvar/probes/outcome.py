"""All that one call found, and its parts as series along the depth, for any renderer. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from resvar.probes.findings import Moment, Network, Probe, Unit
from resvar.probes.verdicts import Cell, Verdict

Values = list[float | None]
"""One per unit, in the order in which the signal meets them; None where there is none."""


@dataclass(frozen=True)
class Outcome:
    """What was measured, which runs were compared, and what follows."""

    probes: Sequence[Probe]
    cells: Sequence[Cell]
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Series:
    """One quantity along the depth.

    Attributes:
        unit: of the values: `%`, or nothing.
        of: picks it out of a moment; empty where it was not measured.
        shown: whether it says anything about this network.
    """

    title: str
    unit: str
    of: Callable[[Moment], Values]
    shown: Callable[[Network], bool] = lambda network: True  # noqa: ARG005


def _each(pick: Callable[[Unit], float | None]) -> Callable[[Moment], Values]:
    return lambda moment: [pick(unit) for unit in moment.units]


def gain_so_far(moment: Moment) -> Values:
    """The product of the gains of all units up to each."""
    return list(accumulate((unit.gain for unit in moment.units), mul))


def _deletion(moment: Moment) -> Values:
    return [] if moment.deletion is None else list(moment.deletion.errors)


def _has(op: str) -> Callable[[Network], bool]:
    return lambda network: op in network.after_add


SHORTCUT_STD = Series("shortcut signal, deviation", "", _each(lambda unit: unit.shortcut.std))
SHORTCUT_MEAN = Series("shortcut signal, mean", "", _each(lambda unit: unit.shortcut.mean))
SHORTCUT_NEGATIVE = Series(
    "shortcut signal, negative", "%", _each(lambda unit: 100 * unit.shortcut.negative)
)
BRANCH_STD = Series("branch, deviation", "", _each(lambda unit: unit.branch.std))
BRANCH_MEAN = Series("branch, mean", "", _each(lambda unit: unit.branch.mean))
BRANCH_NEGATIVE = Series("branch, negative", "%", _each(lambda unit: 100 * unit.branch.negative))
RATIO = Series("‖branch‖ / ‖shortcut‖", "", _each(lambda unit: unit.ratio))
GRADIENT = Series("gradient by that at the end", "", _each(lambda unit: unit.gradient_ratio))
GAIN = Series("BN after addition, gain so far", "", gain_so_far, _has("bn"))
PASSED = Series(
    "ReLU after addition, passed", "%", _each(lambda unit: 100 * unit.passed), _has("relu")
)
STRAIGHT = Series(
    "… passed by all in the stage", "%", _each(lambda unit: 100 * unit.straight), _has("relu")
)
DELETION = Series("test error without the unit", "%", _deletion)

ALL = (
    SHORTCUT_STD, SHORTCUT_MEAN, SHORTCUT_NEGATIVE, BRANCH_STD, BRANCH_MEAN, BRANCH_NEGATIVE,
    RATIO, GRADIENT, GAIN, PASSED, STRAIGHT, DELETION,
)  # fmt: skip


def when(iteration: int, iterations: int | None = None) -> str:
    """`at initialisation`, `after 400 iterations`."""
    if not iteration:
        return "at initialisation"
    unfinished = iterations is not None and iteration < iterations
    return f"after {iteration:,}{f' of {iterations:,}' if unfinished else ''} iterations"
