"""The quantities along the depth that tables and figures show. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from resvar.probes.measurements import Moment, ProbedNetwork, UnitSignals

Values = list[float | None]
"""One per unit, in the order of the signal."""


@dataclass(frozen=True)
class Series:
    """One quantity along the depth.

    Attributes:
        unit: of the values: `%`, or nothing.
        of: its values at a moment; empty if it was not measured.
        after_add: the operator after the addition that it applies to; empty: every network.
    """

    title: str
    unit: str
    of: Callable[[Moment], Values]
    after_add: str = ""

    def applies_to(self, network: ProbedNetwork) -> bool:
        return not self.after_add or self.after_add in network.after_add


def _each(pick: Callable[[UnitSignals], float | None]) -> Callable[[Moment], Values]:
    return lambda moment: [pick(unit) for unit in moment.units]


def _total_gain(moment: Moment) -> Values:
    """The product of the gains up to each unit."""
    return list(accumulate((unit.gain for unit in moment.units), mul))


def _deletion_errors(moment: Moment) -> Values:
    return [] if moment.deletion is None else list(moment.deletion.errors)


SHORTCUT_STD = Series("shortcut signal, deviation", "", _each(lambda unit: unit.shortcut.std))
SHORTCUT_MEAN = Series("shortcut signal, mean", "", _each(lambda unit: unit.shortcut.mean))
SHORTCUT_NEGATIVE = Series(
    "shortcut signal, negative", "%", _each(lambda unit: 100 * unit.shortcut.negative)
)
BRANCH_STD = Series("branch, deviation", "", _each(lambda unit: unit.branch.std))
BRANCH_MEAN = Series("branch, mean", "", _each(lambda unit: unit.branch.mean))
BRANCH_NEGATIVE = Series("branch, negative", "%", _each(lambda unit: 100 * unit.branch.negative))
RATIO = Series("‖branch‖ / ‖shortcut‖", "", _each(lambda unit: unit.ratio))
GRADIENT = Series("gradient relative to the end", "", _each(lambda unit: unit.gradient_ratio))
GAIN = Series("BN after addition, gain so far", "", _total_gain, "bn")
PASSED = Series("ReLU after addition, passed", "%", _each(lambda unit: 100 * unit.passed), "relu")
STRAIGHT = Series(
    "… passed by all in the stage", "%", _each(lambda unit: 100 * unit.straight), "relu"
)
DELETION = Series("test error without the unit", "%", _deletion_errors)

ALL_SERIES = (
    SHORTCUT_STD, SHORTCUT_MEAN, SHORTCUT_NEGATIVE, BRANCH_STD, BRANCH_MEAN, BRANCH_NEGATIVE,
    RATIO, GRADIENT, GAIN, PASSED, STRAIGHT, DELETION,
)  # fmt: skip


def moment_name(iteration: int, iterations: int | None = None) -> str:
    """`at initialisation`, `after 400 iterations`, `after 400 of 64,000 iterations`."""
    if not iteration:
        return "at initialisation"
    unfinished = iterations is not None and iteration < iterations
    return f"after {iteration:,}{f' of {iterations:,}' if unfinished else ''} iterations"
