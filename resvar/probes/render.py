"""The results of a probe in the terminal, as Markdown and as JSON. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from typing import Self

from rich.console import Console

from resvar.console import drawn_text, percent
from resvar.probes.claims import CLAIMS, SUPPORTED, ClaimVerdict, judge
from resvar.probes.measurements import PROBE_FORMAT, Moment, Probe
from resvar.probes.runs import RunGroup
from resvar.probes.series import ALL_SERIES, Series, Values, moment_name
from resvar.reports.render import markdown_table
from resvar.settings import IMAGES_OF
from resvar.table import NOTHING, Column, Table, TableCell, print_table

SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 60
"""Characters, at most; in deeper networks several units share one."""


@dataclass(frozen=True)
class ProbeResults:
    """The measurements, the groups of runs, and the verdicts on both."""

    probes: Sequence[Probe]
    groups: Sequence[RunGroup]
    verdicts: Sequence[ClaimVerdict]

    @classmethod
    def of(cls, probes: Sequence[Probe], groups: Sequence[RunGroup] = ()) -> Self:
        return cls(probes, groups, judge(probes, groups))


def render_probe(results: ProbeResults, format: str) -> str:
    """The results as `table` (plain text), `markdown` or `json`."""
    if format == "json":
        return _probe_json(results)
    if format == "markdown":
        lines = ["# What the signal does along the depth: a resvar probe", ""]
        for table in probe_tables(results):
            lines += [f"## {table.title}", "", *markdown_table(table)]
        return "\n".join(lines).rstrip() + "\n"
    return drawn_text(lambda console: print_probe(results, console))


def print_probe(results: ProbeResults, console: Console) -> None:
    for table in probe_tables(results):
        print_table(table, console)
        console.print()


def _probe_json(results: ProbeResults) -> str:
    value = {
        "format": PROBE_FORMAT,
        "probes": [probe.model_dump() for probe in results.probes],
        "claims": [
            {
                "name": claim.name,
                "says": claim.says,
                "threshold": claim.threshold,
                "source": claim.source,
                "verdicts": [asdict(v) for v in results.verdicts if v.claim == claim.name],
            }
            for claim in CLAIMS
        ],
    }
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


# --- tables ---------------------------------------------------------------------------------------


def probe_tables(results: ProbeResults) -> Iterator[Table]:
    """A table per network and moment, then the verdicts."""
    for probe in results.probes:
        for moment in probe.moments:
            yield _moment_table(probe, moment)
    yield verdict_table(results.verdicts)


def _moment_table(probe: Probe, moment: Moment) -> Table:
    network = probe.network
    columns = (
        Column("quantity", align="left"),
        Column("along the depth", align="left", drop=1),
        *(Column(title) for title in ("first", "last", "lowest", "highest")),
    )
    rows = [
        _series_row(series, values)
        for series in ALL_SERIES
        if series.applies_to(network) and (values := series.of(moment))
    ]
    title = (
        f"{network.name}, {network.protocol}, seed {network.seed}, "
        f"{moment_name(moment.iteration, network.iterations)}"
    )
    return Table(title, columns, tuple(rows), tuple(_probe_notes(probe, moment)))


def _series_row(series: Series, values: Values) -> tuple[TableCell, ...]:
    known = [value for value in values if value is not None]
    if not known:
        return TableCell(series.title), *(NOTHING,) * 5
    numbers = (known[0], known[-1], min(known), max(known))
    texts = [percent(n) if series.unit == "%" else f"{n:.3g}" for n in numbers]
    return TableCell(series.title), TableCell(sparkline(values)), *map(TableCell, texts)


def _probe_notes(probe: Probe, moment: Moment) -> Iterator[str]:
    dataset = IMAGES_OF.get(probe.network.dataset, probe.network.dataset)
    yield (
        f"{len(moment.units)} units; the first {probe.images:,} test images of {dataset}, "
        f"BN in training mode over {probe.bn_images} at a time, in fp32; loss {moment.loss:.4f}."
    )
    if (found := moment.deletion) is None:
        return
    rises = sorted(found.rises)
    small = sum(rise < 1 for rise in rises)
    effective = found.effective_units
    yield (
        f"Deletion, in {found.precision}, BN in evaluation mode: the whole network has a test "
        f"error of {percent(found.error)}; without one unit it changes by {rises[0]:+.2f} to "
        f"{rises[-1]:+.2f} points (median {rises[len(rises) // 2]:+.2f}); {small} of {len(rises)} "
        "units cost less than one point"
        + (
            "."
            if effective is None
            else f"; the damage equals that of {effective:.1f} units of equal weight."
        )
    )


def verdict_table(verdicts: Sequence[ClaimVerdict]) -> Table:
    """The verdicts by claim; moments with the same answer share a row."""
    columns = (
        *(Column(title, align="left") for title in ("claim", "of", "iterations", "verdict")),
        Column("claimed by\nthe paper", align="left"),
        Column("evidence", align="left", wrap=24),
    )
    order = [claim.name for claim in CLAIMS]
    by_claim = sorted(verdicts, key=lambda verdict: order.index(verdict.claim))
    alike = groupby(by_claim, lambda v: (v.claim, v.of, v.group, v.word))
    rows = tuple(_verdict_row(list(same)) for _, same in alike)
    notes = tuple(f"{claim.name}: {claim.help} ({claim.source})" for claim in CLAIMS)
    return Table("Claims of the paper, tested on these networks", columns, rows, notes)


def _verdict_row(same: Sequence[ClaimVerdict]) -> tuple[TableCell, ...]:
    """A row for verdicts that agree, with the evidence of the last."""
    last = same[-1]
    iterations = [f"{verdict.iteration:,}" for verdict in same if verdict.iteration is not None]
    at = f"after {iterations[-1]}: " if len(iterations) > 1 else ""
    return (
        TableCell(last.claim),
        TableCell(f"{last.of}, {last.group}"),
        TableCell(", ".join(iterations)) if iterations else NOTHING,
        TableCell(last.word, strong=last.word == SUPPORTED),
        TableCell("yes") if last.paper else TableCell("no", grey=True),
        TableCell(at + last.evidence),
    )


def sparkline(values: Values, width: int = SPARKLINE_WIDTH) -> str:
    """A bar per value, from the lowest to the highest; a blank for None.

    More values than `width`: a bar for the mean of several neighbours.
    """
    if len(values) > width:
        edges = [round(at * len(values) / width) for at in range(width + 1)]
        values = [_mean(values[first:last]) for first, last in pairwise(edges)]
    known = [value for value in values if value is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)

    def spark(value: float) -> str:
        return SPARKS[min(len(SPARKS) - 1, int((value - low) / span * len(SPARKS)))]

    return "".join(
        " " if value is None else spark(value) if span else SPARKS[0] for value in values
    )


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
