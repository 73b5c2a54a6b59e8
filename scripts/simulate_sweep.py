"""Simulate a sweep of 10,000 runs on 1 to 1,000 devices that fail and are preempted: its duration
and its losses for each checkpoint interval.

    python scripts/simulate_sweep.py --images-per-second 110=240,164=160 --checkpoint 0.2

The runs are those of `table2` with a thousand seeds; their lengths follow from the throughput of a
device. Times between failures and preemptions of a device are exponential. An interrupted run loses
the work since its last checkpoint and resumes from the head of the queue, on any free device.
Prints tables, and with `--figures DIR` draws them. All randomness comes from `--seed`.

The tables compare the simulation (`sweep_model.py`) with the closed forms of Young (1974) and Daly
(2006).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sweep_model import Conditions, Outcome, daly, expected_overhead, simulate, young

from resvar.console import console_for_output, duration
from resvar.errors import UserError
from resvar.reports.plotting import (
    Picture,
    house_style,
    legend_below,
    panels,
    plain_log_axis,
    write_pictures,
)
from resvar.sweeps.estimate import estimate, given_throughput, makespan, workload
from resvar.sweeps.grid import plan_sweep
from resvar.training.trainer import CHECKPOINT_PAUSE

HOUR = 3600.0
DEVICES = (1, 10, 100, 1000)
INTERVALS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 2**0.5, 1.0, 2**0.5, 2.0, 4.0, 8.0, 16.0)
"""Simulated, as multiples of Young's optimum."""
LOOKS = (("#009E73", "o"), ("#CC79A7", "s"), ("#555555", "^"))
"""Colour and marker of each scenario, distinct from those of the orderings."""
FASTER = (1, 3, 10, 30, 100)
"""Speeds of a device, as multiples of the given throughput."""


@dataclass(frozen=True)
class Load:
    """The runs.

    Attributes:
        lengths: seconds of work of each.
        intervals: seconds between the checkpoints of each, at the default `checkpoint_every`.
        defaults: the same by name of the network.
    """

    lengths: tuple[float, ...]
    intervals: tuple[float, ...]
    defaults: dict[str, float]

    @property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths)


