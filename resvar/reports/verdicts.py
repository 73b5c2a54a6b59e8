"""V1 (original) against V2 (full pre-activation): two answers for each depth, and a verdict.

- The *direction*: which one is better, at an error rate of 5 % over all depths together.
- The *agreement* with the published difference, whose own uncertainty counts too.

Also whether both are *equivalent*, their difference being within a declared margin. All three come
from one interval. The declared seeds decide, no more and no fewer: until they are complete the
numbers are interim, and further seeds do not change a verdict. `scripts/simulate_verdicts.py`
measures how often these rules are wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Literal

from resvar.console import p_value, pluralize, points
from resvar.reports.cells import Cell
from resvar.reports.design import SeedPlan
from resvar.reports.power import Power, design_power, fewest_seeds, sd_range
from resvar.reports.published import published_difference
from resvar.reports.statistics import ERROR_RATE, Comparison, compare, pooled_sd

V1, V2 = "original", "full-preact"

Direction = Literal["V2 better", "V1 better", "undecided"]
AgreementWord = Literal["agrees", "smaller", "larger", "inconclusive"]


@dataclass(frozen=True)
class Side:
    """The declared runs of a variant.

    Attributes:
        errors: test errors in percent, by seed; infinite where the run diverged.
        missing: declared seeds without a result.
        further: finished seeds that were not declared.
    """

    errors: tuple[float, ...]
    missing: int
    further: int

    @property
    def diverged(self) -> int:
        return sum(map(math.isinf, self.errors))


@dataclass(frozen=True)
class V1V2Comparison:
    """V1 against V2 at one depth.

    Attributes:
        plan: the declared seeds, and the margin of equivalence.
        depths: at how many depths V1 and V2 are compared; the error rate is divided by it.
        like_paper: the runs follow the paper, so that its figures are comparable.
        usual_sd: of a published figure without a standard deviation; None: unknown.
    """

    depth: int
    v1: Cell
    v2: Cell
    plan: SeedPlan
    depths: int
    like_paper: bool
    usual_sd: float | None = None

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """The declared runs of V1 and of V2."""
        return _side(self.v1, self.plan), _side(self.v2, self.plan)

    @property
    def interim(self) -> bool:
        """Whether a declared run has no result yet."""
        return any(side.missing for side in self.sides)

    @cached_property
    def comparison(self) -> Comparison | None:
        """Of the declared runs, at the level of one depth; None if a variant has none."""
        first, second = (side.errors for side in self.sides)
        return compare(first, second, 1 - ERROR_RATE / self.depths) if first and second else None

    @property
    def p_family(self) -> float | None:
        """The p-value, corrected for the depths by Bonferroni as its interval is."""
        found = self.comparison
        return None if found is None or found.p is None else min(1.0, self.depths * found.p)

    @property
    def smallest_p(self) -> float | None:
        """The smallest corrected p that so many seeds can give."""
        found = self.comparison
        if found is None or found.smallest_p is None:
            return None
        return min(1.0, self.depths * found.smallest_p)

    @property
    def published_difference(self) -> float | None:
        """V2 − V1 in the paper, in points."""
        return published_difference(self.v1.published, self.v2.published)

    @property
    def is_opposite(self) -> bool:
        """Whether the direction is decided, and not the published one."""
        theirs = self.published_difference
        published = "V2 better" if theirs is not None and theirs < 0 else "V1 better"
        return theirs is not None and self.direction not in ("undecided", published)

    @property
    def sd(self) -> float | None:
        """The standard deviation between seeds, pooled over both; None if one has a single run."""
        if self.v1.summary is None or self.v2.summary is None:
            return None
        return pooled_sd(self.v1.summary, self.v2.summary)

    @cached_property
    def power(self) -> Power | None:
        """What the declared seeds can show of the published difference; None without a spread."""
        theirs, v1, v2 = self.published_difference, self.v1.summary, self.v2.summary
        if not self.sd or not theirs or v1 is None or v2 is None:
            return None
        sds = sd_range(self.sd, v1.n + v2.n - 2)
        return design_power(theirs, sds, len(self.plan.seeds), self.depths)

    # --- the answers

    @property
    def direction(self) -> Direction:
        """Which one is better; undecided also in interim."""
        found = self.comparison
        if self.interim or found is None or not found.decides:
            return "undecided"
        leaning = _by_ranks(self.sides) if found.difference is None else found.difference
        return "V2 better" if leaning < 0 else "V1 better"

    @cached_property
    def agreement(self) -> AgreementWord | None:
        """How the difference relates to the published one; None if nothing is comparable.

        `agrees`: it has the published direction, and the two do not differ. Inconclusive: they do
        not differ, but neither does the difference from 0. The opposite direction is `smaller`.
        """
        theirs = self.published_difference
        if not self.like_paper or theirs is None or self.interim:
            return None
        found = self.comparison
        excess = self._excess(theirs) if found is not None and found.can_decide else None
        if excess is None:
            return "smaller" if self.is_opposite else "inconclusive"
        low, high = excess
        if low <= 0 <= high:
            decided = self.direction != "undecided" and not self.is_opposite
            return "agrees" if decided else "inconclusive"
        return "smaller" if (low > 0) == (theirs < 0) else "larger"

    def _excess(self, theirs: float) -> tuple[float, float] | None:
        """The interval of our difference − theirs, by MOVER (Zou & Donner 2008).

        Theirs is a difference of medians of normal test errors, with the published standard
        deviation, or where there is none with the usual one.
        """
        found = self.comparison
        spreads = [_published_spread(cell, self.usual_sd) for cell in (self.v1, self.v2)]
        if found is None or found.interval is None or found.difference is None or None in spreads:
            return None
        quantile = -float(import_module("scipy.special").ndtri((1 - found.level) / 2))
        half = quantile * math.hypot(*(spread for spread in spreads if spread is not None))
        (low, high), ours = found.interval, found.difference
        middle = ours - theirs
        return middle - math.hypot(ours - low, half), middle + math.hypot(high - ours, half)

    @property
    def equivalent(self) -> bool | None:
        """Whether the whole interval is within the margin; None if it cannot be decided."""
        found = self.comparison
        if self.interim or found is None or found.interval is None or not found.can_decide:
            return None
        return max(map(abs, found.interval)) <= self.plan.margin

    @property
    def reproduced(self) -> bool:
        """Whether V2 is better as in the paper, and by a difference that agrees with its own."""
        return self.agreement == "agrees" and self.direction == "V2 better"

    @property
    def word(self) -> str:
        """The verdict in one or two words."""
        return "interim" if self.interim else "reproduced" if self.reproduced else self.direction

    @property
    def sentence(self) -> str:
        """The verdict in sentences."""
        return " ".join(_sentences(self))


def _side(cell: Cell, plan: SeedPlan) -> Side:
    errors = cell.outcomes(plan.seeds)
    further = len(cell.errors.keys() - plan.seeds)
    return Side(errors, len(plan.seeds) - len(errors), further)


def _by_ranks(sides: tuple[Side, Side]) -> float:
    """Below 0 where V2 has the lower ranks, counted by pairs of runs; diverged ones are last."""
    first, second = (side.errors for side in sides)
    pairs = [(ours > theirs) - (ours < theirs) for theirs in first for ours in second]
    return sum(pairs)


MEDIAN_VARIANCE = {1: 1.0, 3: 0.4487, 5: 0.2868, 7: 0.2104, 9: 0.1661}
"""The variance of the median of n standard normal values (order statistics)."""


def _published_spread(cell: Cell, usual: float | None) -> float | None:
    """The standard error of a published median."""
    figure = cell.published
    if figure is None or (sd := figure.sd if figure.sd is not None else usual) is None:
        return None
    n = figure.runs or 1
    return sd * math.sqrt(MEDIAN_VARIANCE.get(n, math.pi / (2 * n)))


# --- the sentences --------------------------------------------------------------------------------


def _sentences(pair: V1V2Comparison) -> list[str]:
    first, second = pair.sides
    told = [_interim(pair)] if pair.interim else [_direction(pair), *_against_paper(pair)]
    if pair.equivalent:
        told.append(f"They are equivalent within ±{pair.plan.margin:g} points.")
    for name, side in (("V1", first), ("V2", second)):
        if side.diverged:
            total = len(side.errors)
            told.append(f"{side.diverged} of {total} runs of {name} diverged and rank last.")
    if further := max(first.further, second.further):
        declared = len(pair.plan.seeds)
        told.append(f"Not counted: {pluralize(further, 'further seed')}; {declared} were declared.")
    if looks := [n for n in pair.plan.earlier if n >= fewest_seeds(pair.depths)]:
        told.append(
            f"First {looks[0]} seeds were declared, then {len(pair.plan.seeds)}: if results were "
            "known by then, the error rate is above 5 %."
        )
    return told


def _interim(pair: V1V2Comparison) -> str:
    declared, (first, second) = len(pair.plan.seeds), pair.sides
    seeds = "declared seeds" if pair.plan.by_sweep else "seeds, the paper's number"
    counts = f"V1 has {len(first.errors)} and V2 {len(second.errors)} of {declared} {seeds}"
    found = pair.comparison
    if found is None or found.difference is None:
        return f"interim, no verdict: {counts}."
    so_far = f"V2 − V1 is {points(found.difference)} points so far{_span(found, ' (', ')')}"
    return f"interim, no verdict: {counts}; {so_far}."


def _direction(pair: V1V2Comparison) -> str:
    found = pair.comparison
    assert found is not None  # the declared seeds are complete
    if not found.can_decide:
        return _too_small(pair, found)
    corrected = f", corrected for {pair.depths} depths" if pair.depths > 1 else ""
    how = f"(p {p_value(pair.p_family or 0.0)}{corrected}, {counts(found.n)})"
    if pair.direction == "undecided":
        contains = ", which contains 0" if found.interval else ""
        none = all(side.diverged == len(side.errors) for side in pair.sides)
        ranks = "no run has a result" if none else "the ranks do not differ significantly"
        return f"undecided: {_difference_text(found) or ranks}{contains} {how}."
    better, other = ("V2", "V1") if pair.direction == "V2 better" else ("V1", "V2")
    what = _difference_text(found) or f"its runs rank before those of {other}"
    before = f"reproduced: {better} is better;" if pair.reproduced else f"{better} is better:"
    return f"{before} {what} {how}."


def _too_small(pair: V1V2Comparison, found: Comparison) -> str:
    """Why a design with so few seeds cannot decide, and how many can."""
    why = "one seed of a variant cannot decide"
    if pair.smallest_p is not None:
        why = f"{counts(found.n)} cannot decide, since p cannot fall below {pair.smallest_p:.2f}"
    seeds = f"{fewest_seeds(pair.depths)} seeds of each can"
    return f"undecided: {why}; {seeds}{_difference_text(found, ' (', ')')}."


def counts(n: tuple[int, int]) -> str:
    """`n = 5`, or `n = 5 and 4`."""
    return f"n = {n[0]}" if n[0] == n[1] else f"n = {n[0]} and {n[1]}"


def _against_paper(pair: V1V2Comparison) -> list[str]:
    theirs = pair.published_difference
    if pair.agreement is None or theirs is None:
        return []
    published = f"the published {points(theirs)}"
    if pair.agreement == "agrees":
        return [f"It agrees with {published}."]
    if pair.agreement == "inconclusive":
        return [f"Whether it agrees with {published} is inconclusive{_too_few(pair)}."]
    if pair.is_opposite:
        return [f"That is the opposite of {published}."]
    return [f"The difference is {pair.agreement} than {published}."]


def _too_few(pair: V1V2Comparison) -> str:
    """That the design is underpowered for the published difference, if it is."""
    found = pair.power
    if found is None or not found.is_low or not found.powers[-1]:
        return ""
    return f"; with {len(pair.plan.seeds)} seeds the power to detect it is {found.chance}"


def _difference_text(found: Comparison, before: str = "", after: str = "") -> str:
    if found.difference is None:
        return ""
    return f"{before}V2 − V1 is {points(found.difference)} points{_span(found, ', ')}{after}"


def _span(found: Comparison, before: str, after: str = "") -> str:
    if found.interval is None:
        return ""
    low, high = found.interval
    kind = "interval" if found.can_decide else "Welch interval"
    return f"{before}{100 * found.level:.4g} % {kind} {points(low)} to {points(high)}{after}"
