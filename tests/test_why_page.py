"""Every measured figure in the text of docs/why.md is that of the records in results/.

`fragments` writes the parts of sentences that contain one, from the records; each must be on the
page. A number outside of them is a name, a count, or the paper's: one of `NOT_MEASURED`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from statistics import mean, median
from typing import Any

import why_tables

from resvar.probes.measurements import Moment, Probe
from resvar.rundir import RESULT, read_json, read_metrics
from tests.support.commands import ROOT

RESULTS = ROOT / "results"
A_TO_E = ("original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact")
A, B, C, D, E = A_TO_E

NUMBERS = r"(?<![\w.⁻-])\d[\d,.]*(?=\W)"

NOT_MEASURED = (
    "0", "1", "2", "3", "4", "5", "10", "20", "54", "56", "95", "110", "164", "512", "1,000",
    "1001", "4.2", "2015", "2016",
)  # fmt: skip
"""Depths, units, years, equations, sections, images, seeds and epochs."""

THE_PAPER_S = ("6.61", "8.17", "7.84", "6.71", "6.37", "6", "7.61", "4.92", "1,727,962", "2.3")
"""Published errors, parameters, and the loss of guessing."""

WITHOUT_RECORD = ("11.36",)
"""The page says so."""

SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def power(value: float, digits: int = 1) -> str:
    """`3 × 10⁻⁴⁷`"""
    front, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{front} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def few(value: float, digits: int = 2) -> str:
    """Some significant digits, without an exponent."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def passed(moment: Moment) -> list[float]:
    return [100 * unit.passed for unit in moment.units]


def gradient(moment: Moment) -> float:
    """At the first unit, relative to the end."""
    return moment.units[0].gradient_ratio or math.nan


def least_gradient(moment: Moment) -> float:
    return min(unit.gradient_ratio or math.nan for unit in moment.units)


def product(moment: Moment) -> float:
    return math.prod(unit.gain for unit in moment.units)


def ends(values: list[float], form: str) -> str:
    """`0.75 to 1.09`"""
    return f"{min(values):{form}} to {max(values):{form}}"


def errors_of(protocol: str, variant: str, depth: int) -> list[float]:
    runs = (RESULTS / protocol / f"{variant}-{depth}").glob("seed-*/result.json")
    return [read_json(run)["test_error"] for run in runs]


def error(protocol: str, variant: str, depth: int) -> float:
    """The median test error."""
    return median(errors_of(protocol, variant, depth))


def behind(protocol: str, variant: str, depth: int, other: str = E) -> str:
    ours, theirs = (round(error(protocol, name, depth), 2) for name in (variant, other))
    return f"{ours - theirs:.2f}"


def first_losses(protocol: str, variant: str, depth: int) -> float:
    """The mean training loss up to the first evaluation; mean over the seeds."""
    runs = (RESULTS / protocol / f"{variant}-{depth}").glob("seed-*")
    return mean(float(read_metrics(run)["train_loss"].iloc[0]) for run in runs)


def slower(protocol: str, depth: int, variant: str = A, reference: str = E) -> str:
    """`0.182`: by how many nats a variant starts slower."""
    found = first_losses(protocol, variant, depth) - first_losses(protocol, reference, depth)
    return f"{found:.3f}".replace("-", "−")


@cache
def fresh(depth: int, seed: int = 0) -> dict[str, Moment]:
    name = f"init-{depth}-seed-{seed}" if seed else f"init-{depth}"
    record = json.loads((RESULTS / "probes" / f"{name}.json").read_text(encoding="utf-8"))
    probes = [Probe.from_json(json.dumps(probe)) for probe in record["probes"]]
    return {probe.network.variant: probe.moments[0] for probe in probes}


@cache
def trained(depth: int) -> dict[str, Probe]:
    return dict(why_tables.trained_probes("paper" if depth == 20 else "short", depth))


def begun(variant: str, depth: int) -> Moment:
    return trained(depth)[variant].moments[0]


def ended(variant: str, depth: int) -> Moment:
    return trained(depth)[variant].moments[-1]


