"""What the paper claims, as predicates that can fail. No torch.

Each claim is a sentence of arXiv:1603.05027 turned into a question about measured numbers, with its
threshold beside it. A verdict says whether the sentence is true *of the network at hand*: of some
orderings the paper says it and of others not, and `Claim.said_of` knows which.

The first four are about one network at one moment. The last two compare runs of two orderings that
share protocol, dataset and depth, and need two seeds of each at least, since one seed has no
interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from resvar.reports.statistics import Comparison, compare

if TYPE_CHECKING:
    from resvar.models.ordering import Ordering
    from resvar.probes.findings import Moment

HALF_OR_DOUBLE = 2.0
"""scaled-shortcut: the factor by which the product of gains must leave 1, up or down."""

BACKWARD_TOLERANCE = {"fp32": 1e-4, "fp64": 1e-12}
"""identity-backward: the relative difference that counts as rounding; an eps times thousands."""

SLOWER = 0.05
"""slow-start: nats of training loss; the smallest difference that is worth the word."""

CONVERGED = 5.0
"""regularisation: percent of training error above which a network has not converged."""

Word = Literal["holds", "does not hold", "cannot be said from this data"]
HOLDS: Word = "holds"
FAILS: Word = "does not hold"
UNKNOWN: Word = "cannot be said from this data"


@dataclass(frozen=True)
class Answer:
    """A word, and the measured numbers that lead to it."""

    word: Word
    evidence: str


@dataclass(frozen=True)
class Claim:
    """A claim by name.

    Attributes:
        says: the sentence, about the network at hand.
        threshold: when it holds.
        source: where the paper has it.
        said_of: whether the paper says it of networks in this ordering.
    """

    name: str
    says: str
    threshold: str
    source: str
    said_of: Callable[[Ordering], bool]


# --- one network at one moment --------------------------------------------------------------------


def monotone_signal(moment: Moment) -> Answer:
    """The branches only ever add, so the signal only grows."""
    worst = max(moment.units, key=lambda unit: unit.branch.negative)
    steps = [
        (before, after)
        for before, after in pairwise(moment.units)
        if before.stage == after.stage and after.keeps_shape
    ]
    rising = sum(after.shortcut.mean > before.shortcut.mean for before, after in steps)
    evidence = (
        f"{worst.branch.negative:.1%} of the values that the branch of {worst.name} puts out are "
        f"negative, the most of all units; the mean rises in {rising} of {len(steps)} steps "
        "inside a stage"
    )
    if worst.branch.negative > 0:
        return Answer(FAILS, evidence)
    if not steps:
        return Answer(UNKNOWN, "no stage has two units, so there is no step to look at")
    return Answer(HOLDS if rising == len(steps) else FAILS, evidence)


def scaled_shortcut(moment: Moment) -> Answer:
    """What stands after the additions rescales the signal that goes straight through."""
    product = 1.0
    for unit in moment.units:
        product *= unit.gain
    gains = [unit.gain for unit in moment.units]
    least = min(moment.units, key=lambda unit: unit.passed)
    evidence = (
        f"BN after the addition multiplies by {min(gains):.3g} to {max(gains):.3g} a unit, and by "
        f"{product:.3g} over all {len(gains)}"
    )
    if least.passed < 1:
        evidence += f"; ReLU there lets as little as {least.passed:.1%} pass ({least.name})"
    scaled = product >= HALF_OR_DOUBLE or product <= 1 / HALF_OR_DOUBLE
    return Answer(HOLDS if scaled else FAILS, evidence)


def identity_forward(moment: Moment) -> Answer:
    """Equation 4: a signal is an earlier one and the sum of the branches between."""
    found = moment.identity
    if not found.chains:
        return Answer(UNKNOWN, "no unit has an identity shortcut")
    parts = [
        f"{name} {found.forward_relative[name]:.2g} of the signal, {off:.3g} times what rounding "
        "allows"
        for name, off in found.forward.items()
    ]
    holds = all(off <= 1 for off in found.forward.values())
    return Answer(
        HOLDS if holds else FAILS,
        f"x_L differs from x_l + sum of F by at most, in {'; in '.join(parts)} ({_chains(moment)})",
    )


def identity_backward(moment: Moment) -> Answer:
    """Equation 5: the gradient at the end reaches every unit as it is."""
    found = moment.identity
    known = {name: off for name, off in found.backward.items() if off is not None}
    if not found.chains or len(known) < len(found.backward):
        return Answer(UNKNOWN, "no gradient reaches a unit with an identity shortcut")
    parts = [f"{name} {off:.2g}" for name, off in known.items()]
    holds = all(off <= BACKWARD_TOLERANCE[name] for name, off in known.items())
    return Answer(
        HOLDS if holds else FAILS,
        "dE/dx_l differs from dE/dx_L (1 + d/dx_l sum of F) by at most, relative to its terms, in "
        f"{', in '.join(parts)} ({_chains(moment)})",
    )


def _chains(moment: Moment) -> str:
    found = moment.identity
    plural = "s" if found.chains > 1 else ""
    return f"{found.chains} chain{plural} of up to {found.longest} units, {found.images} images"


# --- runs of two orderings ------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """How one finished run went: a value per evaluation, as in `metrics.csv`.

    Attributes:
        iterations: of the evaluations; the last is the run's end.
        losses: mean training loss since the evaluation before.
        train_errors, test_errors: in percent.
    """

    seed: int
    iterations: Sequence[int]
    losses: Sequence[float]
    train_errors: Sequence[float]
    test_errors: Sequence[float]


def slow_start(
    name: str, ours: Sequence[Course], reference: str, theirs: Sequence[Course]
) -> Answer:
    """The training loss falls more slowly at the start than the reference's."""
    if missing := _missing(name, ours, reference, theirs):
        return missing
    firsts = {course.iterations[0] for course in (*ours, *theirs)}
    last = min(course.iterations[-1] for course in (*ours, *theirs))
    first = max(firsts)
    if len(firsts) > 1 or 2 * first > last:
        return Answer(
            UNKNOWN,
            "the runs have no common first evaluation in their first half; train with a smaller "
            "eval_every",
        )
    compared = compare([c.losses[0] for c in theirs], [c.losses[0] for c in ours])
    what = f"mean training loss up to iteration {first:,}, {name} less {reference}: "
    evidence = what + _numbers(compared, "nats")
    if compared.interval is None:
        return Answer(UNKNOWN, evidence)
    low, high = compared.interval
    if low > 0 and compared.difference >= SLOWER:
        return Answer(HOLDS, evidence)
    return Answer(FAILS if high < SLOWER else UNKNOWN, evidence)


