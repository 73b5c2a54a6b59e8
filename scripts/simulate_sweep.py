"""A sweep of 10,000 runs on 1 to 1,000 devices that fail and are taken away: how long it takes, and
what is lost, as a function of the checkpoint interval.

    python scripts/simulate_sweep.py --images-per-second 110=240,164=160 --checkpoint 0.2

The runs are those of `table2` with a thousand seeds; they last as long as the throughput of one
device says. Failures and preemptions of a device are exponential. A run that was interrupted loses
what it did since its last checkpoint and goes on at the head of the queue, on whichever device is
free. Prints tables, and with `--figures DIR` draws them. Every event is drawn from `--seed`.

Beside the simulation stand closed forms: the optimum of Young (1974) and that of Daly (2006), "A
higher order estimate of the optimum checkpoint interval for restart dumps".
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from rich.console import Console
from rich.table import Table

from resvar.console import console_for_output, duration
from resvar.errors import UserError
from resvar.reports.plotting import Picture, house_style, panels, write_pictures
from resvar.sweeps.estimate import estimate, given_throughput, makespan, workload
from resvar.sweeps.grid import plan_sweep

HOUR = 3600.0
DEVICES = (1, 10, 100, 1000)
INTERVALS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 2**0.5, 1.0, 2**0.5, 2.0, 4.0, 8.0, 16.0)
"""Simulated, as multiples of Young's optimum."""
LOOKS = (("#009E73", "o"), ("#CC79A7", "s"), ("#555555", "^"))
"""Colour and marker of a scenario; none that stands for an ordering."""
FASTER = (1, 3, 10, 30, 100)
"""How many times as fast as the one whose throughput is given a device might be."""


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditions:
    """What befalls a device, in seconds.

    Attributes:
        failure: mean time of work between two failures of a device; infinite: none.
        preemption: the same between two moments at which the device is taken away.
        repair: from a failure until the device is there again.
        requeue: from a preemption until then.
        start: until a process computes, whether its run is new or goes on.
        checkpoint: what saving one takes.
    """

    failure: float = math.inf
    preemption: float = math.inf
    repair: float = 0.0
    requeue: float = 0.0
    start: float = 0.0
    checkpoint: float = 0.0

    @property
    def mtbf(self) -> float:
        """Mean time of work between two interruptions of either kind."""
        rate = 1 / self.failure + 1 / self.preemption
        return 1 / rate if rate else math.inf


@dataclass
class Outcome:
    """Seconds by the clock, and of all devices together: what their time went into."""

    makespan: float = 0.0
    work: float = 0.0
    lost: float = 0.0  # computed since the last checkpoint when the device went
    checkpoints: float = 0.0
    starts: float = 0.0
    interruptions: int = 0

    @property
    def busy(self) -> float:
        return self.work + self.lost + self.checkpoints + self.starts

    @property
    def overhead(self) -> float:
        """What all that is not work adds to it, as a share of the work."""
        return self.busy / self.work - 1


def simulate(
    lengths: Sequence[float],
    intervals: Sequence[float],
    devices: int,
    conditions: Conditions,
    seed: int,
) -> Outcome:
    """A sweep from its first run to the end of its last.

    Args:
        lengths: seconds of work of each run, in the order in which they are started.
        intervals: of each run, seconds of work between two checkpoints; one more is at its end.
    """
    chance = random.Random(seed)
    outcome = Outcome(work=sum(lengths))
    left = list(lengths)
    queue = list(range(len(lengths)))  # sorted, and so a heap
    free = devices
    # Time; the run that leaves its device then, or -1; for how long the device is away afterwards.
    events: list[tuple[float, int, float]] = []
    clock = 0.0
    while queue or events:
        while free and queue:
            free -= 1
            run = heapq.heappop(queue)
            stint, saved, away = _stint(left[run], intervals[run], conditions, chance, outcome)
            left[run] -= saved
            heapq.heappush(events, (clock + stint, run, away))
        clock, run, away = heapq.heappop(events)
        if run >= 0:
            if left[run] > 0:
                heapq.heappush(queue, run)
            else:
                outcome.makespan = clock
        if away:
            heapq.heappush(events, (clock + away, -1, 0.0))
        else:
            free += 1
    return outcome