def error_text(variant: str, depth: int, protocol: str = "short") -> str:
    return f"{error(protocol, variant, depth):.2f}"


def result(protocol: str, variant: str, depth: int) -> dict[str, Any]:
    """Of seed 0."""
    return read_json(RESULTS / protocol / f"{variant}-{depth}" / "seed-0" / RESULT)


def cheap_units(variant: str) -> int:
    """Units of a trained ResNet-110 that cost less than one point."""
    return sum(rise < 1 for rise in ended(variant, 110).deletion.rises)


def begin() -> Iterator[str]:
    seeds = [fresh(110, seed) for seed in (0, 1, 2)]
    growth = max(abs(gradient(s[n]) / gradient(seeds[0][n]) - 1) for s in seeds[1:] for n in A_TO_E)
    assert 0.15 < growth < 0.25
    yield "of the gradient by up to a fifth"
    a, b, c = (f"{product(seed[B]):.5f}" for seed in seeds)
    yield f"from {a} to {b} and {c} (I)"


def do_the_other_four_work() -> Iterator[str]:
    errors = {name: error_text(name, 110) for name in A_TO_E}
    letters = zip("abcde", A_TO_E, strict=True)
    yield f"{', '.join(f'({letter}) {errors[name]}' for letter, name in letters)} % (R)"
    assert sorted(errors, key=lambda name: float(errors[name])) == [E, D, A, C, B]
    yield f"change places, by {behind('short', A, 110, D)} points"
    deep = {name: error_text(name, 164) for name in A_TO_E}
    cells = [f"({letter}) {deep[name]}" for letter, name in zip("abcde", A_TO_E, strict=True)]
    yield f"the errors are {', '.join(cells)} % (R)"
    ranks = sorted(deep, key=lambda name: float(deep[name]))
    assert (ranks[0], deep[C], ranks[3:]) == (E, deep[D], [A, B])
    yield f"and {behind('short', A, 164, C)} points ahead of (a), with n = 2 of"
    low, high = sorted(errors_of("short", A, 164))
    yield f"the two seeds of (a) differ by {high - low:.2f}"
    yield f"{error_text(B, 164, 'quick')} against {error_text(A, 164, 'quick')} %"


def bn_after_add() -> Iterator[str]:
    yield f"its gain is {ends([unit.gain for unit in begun(B, 110).units], '.2f')} in a fresh"
    a, b, c = (f"{product(fresh(depth)[B]):.2g}" for depth in (20, 56, 110))
    yield f"is {a}0 in a fresh network with 20 layers, {b} with 56 and {c} with 110 (I)"
    last = ended(B, 110)
    yield f"by {ends([unit.gain for unit in last.units], '.2f')}, all 54 together"
    yield f"together by {power(product(last))} (A)"
    ours, theirs = ([unit.ratio for unit in ended(name, 110).units] for name in (B, A))
    yield f"is {ends(ours, '.0f')} times as large as the shortcut signal"
    yield f"in (a) {ends(theirs, '.1f')} times (A)"
    assert min(last.deletion.errors) > 80  # guessing, without any one unit
    assert round(last.deletion.effective_units) == 54
    yield f"{error_text(B, 110)} % error after ten epochs (R)"
    yield f"is {slower('short', 110, B, A)} nats above that of `original`"