def regularisation(
    name: str, ours: Sequence[Course], reference: str, theirs: Sequence[Course]
) -> Answer:
    """It ends with a higher training loss and a lower test error than the reference."""
    if missing := _missing(name, ours, reference, theirs):
        return missing
    losses = compare([c.losses[-1] for c in theirs], [c.losses[-1] for c in ours])
    errors = compare([c.test_errors[-1] for c in theirs], [c.test_errors[-1] for c in ours])
    worst = max(course.train_errors[-1] for course in (*ours, *theirs))
    evidence = (
        f"{name} less {reference}: last training loss {_numbers(losses, 'nats')}; test error "
        f"{_numbers(errors, 'points')}; training error up to {worst:.1f} %"
    )
    if worst > CONVERGED:
        return Answer(UNKNOWN, f"not converged: {evidence}")
    if losses.interval is None or errors.interval is None:
        return Answer(UNKNOWN, evidence)
    if losses.interval[0] > 0 and errors.interval[1] < 0:
        return Answer(HOLDS, evidence)
    contradicted = losses.interval[1] < 0 or errors.interval[0] > 0
    return Answer(FAILS if contradicted else UNKNOWN, evidence)


def _missing(
    name: str, ours: Sequence[Course], reference: str, theirs: Sequence[Course]
) -> Answer | None:
    """Why two orderings cannot be compared at all, or None."""
    if name == reference:
        return Answer(UNKNOWN, f"{name} is what the others are compared with")
    for variant, courses in ((name, ours), (reference, theirs)):
        if not courses:
            return Answer(UNKNOWN, f"no finished run of {variant} at this depth was named")
    return None


