"""The paper's claims as tests that can fail. No torch.

Each claim turns a sentence of arXiv:1603.05027 into a test of measured numbers against a threshold.
A verdict is about one network. The paper makes each claim only about some orderings:
`Claim.said_of`.

Four claims are about one network at one moment, one about a network after training. Two compare the
runs of two orderings with the same protocol, dataset and depth; they need four seeds of each, since
fewer cannot decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from resvar.console import percent, pluralize
from resvar.reports.statistics import Comparison, compare

if TYPE_CHECKING:
    from resvar.models.ordering import Ordering
    from resvar.probes.measurements import Moment, Probe
    from resvar.probes.runs import RunGroup

Decision = Literal["supported", "not supported", "inconclusive"]
SUPPORTED: Decision = "supported"
NOT_SUPPORTED: Decision = "not supported"
INCONCLUSIVE: Decision = "inconclusive"


@dataclass(frozen=True)
class ClaimVerdict:
    """The answer to one claim.

    Attributes:
        of: the network, such as `original-110`.
        group: protocol and seed of the network, or dataset and protocol of the runs.
        iteration: of the network; None for a claim about whole runs.
        evidence: the measured numbers.
        paper: whether the paper makes the claim about this ordering.
    """

    claim: str
    of: str
    group: str
    iteration: int | None
    word: Decision
    evidence: str
    paper: bool


def judge(probes: Sequence[Probe], groups: Sequence[RunGroup]) -> list[ClaimVerdict]:
    """Test every claim on every network at every moment, and on every group of runs."""
    verdicts = []
    for probe in probes:
        network = probe.network
        group = f"{network.protocol}, seed {network.seed}"
        for moment in probe.moments:
            for claim in MOMENT_CLAIMS:
                answer, said = claim.test(moment), claim.said_of(network.ordering)
                verdicts.append(
                    ClaimVerdict(claim.name, network.name, group, moment.iteration, *answer, said)
                )
            for trained in TRAINED_CLAIMS:
                if moment.iteration and trained.said_of(network.ordering):
                    answer = trained.ask(moment, probe.moments[0])
                    verdicts.append(
                        ClaimVerdict(
                            trained.name, network.name, group, moment.iteration, *answer, True
                        )
                    )
    for runs in groups:
        for runs_claim in RUNS_CLAIMS:
            answer, said = runs_claim.ask(runs, groups), runs_claim.said_of(runs.ordering)
            verdicts.append(
                ClaimVerdict(runs_claim.name, runs.name, runs.group, None, *answer, said)
            )
    return verdicts


Answer = tuple[Decision, str]
"""A decision and its evidence."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        says: the claim as a sentence about the network.
        threshold: when it is supported.
        source: its place in the paper.
        said_of: whether the paper makes it about networks with this ordering.
    """

    name: str
    says: str
    threshold: str
    source: str
    said_of: Callable[[Ordering], bool]

    @property
    def help(self) -> str:
        return f"{self.says} Supported if {self.threshold}."


@dataclass(frozen=True)
class MomentClaim(Claim):
    """A claim about one network at one moment."""

    test: Callable[[Moment], Answer]


@dataclass(frozen=True)
class TrainedClaim(Claim):
    """A claim about one network after training; tested only where the paper makes it."""

    test: Callable[[Moment, Moment], Answer]

    def ask(self, trained: Moment, earliest: Moment) -> Answer:
        """The answer for a trained network; `earliest`: the first moment that was measured."""
        if earliest.iteration:
            return INCONCLUSIVE, "the network was not measured at initialisation (--at init)"
        return self.test(trained, earliest)


@dataclass(frozen=True)
class RunsClaim(Claim):
    """A claim that compares the runs of an ordering with those of a reference ordering."""

    test: Callable[[RunGroup, RunGroup], Answer]
    reference: Callable[[Ordering], str]

    def ask(self, runs: RunGroup, groups: Sequence[RunGroup]) -> Answer:
        """The answer for `runs`, compared with its reference in `groups`."""
        name, reference = runs.ordering.name, self.reference(runs.ordering)
        if name == reference:
            return INCONCLUSIVE, f"{name} is the reference of this claim"
        others = [
            other
            for other in groups
            if (other.group, other.depth, other.ordering.name)
            == (runs.group, runs.depth, reference)
        ]
        for variant, found in ((name, [runs]), (reference, others)):
            if not found or found[0].metrics.empty:
                return INCONCLUSIVE, f"no finished run of {variant} at this depth was given"
        return self.test(runs, others[0])


# --- one network at one moment --------------------------------------------------------------------


def monotone_signal(moment: Moment) -> Answer:
    worst = max(moment.units, key=lambda unit: unit.branch.negative)
    steps = [
        after.shortcut.mean > before.shortcut.mean
        for before, after in pairwise(moment.units)
        if before.stage == after.stage and after.keeps_shape
    ]
    negative = percent(100 * worst.branch.negative, 1)
    evidence = (
        f"{negative} of the branch outputs of {worst.name} are negative, the most of all units; "
        f"the mean rises in {sum(steps)} of {len(steps)} steps within a stage"
    )
    if worst.branch.negative > 0:
        return NOT_SUPPORTED, evidence
    if not steps:
        return INCONCLUSIVE, "no stage has two units, so there are no steps to compare"
    return SUPPORTED if all(steps) else NOT_SUPPORTED, evidence


MONOTONE = MomentClaim(
    "monotone-signal",
    "The branches add nothing negative, so the signal only grows along the depth.",
    "no branch output is negative, and the mean of the shortcut signal rises at every step within "
    "a stage",
    "section 4.1, ReLU before addition",
    lambda ordering: not ordering.after_add and ordering.trail[-1:] == ("relu",),
    monotone_signal,
)

SCALING_FACTOR = 2.0
"""The product of gains must differ from 1 by this factor, up or down."""


def scaled_shortcut(moment: Moment) -> Answer:
    gains = [unit.gain for unit in moment.units]
    product = math.prod(gains)
    least = min(moment.units, key=lambda unit: unit.passed)
    evidence = (
        f"BN after the addition multiplies by {min(gains):.3g} to {max(gains):.3g} per unit, and "
        f"by {product:.3g} over all {len(gains)}"
    )
    if least.passed < 1:
        evidence += (
            f"; ReLU there passes as little as {percent(100 * least.passed, 1)} ({least.name})"
        )
    scaled = product >= SCALING_FACTOR or product <= 1 / SCALING_FACTOR
    return SUPPORTED if scaled else NOT_SUPPORTED, evidence


SCALED = MomentClaim(
    "scaled-shortcut",
    "BN after the addition rescales the shortcut signal.",
    f"the product of the gains over all units is at least {SCALING_FACTOR:g} or at most "
    f"{1 / SCALING_FACTOR:g}",
    "section 4.1, BN after addition; section 3.1 on scaling",
    lambda ordering: "bn" in ordering.after_add,
    scaled_shortcut,
)


def identity_forward(moment: Moment) -> Answer:
    found = moment.identity
    if not found.chains:
        return INCONCLUSIVE, "no unit has an identity shortcut"
    parts = [
        f"{found.forward_relative[name]:.2g} of the signal ({off:.3g} times the rounding bound) in "
        f"{name}"
        for name, off in found.forward.items()
    ]
    holds = all(off <= 1 for off in found.forward.values())
    evidence = f"x_L differs from x_l + sum of F by at most {', '.join(parts)}"
    return SUPPORTED if holds else NOT_SUPPORTED, f"{evidence} ({_extent(moment)})"


FORWARD = MomentClaim(
    "identity-forward",
    "A signal is any earlier signal plus the sum of the branches between them (equation 4).",
    "the difference is within the rounding bound for every value, in fp32 and in fp64",
    "section 2, equation 4",
    lambda ordering: not ordering.after_add,
    identity_forward,
)

BACKWARD_TOLERANCE = {"fp32": 1e-4, "fp64": 1e-12}
"""Largest relative differences that count as rounding: thousands of eps."""


def identity_backward(moment: Moment) -> Answer:
    found = moment.identity
    known = {name: off for name, off in found.backward.items() if off is not None}
    if not found.chains or len(known) < len(found.backward):
        return INCONCLUSIVE, "no gradient reaches a unit with an identity shortcut"
    parts = [f"{off:.2g} in {name}" for name, off in known.items()]
    holds = all(off <= BACKWARD_TOLERANCE[name] for name, off in known.items())
    return SUPPORTED if holds else NOT_SUPPORTED, (
        "dE/dx_l differs from dE/dx_L (1 + d/dx_l sum of F), relative to its terms, by at most "
        f"{', '.join(parts)} ({_extent(moment)})"
    )


BACKWARD = MomentClaim(
    "identity-backward",
    "The gradient at the end reaches every unit directly (equation 5).",
    "the relative difference is at most "
    + " and ".join(f"{off:g} in {name}" for name, off in BACKWARD_TOLERANCE.items()),
    "section 2, equation 5",
    lambda ordering: not ordering.after_add,
    identity_backward,
)


def _extent(moment: Moment) -> str:
    found = moment.identity
    return (
        f"{pluralize(found.chains, 'chain')} of up to {found.longest} units, {found.images} images"
    )


# --- one network after training -------------------------------------------------------------------


def rare_truncation(trained: Moment, initial: Moment) -> Answer:
    before, after = ([unit.passed for unit in moment.units] for moment in (initial, trained))
    means = [100 * sum(shares) / len(shares) for shares in (before, after)]
    least = min(trained.units, key=lambda unit: unit.passed)
    evidence = (
        f"ReLU after the addition passes {percent(means[1], 1)} of the values (mean over units; "
        f"at initialisation {percent(means[0], 1)}), and at least {percent(100 * least.passed, 1)} "
        f"({least.name})"
    )
    supported = min(after) > 0.5 and means[1] > means[0]
    return SUPPORTED if supported else NOT_SUPPORTED, evidence


TRUNCATION = TrainedClaim(
    "rare-truncation",
    "After some training, the sum is more frequently above zero, so ReLU after the addition does "
    "not truncate it.",
    "this ReLU passes more than half of the values in every unit and, in the mean over the units, "
    "more than at initialisation",
    "section 4.2, ease of optimization",
    lambda ordering: ordering.after_add == ("relu",),
    rare_truncation,
)


# --- runs of two orderings ------------------------------------------------------------------------

SLOWER_NATS = 0.05
"""The smallest relevant difference in training loss."""


def slow_start(ours: RunGroup, theirs: RunGroup) -> Answer:
    firsts = {*ours.first["iteration"], *theirs.first["iteration"]}
    first, last = max(firsts), min(*ours.last["iteration"], *theirs.last["iteration"])
    if len(firsts) > 1 or 2 * first > last:
        return INCONCLUSIVE, (
            "the runs have no common first evaluation in their first half; train with a smaller "
            "eval_every"
        )
    compared = compare(list(theirs.first["train_loss"]), list(ours.first["train_loss"]))
    evidence = (
        f"mean training loss up to iteration {first:,}, {_difference_name(ours, theirs)}: "
        f"{_with_interval(compared, 'nats')}"
    )
    if compared.interval is None or not compared.can_decide:
        return INCONCLUSIVE, evidence
    low, high = compared.interval
    if low > 0 and (compared.difference or 0) >= SLOWER_NATS:
        return SUPPORTED, evidence
    return NOT_SUPPORTED if high < SLOWER_NATS else INCONCLUSIVE, evidence


SLOW_START = RunsClaim(
    "slow-start",
    "The training loss falls slowly at first, compared with original if BN follows the addition, "
    "otherwise with full-preact.",
    "the mean training loss up to the first evaluation is higher by at least "
    f"{SLOWER_NATS:g} nats, and its 95 % interval is above 0; not supported if the interval "
    f"is below {SLOWER_NATS:g}",
    "section 4.1, figure 6 left; section 4.2, ease of optimization",
    lambda ordering: bool(ordering.after_add),
    slow_start,
    lambda ordering: "original" if "bn" in ordering.after_add else "full-preact",
)

CONVERGED_BELOW = 5.0
"""Training error in percent; above it, a network has not converged."""


def regularisation(ours: RunGroup, theirs: RunGroup) -> Answer:
    ends = ours.last, theirs.last
    losses, errors = (
        compare(list(ends[1][name]), list(ends[0][name])) for name in ("train_loss", "test_error")
    )
    worst = max(*ends[0]["train_error"], *ends[1]["train_error"])
    evidence = (
        f"{_difference_name(ours, theirs)}: last training loss {_with_interval(losses, 'nats')}; "
        f"test error {_with_interval(errors, 'points')}; training error up to {percent(worst, 1)}"
    )
    if worst > CONVERGED_BELOW:
        return INCONCLUSIVE, f"not converged: {evidence}"
    if losses.interval is None or errors.interval is None or not losses.can_decide:
        return INCONCLUSIVE, evidence
    if losses.interval[0] > 0 and errors.interval[1] < 0:
        return SUPPORTED, evidence
    contradicted = losses.interval[1] < 0 or errors.interval[0] > 0
    return NOT_SUPPORTED if contradicted else INCONCLUSIVE, evidence


REGULARISATION = RunsClaim(
    "regularisation",
    "It ends with a higher training loss and a lower test error than original.",
    "the 95 % intervals exclude 0 on these sides, and no run ends with a training error "
    f"above {CONVERGED_BELOW:g} %",
    "section 4.2, reducing overfitting",
    lambda ordering: "bn" in ordering.lead,
    regularisation,
    lambda _: "original",
)


def _difference_name(ours: RunGroup, theirs: RunGroup) -> str:
    return f"{ours.ordering.name} − {theirs.ordering.name}"


def _with_interval(compared: Comparison, unit: str) -> str:
    span = compared.reason
    if compared.interval is not None:
        span = "95 % interval {:+.3f} to {:+.3f}".format(*compared.interval)
    seeds = f"{compared.n[1]} and {compared.n[0]} seeds"
    return f"{compared.difference:+.3f} {unit} ({span}; {seeds})"


MOMENT_CLAIMS = (MONOTONE, SCALED, FORWARD, BACKWARD)
TRAINED_CLAIMS = (TRUNCATION,)
RUNS_CLAIMS = (SLOW_START, REGULARISATION)
CLAIMS: tuple[Claim, ...] = (*MOMENT_CLAIMS, *TRAINED_CLAIMS, *RUNS_CLAIMS)