def relu_before_add() -> Iterator[str]:
    first, last = begun(C, 110), ended(C, 110)
    moments = (first, last, *(fresh(depth)[C] for depth in (20, 56, 110)))
    negative = max(unit.branch.negative for moment in moments for unit in moment.units)
    yield f"never subtract: {100 * negative:.1f} % of its values"
    low, high = first.units[0].shortcut.mean, first.units[-1].shortcut.mean
    yield f"climbs from {low:.1f} to {high:.0f} (A)"
    yield f"its loss is {first.loss:.1f} where guessing"
    epochs = read_metrics(RESULTS / "short" / f"{C}-110" / "seed-0")
    loss, wrong = epochs["train_loss"], epochs["train_error"]
    yield f"training loss was {loss.iloc[1]:.2f}, with an error of {wrong.iloc[1]:.0f} %"
    yield f"ended at {error_text(C, 110)} % (R)"
    plain = read_metrics(ROOT / "docs" / "runs" / f"short-plain-{C}-110" / "seed-0")
    yield f"loss of {plain['train_loss'].iloc[0]:.2f} in it, ours {loss.iloc[0]:.2f}"
    deep = read_metrics(RESULTS / "short" / f"{C}-164" / "seed-0")["train_loss"]
    assert deep.is_monotonic_decreasing
    yield f"from {deep.iloc[0]:.2f} in the first, and (c) ends at {error_text(C, 164)} % (R)"
    yield f"in the last unit is {last.units[-1].shortcut.mean:.1f} instead of {high:.0f}"
    yield f"is {100 * median(unit.ratio for unit in last.units):.0f} % of the shortcut signal (A)"
    dead = sum(unit.branch.norm == 0 for unit in last.units)
    yield f"In {('no', 'one', 'two', 'three')[dead]} units it is exactly zero"
    steps = [(x, y) for x, y in pairwise(last.units) if x.stage == y.stage]
    rises = sum(y.shortcut.mean > x.shortcut.mean for x, y in steps)
    yield f"rises in only {rises} of {len(steps)} steps"
    yield f"than one point in {cheap_units(C)} of 54 cases"


def relu_only_preact() -> Iterator[str]:
    yield f"to a deviation of {begun(D, 110).units[-1].shortcut.std:.1f} in a fresh ResNet-110"
    yield f"(d) has {error_text(D, 110)} % (n = 1), between"
    d, e = (ended(name, 110).units[-1].shortcut for name in (D, E))
    yield f"its mean is −{-d.mean:.1f} and {100 * d.negative:.0f} % of its values"
    yield f"these are −{-e.mean:.0f} and {100 * e.negative:.0f} %"


def what_follows_the_addition() -> Iterator[str]:
    found = [(name, moment) for depth in (20, 56, 110) for name, moment in fresh(depth).items()]
    for depth in (20, 110, 164):
        found += [(name, m) for name, probe in trained(depth).items() for m in probe.moments]
    clean = [moment.identity.backward["fp64"] for name, moment in found if name in (C, D, E)]
    other = [100 * moment.identity.backward["fp64"] for name, moment in found if name in (A, B)]
    yield f"is at most {power(max(clean), 2)} in (c), (d), (e)"
    yield f"and {ends(other, '.0f')} % in (a) and (b)"


def does_the_relu_stop_truncating() -> Iterator[str]:
    for depth, protocol, letter in ((20, "paper", "C"), (110, "short", "A"), (164, "short", "B")):
        first, last = passed(begun(A, depth)), passed(ended(A, depth))
        straight = 100 * ended(A, depth).units[-1].straight
        iterations = ended(A, depth).iteration
        yield (
            f"| ResNet-{depth}, `{protocol}`, {iterations:,} iterations | {mean(first):.1f} "
            f"| {mean(last):.1f} | {min(last):.1f} | {straight:.1f} | {letter} |"
        )
    a, b, c = behind("paper", A, 20), behind("short", A, 110), behind("short", A, 164)
    yield f"by {a} points with 20 layers (`paper`, n = 1), {b} with 110 and {c} with 164"


def does_the_gradient_vanish() -> Iterator[str]:
    a, e, b = (few(gradient(fresh(110)[name]), n) for name, n in ((A, 2), (E, 3), (B, 2)))
    yield f"{a}-fold in (a), {e}-fold in (e), and {b}-fold in (b)"
    both = [(ended(A, depth), ended(B, depth), ended(E, depth)) for depth in (110, 164)]
    a, b = (f"{gradient(a):.1f}" for a, _, _ in both)
    yield f"it is {a} times that at the end in (a) with 110 layers and {b} times with 164"
    yield f"less than {min(least_gradient(a) for a, _, _ in both):.1f} times (A, B)"
    yield f"In (e) it is {' and '.join(f'{gradient(e):.0f}' for _, _, e in both)} times"
    a, b = (few(gradient(b)) for _, b, _ in both)
    c, d = (f"{least_gradient(b):.2f}" for _, b, _ in both)
    yield f"in (b) {a} and {b} times, and {c} and {d} times where it is weakest"


