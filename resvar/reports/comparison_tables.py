"""The tables of comparisons: V1 against V2, every variant against original, and predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from resvar.console import p_value, pluralize, points
from resvar.reports.findings import Contrast, Group
from resvar.reports.power import fewest_seeds
from resvar.reports.statistics import ERROR_RATE, Comparison
from resvar.reports.tables import panel, row_name
from resvar.reports.verdicts import V2, Side, V1V2Comparison
from resvar.table import Filled, Table, filled, left, right


def v1_v2_table(group: Group) -> Table:
    """Two answers for each depth: the direction, and the agreement with the published one."""

    def mean(errors: Sequence[float]) -> float | None:
        return math.fsum(errors) / len(errors) if errors and math.inf not in errors else None

    def published(pair: V1V2Comparison) -> str | None:
        theirs = pair.published_difference
        return None if theirs is None else points(theirs)

    comparable = any(pair.agreement for pair in group.v1_v2)
    columns = (
        right("depth", lambda d: d.depth),
        right("n\n(V1, V2)", lambda d: "{}, {}".format(*map(_count, d.sides)), drop=2),
        right("V1\nmean", lambda d: mean(d.sides[0].errors), ".2f", drop=3),
        right("V2\nmean", lambda d: mean(d.sides[1].errors), ".2f", drop=3),
        right("V2 − V1\n(means)", lambda d: _mean_difference(d.comparison)),
        right(f"{_level(group)}\ninterval", lambda d: _interval_text(d.comparison)),
        right("p\n(corrected)", lambda d: None if d.interim else _p(d.p_family), drop=1),
        *([right("paper:\nV2 − V1\n(medians)", published)] if group.like_paper else []),
        left("direction", lambda d: "interim" if d.interim else d.direction, wrap=10),
        *([left("against\nthe paper", lambda d: d.agreement)] if comparable else []),
    )
    notes = [f"ResNet-{pair.depth}: {pair.sentence}" for pair in group.v1_v2]
    notes += [*_pooled(group), *_power(group), *_rules(group)]
    if not group.like_paper:
        notes.append(f"These verdicts apply to protocol {group.label} only.")
    return filled("V1 (original) against V2 (full-preact)", columns, group.v1_v2, notes, "verdict")


def _count(side: Side) -> str:
    """`5`, or `3 + 2 diverged`."""
    done = len(side.errors) - side.diverged
    return f"{done} + {side.diverged} diverged" if side.diverged else str(done)


def _level(group: Group) -> str:
    """`97.5 %`: the error rate of 5 % is divided among the depths."""
    return f"{100 * (1 - ERROR_RATE / group.v1_v2[0].depths):.4g} %"


def _pooled(group: Group) -> Iterator[str]:
    """All depths together."""
    if (found := group.pooled) is None:
        return
    depths = " and ".join(f"ResNet-{depth}" for depth in found.depths)
    so_far = " so far" if any(pair.interim for pair in group.v1_v2) else ""
    if found.difference is not None and found.interval is not None:
        low, high = found.interval
        yield (
            f"{depths} together{so_far}: V2 − V1 is {points(found.difference)} points (95 % "
            f"interval {points(low)} to {points(high)})."
        )
    interval = "no interval, since all pairs of runs agree"
    if found.improvement_interval is not None:
        low, high = found.improvement_interval
        interval = (
            f"95 % interval {low:.2f} to {high:.2f}, bootstrap stratified by depth and variant; "
            "with few runs it is too narrow"
        )
    yield (
        f"Probability that a run of V2 has a lower error than a run of V1{so_far}: "
        f"{found.improvement:.2f} ({interval})."
    )


def _power(group: Group) -> Iterator[str]:
    """What the declared seeds can show, given the spread between runs."""
    for pair in group.v1_v2:
        found = pair.power if group.like_paper else None
        if found is None:
            continue
        theirs, seeds = points(pair.published_difference or 0.0), len(pair.plan.seeds)
        under = "underpowered: " if found.is_low else ""
        low, high = found.sds
        yield (
            f"ResNet-{pair.depth}, {under}{pluralize(seeds, 'seed')} of each detect a difference "
            f"of {theirs} with a probability of {found.chance}; 80 % takes {found.needed} seeds "
            f"(sd {pair.sd:.2f}, 90 % range {low:.2f} to {high:.2f})."
        )


def _rules(group: Group) -> Iterator[str]:
    """How direction, agreement and equivalence are decided."""
    first = group.v1_v2[0]
    if all(pair.comparison is None for pair in group.v1_v2):
        return
    depths = "" if first.depths == 1 else f" over all {first.depths} depths"
    yield (
        "Direction: Welch's t-test and a studentised permutation test both reject, at an error "
        f"rate of 5 %{depths}. Runs of one seed share the order of the data, but are not paired: "
        "pairs would halve the degrees of freedom, and if their errors are alike, the tests "
        "without pairs only err on the safe side."
    )
    if any(pair.agreement for pair in group.v1_v2):
        yield (
            "Against the paper: whether the difference differs from the published one, which has "
            "an uncertainty too (medians of 5; sd as published, or the largest published one)."
        )
    margins = sorted({pair.plan.margin for pair in group.v1_v2})
    yield f"Equivalent: the whole interval is within ±{' or ±'.join(f'{m:g}' for m in margins)}."
    floors = {pair.smallest_p for pair in group.v1_v2 if pair.smallest_p is not None}
    if floors:
        yield _floor_text(max(floors), first.depths)


def _floor_text(floor: float, comparisons: int) -> str:
    """The smallest p that a family of comparisons can reach, and how many seeds can decide."""
    text = f"The smallest corrected p that this design can give is {_p(floor) or ''}"
    if floor <= ERROR_RATE:
        return f"{text}."
    return (
        f"{text}, so it cannot decide, however large a difference; "
        f"{fewest_seeds(comparisons)} seeds of each can."
    )


def contrast_table(group: Group) -> Table:
    columns = (
        right("depth", lambda c: c.depth),
        left("variant", lambda c: row_name(c.variant)),
        right("n (original,\nvariant)", lambda c: "{}, {}".format(*c.comparison.n), drop=1),
        right("difference\nof means", lambda c: _mean_difference(c.comparison)),
        right("interval", lambda c: _interval_text(c.comparison)),
        right("level", lambda c: f"{100 * c.comparison.level:.4g} %", drop=3),
        right("p", lambda c: _p(c.comparison.p), drop=2),
        right("p\n(corrected)", lambda c: _p(c.p_holm)),
    )
    note = "Percentage points, variant − original: below 0, the variant is better."
    notes = [note, *_interim_warning(group), *_limits(group.contrasts)]
    return filled("Compared with original (V1)", columns, group.contrasts, notes)


def _interim_warning(group: Group) -> Iterator[str]:
    """A warning where a comparison has fewer runs than were declared for V1 and V2 at its depth."""
    declared = {pair.depth: len(pair.plan.seeds) for pair in group.v1_v2}
    if any(min(c.comparison.n) < declared.get(c.depth, 0) for c in group.contrasts):
        yield "Interim: declared seeds are missing, so that these p-values decide nothing yet."


def _limits(contrasts: Sequence[Contrast]) -> Iterator[str]:
    """What the comparisons cannot show, and how the p-values were made."""
    silent: dict[str, list[str]] = {}
    for contrast in contrasts:
        if contrast.comparison.reason:
            name = f"{contrast.variant} at ResNet-{contrast.depth}"
            silent.setdefault(contrast.comparison.reason, []).append(name)
    for why, names in silent.items():
        yield f"{why[:1].upper()}{why[1:]} ({', '.join(names)})."
    tested = [c for c in contrasts if c.comparison.p is not None]
    if not tested:
        return
    random = [c.comparison.resamples for c in tested if c.comparison.resamples is not None]
    how = f" over {random[0]:,} random partitions where n is large" if random else ""
    own = [contrast for contrast in tested if contrast.variant != V2]
    yield (
        "p: the larger one of Welch's t-test and a studentised permutation test, two-sided"
        f"{how}. An interval holds for its own row alone; the corrected p decides."
    )
    families = {(contrast.depth, contrast.family) for contrast in own}
    for depth, size in sorted(families):
        here = [c.comparison.smallest_p or 0 for c in own if c.depth == depth]
        floor = min(1.0, size * max(here))
        text = _floor_text(floor, size)
        corrected = f"corrected by Holm for {size} comparisons" if size > 1 else "not corrected"
        yield f"ResNet-{depth}: p {corrected}. {text}"
    if len(own) < len(tested):
        yield f"{row_name(V2)}: p corrected for its depths, as in the table of V1 against V2."


def difference_tables(group: Group) -> Iterator[Table]:
    """On how many test images the runs of two variants differ, a table for each depth."""

    def column(variant: str) -> Filled:
        return right(
            variant,
            lambda a: {a.variant: a.within, **a.across}[variant],
            ".2f",
            short=panel(variant) or "",
        )

    note = (
        "Percent of test images that two runs put into different classes, mean over pairs of "
        "runs; on the diagonal, as the yardstick, between seeds of one variant."
    )
    for depth in group.depths:
        here = [found for found in group.agreements if found.depth == depth]
        if any(found.across or found.within is not None for found in here):
            columns = (
                left("variant", lambda a: row_name(a.variant)),
                left("figure", lambda a: panel(a.variant)),
                *(column(found.variant) for found in here),
            )
            yield filled(f"Where predictions differ (%), ResNet-{depth}", columns, here, [note])


def agreement_table(group: Group) -> Table:
    """Single runs against those of original, image by image: informative even at one seed."""
    predicted = any(found.predicted_sd is not None for found in group.agreements)
    columns = (
        right("depth", lambda a: a.depth),
        left("variant", lambda a: row_name(a.variant)),
        right("runs", lambda a: a.n, drop=2),
        right("seed\ncompared", lambda a: a.pairing and a.pairing.seed, "d", drop=1),
        right("only original\nright", lambda a: a.pairing and a.pairing.first_only, ",d"),
        right("only variant\nright", lambda a: a.pairing and a.pairing.second_only, ",d"),
        right("p\n(McNemar)", lambda a: a.pairing and _p(a.pairing.p)),
        *(_sd_columns() if predicted else ()),
    )
    notes = []
    if any(found.pairing for found in group.agreements):
        notes.append(
            "McNemar's exact test is about the two single runs of the seed compared, not about "
            "the variants: other seeds may differ."
        )
    if predicted:
        notes.append(
            "sd, between seeds, in points: of the test set as measured; predicted from independent "
            "errors on its images (arXiv:2304.01910, section 3.2); and of the distribution that "
            "the images come from (its equation 3): what is left of the first without the second, "
            "0 where nothing is."
        )
    return filled("Agreement of predictions", columns, group.agreements, notes)


def _sd_columns() -> Iterator[Filled]:
    yield right("sd of\ntest set", lambda a: a.test_sd, ".2f", drop=3)
    yield right("sd\npredicted", lambda a: a.predicted_sd, ".2f", drop=2)
    yield right("sd of\ndistribution", lambda a: a.distribution_sd, ".2f", drop=2)


# --- the words in a cell ------


def _interval_text(comparison: Comparison | None) -> str | None:
    if comparison is None or comparison.interval is None:
        return None
    return " to ".join(map(points, comparison.interval))


def _mean_difference(comparison: Comparison | None) -> str | None:
    if comparison is None or comparison.difference is None:
        return None
    return points(comparison.difference)


def _p(p: float | None) -> str | None:
    return None if p is None else p_value(p).removeprefix("= ")