def _numbers(compared: Comparison, unit: str) -> str:
    seeds = f"{compared.n[1]} and {compared.n[0]} seeds"
    if compared.interval is None:
        return f"{compared.difference:+.3f} {unit} ({compared.reason}; {seeds})"
    low, high = compared.interval
    span = f"95 % interval {low:+.3f} to {high:+.3f}"
    return f"{compared.difference:+.3f} {unit} ({span}; {seeds})"


# --- by name --------------------------------------------------------------------------------------

MONOTONE = Claim(
    "monotone-signal",
    "The branches only add, so the signal only grows along the depth.",
    "no branch puts out a negative value, and the shortcut signal's mean rises at every step "
    "inside a stage",
    "section 4.1, ReLU before addition",
    lambda ordering: not ordering.after_add and ordering.trail[-1:] == ("relu",),
)
SCALED = Claim(
    "scaled-shortcut",
    "BN after the addition rescales the signal that goes straight through.",
    f"the product of the gains over all units is at least {HALF_OR_DOUBLE:g} or at most "
    f"{1 / HALF_OR_DOUBLE:g}",
    "section 4.1, BN after addition; section 3.1 on scaling",
    lambda ordering: "bn" in ordering.after_add,
)
FORWARD = Claim(
    "identity-forward",
    "A signal is any earlier one and the sum of the branches between (equation 4).",
    "the difference is within the bound of rounding for every value, in fp32 and in fp64",
    "section 2, equation 4",
    lambda ordering: not ordering.after_add,
)
BACKWARD = Claim(
    "identity-backward",
    "The gradient at the end reaches every unit directly (equation 5).",
    "the relative difference is at most "
    + " and ".join(f"{off:g} in {name}" for name, off in BACKWARD_TOLERANCE.items()),
    "section 2, equation 5",
    lambda ordering: not ordering.after_add,
)
SLOW_START = Claim(
    "slow-start",
    "The training loss falls slowly at the start: against original where BN stands after the "
    "addition, else against full-preact.",
    f"the mean training loss up to the first evaluation is higher by at least {SLOWER:g} nats, and "
    f"its 95 % Welch interval above 0; it does not hold where the interval is below {SLOWER:g}",
    "section 4.1, figure 6 left; section 4.2, ease of optimization",
    lambda ordering: bool(ordering.after_add),
)
REGULARISATION = Claim(
    "regularisation",
    "It ends with a higher training loss and a lower test error than original.",
    f"the 95 % Welch intervals exclude 0 on these sides, and no run's training error is above "
    f"{CONVERGED:g} % at the end",
    "section 4.2, reducing overfitting",
    lambda ordering: "bn" in ordering.lead,
)

OF_A_MOMENT: Mapping[Claim, Callable[[Moment], Answer]] = {
    MONOTONE: monotone_signal,
    SCALED: scaled_shortcut,
    FORWARD: identity_forward,
    BACKWARD: identity_backward,
}
OF_RUNS: Mapping[Claim, Callable[[str, Sequence[Course], str, Sequence[Course]], Answer]] = {
    SLOW_START: slow_start,
    REGULARISATION: regularisation,
}

CLAIMS = (*OF_A_MOMENT, *OF_RUNS)


def reference(claim: Claim, ordering: Ordering) -> str:
    """The ordering with which runs are compared."""
    if claim is REGULARISATION or "bn" in ordering.after_add:
        return "original"
    return "full-preact"


def in_words() -> list[tuple[str, str]]:
    """Every claim by name, and in a sentence what it says and when it holds."""
    return [(claim.name, f"{claim.says} Holds where {claim.threshold}.") for claim in CLAIMS]