def why_e_wins() -> Iterator[str]:
    a, b = slower("short", 110), slower("short", 164)
    yield f"by {a} nats with 110 layers (n = 2) and by {b} with 164"
    yield f"not: {slower('short', 20)} nats with `short` (n = 2), and {slower('paper', 20)} with"
    a, e = (result("paper", name, 20)["train_loss"] for name in (A, E))
    b, f = (error_text(name, 20, "paper") for name in (A, E))
    yield f"loss of {e:.4f} and a test error of {f} %, (a) with {a:.4f} and {b} %"
    runs = (RESULTS / "short").glob("*-1[16][04]/seed-*/result.json")
    least = min(read_json(run)["train_error"] for run in runs)
    yield f"with training errors of {least:.0f} % and more"
    a, b = behind("short", D, 110), behind("short", C, 164)
    yield f"With 110 layers it is {a} points ahead of (d), the next, and with 164 layers {b} ahead"


def what_happens_with_depth() -> Iterator[str]:
    a, b, c = (gradient(fresh(depth)[B]) for depth in (20, 56, 110))
    yield f"the gradient is {a:.0f} times that at the end in (b) with 20 layers"
    yield f"{b:.0f} times with 56, {few(c)} times with 110"
    a, b, c = (f"{gradient(fresh(depth)[E]):.0f}" for depth in (20, 56, 110))
    yield f"in (e) {a}, {b} and {c} times (I)"
    a, b, c = (error_text(E, depth) for depth in (20, 110, 164))
    d, e, f = (error_text(A, depth) for depth in (20, 110, 164))
    yield f"ends at {a}, {b} and {c} % for `full-preact`, and at {d}, {e} and {f} % for `original`"


def how_many_units() -> Iterator[str]:
    a, e = (ended(name, 110).deletion for name in (A, E))
    yield f"{cheap_units(A)} of the 54 units of V1 and {cheap_units(E)} of V2 cost less"
    first, second, *_ = sorted(e.rises, reverse=True)
    assert first == e.rises[0]
    yield f"rises by {first:.1f} points, to guessing; no other costs more than {second:.1f}"
    first, second, third, *_ = sorted(a.rises, reverse=True)
    assert third == a.rises[0]
    yield f"the first costs {third:.1f}"
    yield f"cost most, {first:.1f} and {second:.1f} points"
    yield f"of {a.effective_units:.1f} equally important units in V1 and {e.effective_units:.1f} in"
    a, e = (min(ended(name, 20).deletion.rises) for name in (A, E))
    yield f"costs at least {a:.1f} points in V1 and {e:.1f} in V2"


SECTIONS = (
    begin, do_the_other_four_work, bn_after_add, relu_before_add, relu_only_preact,
    what_follows_the_addition, does_the_relu_stop_truncating, does_the_gradient_vanish, why_e_wins,
    what_happens_with_depth, how_many_units,
)  # fmt: skip
"""In the order of the page."""


def fragments() -> list[str]:
    return [fragment for section in SECTIONS for fragment in section()]


def the_text() -> str:
    """The page up to its measurements, in one line, without links, code and headings."""
    text = why_tables.PAGE.read_text(encoding="utf-8").partition("\n## The measurements")[0]
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"\s+", " ", text)


def test_the_figures_are_those_of_the_records():
    text = the_text()
    for fragment in fragments():
        assert fragment in text


def test_no_figure_is_without_a_record():
    text = the_text()
    for fragment in fragments():
        text = text.replace(fragment, "", 1)
    text = re.sub(r"`[^`]*`", "", text)
    numbers = re.findall(NUMBERS, re.sub(r"[.,](?=\s)", " ", text))
    assert set(numbers) <= {*NOT_MEASURED, *THE_PAPER_S, *WITHOUT_RECORD}