def _stint(
    left: float, interval: float, conditions: Conditions, chance: random.Random, outcome: Outcome
) -> tuple[float, float, float]:
    """A run on a device until it is finished or interrupted, booked in `outcome`.

    Returns:
        How long that is, the work that is saved by then (`left`: finished), and for how long the
        device is away.
    """
    segment = interval + conditions.checkpoint
    checkpoints = max(1, math.ceil(left / interval))
    whole = conditions.start + left + checkpoints * conditions.checkpoint
    mtbf = conditions.mtbf
    ends = math.inf if math.isinf(mtbf) else chance.expovariate(1 / mtbf)
    if ends >= whole:
        outcome.starts += conditions.start
        outcome.checkpoints += checkpoints * conditions.checkpoint
        return whole, left, 0.0
    trained = max(0.0, ends - conditions.start)
    kept = int(trained // segment)
    outcome.interruptions += 1
    outcome.starts += min(ends, conditions.start)
    outcome.checkpoints += kept * conditions.checkpoint
    outcome.lost += trained - (kept * segment if kept else 0.0)
    failed = chance.random() < mtbf / conditions.failure
    away = conditions.repair if failed else conditions.requeue
    return ends, kept * interval if kept else 0.0, away


# --- closed forms ---------------------------------------------------------------------------------


def young(checkpoint: float, mtbf: float) -> float:
    """The interval that loses least, to first order: Young, CACM 17 (1974), 530."""
    return math.sqrt(2 * checkpoint * mtbf)


def daly(checkpoint: float, mtbf: float) -> float:
    """The same to higher order: Daly, FGCS 22 (2006), 303, equation 37."""
    if checkpoint >= 2 * mtbf:
        return mtbf
    ratio = checkpoint / (2 * mtbf)
    return math.sqrt(2 * checkpoint * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint


def expected_busy(work: float, interval: float, conditions: Conditions) -> float:
    """Mean seconds of a device for a run, in equal segments: Daly (2006), equation 20.

    M e^(R/M) (e^((τ+δ)/M) − 1) for each segment τ with its checkpoint δ, and here M (e^(R/M) − 1)
    before the first, since that process has to start as well. The time away is not in it.
    """
    mtbf, segments = conditions.mtbf, work / interval
    if math.isinf(mtbf):
        return conditions.start + work + segments * conditions.checkpoint
    again = math.exp(conditions.start / mtbf)
    segment = math.expm1((interval + conditions.checkpoint) / mtbf)
    return mtbf * (again - 1) + segments * mtbf * again * segment


# --- the experiments ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """The runs.

    Attributes:
        lengths: seconds of work of each.
        intervals: seconds between the checkpoints of each, by the default `checkpoint_every`.
        defaults: the same by the name of the network.
    """

    lengths: tuple[float, ...]
    intervals: tuple[float, ...]
    defaults: dict[str, float]

    @property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths)


def make_load(speeds: str, runs: int) -> Load:
    """So many runs of table 2: its ten cells again and again.

    Raises:
        UserError: `speeds` is not what `resvar sweep --images-per-second` takes.
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
    """One set of conditions, and what came of it.

    Attributes:
        intervals: seconds between checkpoints → the sweep with that interval, around the optimum.
        default: the same sweep with the default interval.
        devices: number of devices → the sweep on so many, with the default interval.
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
        """The simulated interval that loses least, in seconds."""
        return min(self.intervals, key=lambda interval: self.intervals[interval].overhead)


def run_scenario(load: Load, conditions: Conditions, devices: int, seed: int) -> Scenario:
    """Simulate what the tables and the figure show."""
    best = young(conditions.checkpoint, conditions.mtbf)
    tried = [best * factor for factor in INTERVALS]
    intervals = {
        interval: simulate(load.lengths, [interval] * len(load.lengths), devices, conditions, seed)
        for interval in tried
        if interval < 2 * conditions.mtbf  # beyond, runs hardly end
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
    for table in (
        optimum_table(found, options.devices),
        interval_table(found[-1], load),
        faster_table(found[-1].conditions, load),
        device_table(found, load),
    ):
        console.print(f"\n{table.title}:", soft_wrap=True)
        table.title = None  # rich would break it at the table's width
        console.print(table)
    if options.figures is not None:
        for path in write_pictures([draw(load, found)], options.figures, ["svg"]):
            console.print(f"Wrote {path}.")


def _conditions(options: argparse.Namespace) -> Iterator[Conditions]:
    """Failures as given, and preemptions as often as given."""
    for hours in options.preempted_every:
        yield Conditions(
            failure=options.failure * HOUR,
            preemption=hours * HOUR if hours else math.inf,
            repair=options.repair * 60,
            requeue=options.requeue * 60,
            start=options.start,
            checkpoint=options.checkpoint,
        )


# --- what is printed ------------------------------------------------------------------------------


def optimum_table(found: Sequence[Scenario], devices: int) -> Table:
    """Where the least is lost, against Young and Daly, and what the default loses."""
    table = _table(
        f"On {devices:,} devices: the interval that loses least, and what the default loses",
        "interrupted", "Young", "Daly", "simulated", "lost there", "lost by default",
    )  # fmt: skip
    for scenario in found:
        conditions = scenario.conditions
        table.add_row(
            scenario.name,
            f"{young(conditions.checkpoint, conditions.mtbf):,.0f} s",
            f"{daly(conditions.checkpoint, conditions.mtbf):,.0f} s",
            f"{scenario.best:,.0f} s",
            f"{scenario.intervals[scenario.best].overhead:.2%}",
            f"{scenario.default.overhead:.2%}",
        )
    return table


def interval_table(scenario: Scenario, load: Load) -> Table:
    """What the time beside the work goes into, over the interval."""
    table = _table(
        f"Interrupted {scenario.name}: seconds added to each second of work",
        "interval", "computed again", "starts", "checkpoints", "in all", "by Daly",
    )  # fmt: skip
    rows = [(f"{interval:,.0f} s", one, interval) for interval, one in scenario.intervals.items()]
    for name, one, interval in [*rows, ("default", scenario.default, None)]:
        parts = one.lost, one.starts, one.checkpoints, one.busy - one.work
        expected = "" if interval is None else f"{_expected(load.mean, interval, scenario):.2%}"
        table.add_row(name, *(f"{part / one.work:.2%}" for part in parts), expected)
    return table


def _expected(work: float, interval: float, scenario: Scenario) -> float:
    return expected_busy(work, interval, scenario.conditions) / work - 1


def faster_table(conditions: Conditions, load: Load) -> Table:
    """By Daly's formula: iterations are shorter on a faster device, a checkpoint is not."""
    table = _table(
        f"On faster devices, interrupted every {conditions.mtbf / HOUR:,.1f} h, by Daly",
        "times as fast", "default", "lost by default", "optimum", "lost there",
    )  # fmt: skip
    interval = sum(load.intervals) / len(load.intervals)
    best = daly(conditions.checkpoint, conditions.mtbf)
    for times in FASTER:
        work = load.mean / times
        lost = [expected_busy(work, t, conditions) / work - 1 for t in (interval / times, best)]
        table.add_row(
            f"{times:,}", f"{interval / times:,.1f} s", f"{lost[0]:.2%}", f"{best:,.1f} s",
            f"{lost[1]:.2%}",
        )  # fmt: skip
    return table


def device_table(found: Sequence[Scenario], load: Load) -> Table:
    """The time by the clock at the default interval, as a multiple of the ideal."""
    table = _table(
        "Time by the clock with the default interval, as a multiple of the ideal (work / devices)",
        "devices", "ideal", "bound", "undisturbed", *(scenario.name for scenario in found),
    )  # fmt: skip
    for devices in found[0].devices:
        ideal = sum(load.lengths) / devices
        ratios = [
            max(ideal, max(load.lengths)),
            makespan(load.lengths, devices),
            *(scenario.devices[devices].makespan for scenario in found),
        ]
        table.add_row(f"{devices:,}", duration(ideal), *(f"{one / ideal:.3f}" for one in ratios))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    return table


def draw(load: Load, found: Sequence[Scenario]) -> Picture:
    """Left: what is lost over the interval, simulated and by Daly. Right: makespan over devices."""
    figure, [[left, right]] = panels(1, 2, (7.2, 3.2))
    with house_style():
        for scenario, (colour, marker) in zip(found, cycle(LOOKS)):
            x = list(scenario.intervals)
            simulated = [100 * one.overhead for one in scenario.intervals.values()]
            expected = [100 * _expected(load.mean, interval, scenario) for interval in x]
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
                  title="Time by the clock")  # fmt: skip
        right.set_ylim(bottom=1.0)
        for axis in (left.xaxis, left.yaxis, right.xaxis):
            axis.set_major_formatter("{x:,g}")
        figure.legend(loc="outside lower center", ncols=len(found), frameon=False, fontsize=7)
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
    parser.add_argument("--checkpoint", type=float, required=True, help="seconds that one takes")
    parser.add_argument("--start", type=float, default=10.0, help="seconds until a process trains")
    parser.add_argument("--failure", type=float, default=720.0,
                        help="hours between failures of a device (720)")  # fmt: skip
    parser.add_argument("--repair", type=float, default=60.0, help="minutes after one (60)")
    parser.add_argument("--preempted-every", type=float, nargs="+", default=[0.0, 24.0, 2.0],
                        metavar="HOURS", help="one scenario each; 0: never (0 24 2)")  # fmt: skip
    parser.add_argument("--requeue", type=float, default=10.0, help="minutes after one (10)")
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