def make_load(speeds: str, runs: int) -> Load:
    """The ten cells of table 2, repeated up to `runs`.

    Raises:
        UserError: `speeds` is not a valid value of `resvar sweep --images-per-second`.
    """
    cells = plan_sweep(Path("table2"), {"seeds": "1"}, [], Path("nowhere")).runs
    throughput = given_throughput(speeds, cells)
    lengths = estimate(cells, throughput).lengths
    intervals = [
        cell.settings.checkpoint_every
        * cell.settings.batch_size
        / throughput.speeds[workload(cell.settings)]
        for cell in cells
    ]
    names = [f"ResNet-{cell.settings.depth}" for cell in cells]
    turns = -(-runs // len(cells))
    return Load(
        (lengths * turns)[:runs],
        tuple(intervals * turns)[:runs],
        dict(zip(names, intervals, strict=True)),
    )


@dataclass(frozen=True)
class Scenario:
    """The outcomes of one set of conditions.

    Attributes:
        intervals: seconds between checkpoints → outcome, around the optimum.
        default: outcome with the default interval.
        devices: number of devices → outcome with the default interval.
    """

    conditions: Conditions
    intervals: dict[float, Outcome]
    default: Outcome
    devices: dict[int, Outcome]

    @property
    def name(self) -> str:
        return f"every {self.conditions.mtbf / HOUR:,.1f} h"

    @property
    def best(self) -> float:
        """The simulated interval with the least overhead, in seconds."""
        return min(self.intervals, key=lambda interval: self.intervals[interval].overhead)


def run_scenario(load: Load, conditions: Conditions, devices: int, seed: int) -> Scenario:
    """All outcomes that the tables and the figure show."""
    best = young(conditions.checkpoint, conditions.mtbf)
    tried = [best * factor for factor in INTERVALS]
    intervals = {
        interval: simulate(load.lengths, [interval] * len(load.lengths), devices, conditions, seed)
        for interval in tried
        if interval < 2 * conditions.mtbf  # beyond this, runs hardly finish
    }
    counts = {
        count: simulate(load.lengths, load.intervals, count, conditions, seed)
        for count in sorted({*DEVICES, devices})
    }
    return Scenario(conditions, intervals, counts[devices], counts)


def main() -> None:
    options = parse()
    console = console_for_output(highlight=False)
    load = make_load(options.images_per_second, options.runs)
    found = [run_scenario(load, c, options.devices, options.seed) for c in _conditions(options)]
    each = (f"{seconds:,.0f} s for {name}" for name, seconds in load.defaults.items())
    console.print(
        f"{len(load.lengths):,} runs, {sum(load.lengths) / HOUR:,.0f} device hours of work, the "
        f"longest {duration(max(load.lengths))}; a checkpoint takes {options.checkpoint:g} s, a "
        f"start {options.start:g} s. checkpoint_every 391 is {' and '.join(each)}.",
        soft_wrap=True,
    )
    print_optimum(console, found, options.devices)
    print_intervals(console, found[-1], load)
    print_faster(console, found[-1].conditions, load)
    print_devices(console, found, load)
    if options.figures is not None:
        for path in write_pictures([draw(load, found)], options.figures, ["svg"]):
            console.print(f"Wrote {path}.")


def _conditions(options: argparse.Namespace) -> Iterator[Conditions]:
    """One set for each frequency of preemptions."""
    for hours in options.preempted_every:
        yield Conditions(
            failure=options.failure * HOUR,
            preemption=hours * HOUR if hours else math.inf,
            repair=options.repair * 60,
            requeue=options.requeue * 60,
            start=options.start,
            checkpoint=options.checkpoint,
        )


# --- tables and figure ----------------------------------------------------------------------------


def print_optimum(console: Console, found: Sequence[Scenario], devices: int) -> None:
    """The best interval against Young's and Daly's, and the overhead there and by default."""
    title = f"On {devices:,} devices: the interval that loses least, and what the default loses"
    columns = ("interrupted", "Young", "Daly", "simulated", "lost there", "lost by default")
    rows = [
        (
            one.name,
            f"{young(one.conditions.checkpoint, one.conditions.mtbf):,.0f} s",
            f"{daly(one.conditions.checkpoint, one.conditions.mtbf):,.0f} s",
            f"{one.best:,.0f} s",
            f"{one.intervals[one.best].overhead:.2%}",
            f"{one.default.overhead:.2%}",
        )
        for one in found
    ]
    print_table(console, title, columns, rows)


def print_intervals(console: Console, scenario: Scenario, load: Load) -> None:
    """The parts of the overhead by interval."""
    title = f"Interrupted {scenario.name}: seconds added to each second of work"
    columns = ("interval", "computed again", "starts", "checkpoints", "total", "by Daly")

    rows = []
    for interval, one in [*scenario.intervals.items(), (None, scenario.default)]:
        name, expected = "default", ""
        if interval is not None:
            overhead = expected_overhead(load.mean, interval, scenario.conditions)
            name, expected = f"{interval:,.0f} s", f"{overhead:.2%}"
        parts = one.lost, one.starts, one.checkpoints, one.busy - one.work
        rows.append((name, *(f"{part / one.work:.2%}" for part in parts), expected))
    print_table(console, title, columns, rows)


def print_faster(console: Console, conditions: Conditions, load: Load) -> None:
    """By Daly's formula: on a faster device iterations are shorter, checkpoints are not. A periodic
    checkpoint within CHECKPOINT_PAUSE seconds of the last one is skipped."""
    hours = conditions.mtbf / HOUR
    title = f"On faster devices, interrupted every {hours:,.1f} h, by Daly"
    columns = ("times as fast", "default", "lost by default", "optimum", "lost there")
    default = sum(load.intervals) / len(load.intervals)
    best = daly(conditions.checkpoint, conditions.mtbf)
    rows = []
    for times in FASTER:
        row, each = [f"{times:,}"], default / times
        for interval in (each * max(1, math.ceil(CHECKPOINT_PAUSE / each)), best):
            lost = expected_overhead(load.mean / times, interval, conditions)
            row += [f"{interval:,.1f} s", f"{lost:.2%}"]
        rows.append(row)
    print_table(console, title, columns, rows)


def print_devices(console: Console, found: Sequence[Scenario], load: Load) -> None:
    """The makespan at the default interval, as a multiple of the ideal."""
    title = "Wall time with the default interval, as a multiple of the ideal (work / devices)"
    columns = ("devices", "ideal", "bound", "undisturbed", *(scenario.name for scenario in found))
    rows = []
    for devices in found[0].devices:
        ideal = sum(load.lengths) / devices
        spans = [
            max(ideal, max(load.lengths)),
            makespan(load.lengths, devices),
            *(scenario.devices[devices].makespan for scenario in found),
        ]
        rows.append((f"{devices:,}", duration(ideal), *(f"{one / ideal:.3f}" for one in spans)))
    print_table(console, title, columns, rows)


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(f"{title}:", soft_wrap=True)  # rich would wrap a title at the table's width
    console.print(table)


def draw(load: Load, found: Sequence[Scenario]) -> Picture:
    """Left: overhead by interval, simulated and by Daly. Right: makespan by number of devices."""
    figure, [[left, right]] = panels(1, 2, (7.2, 3.2))
    with house_style():
        for scenario, (colour, marker) in zip(found, cycle(LOOKS)):
            x = list(scenario.intervals)
            simulated = [100 * one.overhead for one in scenario.intervals.values()]
            expected = [
                100 * expected_overhead(load.mean, interval, scenario.conditions) for interval in x
            ]
            best = daly(scenario.conditions.checkpoint, scenario.conditions.mtbf)
            left.plot(x, expected, "-", color=colour, linewidth=0.9)
            left.plot(x, simulated, marker, color=colour, label=f"interrupted {scenario.name}")
            left.axvline(best, ymax=0.04, color=colour, linewidth=2)
            ratios = [one.makespan * n / one.work for n, one in scenario.devices.items()]
            right.plot(list(scenario.devices), ratios, f"{marker}-", color=colour)
        for name, seconds in load.defaults.items():
            left.axvline(seconds, color="#777777", linestyle=":", linewidth=1)
            left.annotate(
                name, (seconds, 0.98), xycoords=("data", "axes fraction"), rotation=90,
                va="top", ha="right", fontsize=6, color="#555555",
            )  # fmt: skip
        left.set(xscale="log", yscale="log", xlabel="seconds between checkpoints",
                 ylabel="added to the work (%)", title="What is lost")  # fmt: skip
        right.set(xscale="log", xlabel="devices", ylabel="makespan / (work / devices)",
                  title="Wall time")  # fmt: skip
        right.set_ylim(bottom=1.0)
        for axis in (left.xaxis, left.yaxis, right.xaxis):
            plain_log_axis(axis)
        legend_below(figure)
    caption = (
        "Points: simulated. Lines: Daly's expected time, his optimum at the foot. Dotted: "
        "checkpoint_every 391."
    )
    figure.suptitle(caption, fontsize=7)
    return Picture("sweep", "A sweep on devices that fail", figure, caption, "simulate_sweep.py")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images-per-second", required=True, metavar="DEPTH=N,…",
                        help="of one device, for depths 110 and 164")  # fmt: skip
    parser.add_argument("--checkpoint", type=float, required=True, help="seconds per checkpoint")
    parser.add_argument(
        "--start", type=float, default=10.0, help="seconds until a process starts to train"
    )
    parser.add_argument("--failure", type=float, default=720.0,
                        help="hours between failures of a device (720)")  # fmt: skip
    parser.add_argument(
        "--repair", type=float, default=60.0, help="minutes until a failed device is back (60)"
    )
    parser.add_argument("--preempted-every", type=float, nargs="+", default=[0.0, 24.0, 2.0],
                        metavar="HOURS", help="one scenario each; 0: never (0 24 2)")  # fmt: skip
    parser.add_argument(
        "--requeue", type=float, default=10.0, help="minutes until a preempted device is back (10)"
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=100, help="for the intervals (100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the SVG there")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        Console(stderr=True).print(str(error))
        raise SystemExit(2) from None
