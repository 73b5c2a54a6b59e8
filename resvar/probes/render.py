"""What a probe found on the terminal, as Markdown, and as JSON. No torch."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, pairwise

from rich.console import Console

from resvar.probes.claims import CLAIMS, HOLDS, in_words
from resvar.probes.findings import FORMAT, Moment, Probe
from resvar.probes.outcome import ALL, Outcome, Series, Values, when
from resvar.probes.verdicts import Verdict
from resvar.reports.layout import NOTHING, Column, Table, TableCell
from resvar.reports.render import markdown_table, print_table

BARS = "▁▂▃▄▅▆▇█"
WIDEST = 60
"""Characters of a sparkline; deeper networks share them, several units to each."""


def render(outcome: Outcome, format: str) -> str:
    """The outcome as `table` (plain text), `markdown` or `json`."""
    if format == "json":
        return as_json(outcome)
    if format == "markdown":
        return _markdown(outcome)
    text = io.StringIO()
    print_outcome(outcome, Console(file=text, width=160, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip() + "\n"


def print_outcome(outcome: Outcome, console: Console) -> None:
    for table in tables(outcome):
        print_table(table, console)
        console.print()


def _markdown(outcome: Outcome) -> str:
    lines = ["# What the signal does along the depth: a resvar probe", ""]
    for table in tables(outcome):
        lines += [f"## {table.title}", "", *markdown_table(table)]
    return "\n".join(lines).rstrip() + "\n"


def as_json(outcome: Outcome) -> str:
    value = {
        "format": FORMAT,
        "probes": [probe.model_dump() for probe in outcome.probes],
        "claims": [
            {
                "name": claim.name,
                "says": claim.says,
                "threshold": claim.threshold,
                "source": claim.source,
                "verdicts": [asdict(v) for v in outcome.verdicts if v.claim == claim.name],
            }
            for claim in CLAIMS
        ],
    }
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


# --- as neutral tables ----------------------------------------------------------------------------


def tables(outcome: Outcome) -> Iterator[Table]:
    """A table per network and moment, then one of verdicts."""
    for probe in outcome.probes:
        for moment in probe.moments:
            yield _moment_table(probe, moment)
    yield verdict_table(outcome.verdicts)


def _moment_table(probe: Probe, moment: Moment) -> Table:
    network = probe.network
    rows = [
        _row(series, values)
        for series in ALL
        if series.shown(network) and (values := series.of(moment))
    ]
    columns = (
        Column("quantity", align="left"),
        Column("along the depth", align="left", drop=1),
        Column("first"),
        Column("last"),
        Column("lowest"),
        Column("highest"),
    )
    title = (
        f"{network.name}, {network.protocol}, seed {network.seed}, "
        f"{when(moment.iteration, network.iterations)}"
    )
    return Table(title, columns, tuple(rows), tuple(_notes(probe, moment)))


def _row(series: Series, values: Values) -> tuple[TableCell, ...]:
    known = [value for value in values if value is not None]
    if not known:
        return TableCell(series.title), *(NOTHING,) * 5
    numbers = (known[0], known[-1], min(known), max(known))
    return (
        TableCell(series.title),
        TableCell(sparkline(values)),
        *(TableCell(number(value, series.unit)) for value in numbers),
    )


def _notes(probe: Probe, moment: Moment) -> Iterator[str]:
    yield (
        f"{len(moment.units)} units; the first {probe.images:,} test images of "
        f"{probe.network.dataset}, BN in training mode over {probe.bn_images} at a time, in fp32; "
        f"loss {moment.loss:.4f}."
    )
    if (found := moment.deletion) is None:
        return
    rises = sorted(found.rises)
    small = sum(rise < 1 for rise in rises)
    many = found.effective_units
    yield (
        f"Deletion, in {found.precision}, BN in evaluation mode: the whole network has a test "
        f"error of {found.error:.2f} %; without one unit it changes by {rises[0]:+.2f} to "
        f"{rises[-1]:+.2f} points (median {rises[len(rises) // 2]:+.2f}); {small} of {len(rises)} "
        "units cost less than one point"
        + ("." if many is None else f"; the damage is that of {many:.1f} units of equal weight.")
    )


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Claim by claim; in bold what holds. Moments with the same answer share a row."""
    columns = (
        Column("claim", align="left"),
        Column("of", align="left"),
        Column("iterations", align="left"),
        Column("verdict", align="left"),
        Column("the paper\nsays it", align="left"),
        Column("evidence", align="left", wrap=True),
    )
    order = {claim.name: at for at, claim in enumerate(CLAIMS)}
    by_claim = sorted(verdicts, key=lambda verdict: order[verdict.claim])
    alike = groupby(by_claim, lambda v: (v.claim, v.of, v.group, v.word))
    rows = [_verdict_row(list(same)) for _, same in alike]
    notes = tuple(
        f"{name}: {words} ({claim.source})"
        for (name, words), claim in zip(in_words(), CLAIMS, strict=True)
    )
    return Table("Claims of the paper, asked of these networks", columns, tuple(rows), notes)


def _verdict_row(same: Sequence[Verdict]) -> tuple[TableCell, ...]:
    """Of verdicts that agree; the evidence is that of the last."""
    last = same[-1]
    iterations = [f"{verdict.iteration:,}" for verdict in same if verdict.iteration is not None]
    at = f"after {iterations[-1]}: " if len(iterations) > 1 else ""
    return (
        TableCell(last.claim),
        TableCell(f"{last.of}, {last.group}"),
        TableCell(", ".join(iterations)) if iterations else NOTHING,
        TableCell(last.word, strong=last.word == HOLDS),
        TableCell("yes") if last.paper else TableCell("no", grey=True),
        TableCell(at + last.evidence),
    )


# --- numbers and lines ----------------------------------------------------------------------------


def sparkline(values: Values, width: int = WIDEST) -> str:
    """A bar per value, from the lowest to the highest; a blank where there is none.

    Where there are more values than characters, each stands for the mean of its neighbours.
    """
    if len(values) > width:
        edges = [round(at * len(values) / width) for at in range(width + 1)]
        values = [_mean(values[first:last]) for first, last in pairwise(edges)]
    known = [value for value in values if value is not None]
    if not known:
        return " " * len(values)
    low, span = min(known), max(known) - min(known)
    return "".join(
        " " if value is None else BARS[_level((value - low) / span if span else 0.0)]
        for value in values
    )


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _level(share: float) -> int:
    return min(len(BARS) - 1, int(share * len(BARS)))


def number(value: float, unit: str = "") -> str:
    """Three digits, or two decimals of a percentage."""
    return f"{value:.2f} %" if unit == "%" else f"{value:.3g}"
