"""The tables of docs/why.md, from the records of `resvar probe` in results/.

    python scripts/why_tables.py

Rewrites what is between the two marks of the page. No figure of a table is entered by hand.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from resvar.models.ordering import PAPER_ORDER
from resvar.probes.measurements import Moment, Probe, read_probe
from resvar.reports.render import markdown_table
from resvar.reports.tables import panel
from resvar.rundir import RESULT, read_json
from resvar.table import filled, left, right

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "why.md"
BEGIN, END = "<!-- tables: written by scripts/why_tables.py -->\n", "<!-- end of tables -->"
TRAINED = (("short", 110), ("short", 164), ("paper", 20))
"""Protocol and depth of the tables of trained networks, all of seed 0."""
ERROR = "test error, %"
FRESH = 20, 56, 110
"""Depths of the table of fresh networks, whose records are results/probes/init-….json."""


@dataclass(frozen=True)
class Quantity:
    """A row of a table; `of` is None where the network has no such layer."""

    name: str
    of: Callable[[Moment], float | None]
    form: str = ".1f"

    def text(self, moment: Moment) -> str:
        value = self.of(moment)
        text = "" if value is None else f"{value:{self.form}}"
        return f"{float(text):,.0f}" if text.endswith("e+03") else text


def _gain(moment: Moment) -> float | None:
    gains = [unit.gain for unit in moment.units]
    return None if set(gains) == {1.0} else math.prod(gains)


def _passed(moment: Moment) -> list[float] | None:
    shares = [100 * unit.passed for unit in moment.units]
    return None if min(shares) == 100 else shares


GAIN = Quantity("BN's gain, product over all units", _gain, ".2g")
PASSED = Quantity(
    "ReLU after the addition passes, %: mean over the units",
    lambda m: sum(shares) / len(shares) if (shares := _passed(m)) else None,
)
GRADIENT = Quantity(
    "gradient at the first unit, relative to the end", lambda m: m.units[0].gradient_ratio, ".3g"
)
BOTH_MOMENTS = (
    GAIN,
    PASSED,
    Quantity("… in the unit that passes least, %", lambda m: min(_passed(m) or [0]) or None),
    Quantity(
        "… by every unit of the last stage, %",
        lambda m: 100 * m.units[-1].straight if _passed(m) else None,
    ),
    Quantity(
        "negative values of a branch, %: most in a unit",
        lambda m: 100 * max(unit.branch.negative for unit in m.units),
    ),
    Quantity("last unit's shortcut signal: mean", lambda m: m.units[-1].shortcut.mean, ".2g"),
    Quantity("… deviation", lambda m: m.units[-1].shortcut.std, ".2g"),
    Quantity("… negative values, %", lambda m: 100 * m.units[-1].shortcut.negative),
    Quantity("‖branch‖ / ‖shortcut‖: first unit", lambda m: m.units[0].ratio, ".2g"),
    Quantity("… median over the units", lambda m: median(u.ratio or 0.0 for u in m.units), ".2g"),
    GRADIENT,
    Quantity("… at the unit where it is least", lambda m: min(_gradients(m)), ".2g"),
    Quantity(
        "equation 4: relative difference", lambda m: m.identity.forward_relative["fp64"], ".0e"
    ),
    Quantity("equation 5: relative difference", lambda m: m.identity.backward["fp64"], ".0e"),
)
"""Shown at initialisation and after training."""


def _gradients(moment: Moment) -> list[float]:
    return [unit.gradient_ratio or 0.0 for unit in moment.units]


def _rises(moment: Moment) -> list[float]:
    assert moment.deletion is not None
    return moment.deletion.rises


AFTER_TRAINING = (
    Quantity("deleting the unit that matters most, points", lambda m: max(_rises(m))),
    Quantity("… the unit that matters least, points", lambda m: min(_rises(m))),
    Quantity("units that cost less than one point", lambda m: sum(r < 1 for r in _rises(m)), ".0f"),
    Quantity(
        "equally important units with the same damage",
        lambda m: m.deletion.effective_units if m.deletion else None,
    ),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables()}{END}{after}", encoding="utf-8")


def tables() -> str:
    return "\n".join([*fresh_table(), *(line for key in TRAINED for line in trained_table(*key))])


def fresh_table() -> Iterator[str]:
    """Three quantities at initialisation, by depth."""
    by_depth = {depth: fresh_probes(depth) for depth in FRESH}
    rows = [(quantity, depth) for quantity in (GAIN, PASSED, GRADIENT) for depth in FRESH]
    columns = [left("at initialisation", lambda row: f"{row[0].name}, {row[1]} layers")]
    for variant in PAPER_ORDER:

        def cell(row: tuple[Quantity, int], variant: str = variant) -> str:
            return row[0].text(by_depth[row[1]][variant].moments[0])

        columns.append(right(_heading(variant), cell))
    yield from markdown_table(filled("", columns, rows))


def trained_table(protocol: str, depth: int) -> Iterator[str]:
    """Every quantity of the networks of one depth: at initialisation → after training."""
    probes = trained_probes(protocol, depth)
    rows = (None, *BOTH_MOMENTS, *AFTER_TRAINING)
    columns = [left(f"ResNet-{depth}, {protocol}", lambda row: row.name if row else ERROR)]
    for variant, probe in probes.items():

        def cell(row: Quantity | None, variant: str = variant, probe: Probe = probe) -> str:
            if row is None:
                result = read_json(_folder(protocol, variant, depth) / RESULT)
                return f"{result['test_error']:.2f}"
            trained = row.text(probe.moments[-1])
            if row in AFTER_TRAINING or not trained:
                return trained
            return f"{row.text(probe.moments[0])} → {trained}"

        columns.append(right(_heading(variant), cell))
    yield from markdown_table(filled("", columns, rows))


def fresh_probes(depth: int) -> Mapping[str, Probe]:
    text = (RESULTS / "probes" / f"init-{depth}.json").read_text(encoding="utf-8")
    probes = [Probe.from_json(json.dumps(found)) for found in json.loads(text)["probes"]]
    return {probe.network.variant: probe for probe in probes}


def trained_probes(protocol: str, depth: int) -> Mapping[str, Probe]:
    """The probes of seed 0, of the orderings that were trained and measured."""
    found = {name: read_probe(_folder(protocol, name, depth)) for name in PAPER_ORDER}
    return {name: probe for name, probe in found.items() if probe is not None}


def _folder(protocol: str, variant: str, depth: int) -> Path:
    return RESULTS / protocol / f"{variant}-{depth}" / "seed-0"


def _heading(variant: str) -> str:
    return f"{(panel(variant) or '').lstrip('4')} {variant}"


if __name__ == "__main__":
    main()
