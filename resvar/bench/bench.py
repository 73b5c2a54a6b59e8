"""`resvar bench`: measure, then say it in tables or as JSON. torch loads in the workers alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import correlation, linear_regression, median
from typing import Any

from rich.console import Console
from rich.table import Table

from resvar.bench.contenders import Asked, Contender, contenders
from resvar.bench.floor import PASSES, Floor, floor, flop
from resvar.bench.profile import HEADINGS
from resvar.bench.turns import Ceilings, Measured, Worker, at_work, measure, together
from resvar.config import Settings
from resvar.console import console_for_output, pluralize
from resvar.errors import UserError

FORMAT = 1
"""Of the JSON."""


@dataclass(frozen=True)
class How:
    """How to measure: on what device, how many turns of each, about how many seconds each."""

    device: str = "auto"
    rounds: int = 7
    seconds: float = 2.0
    as_json: bool = False


def bench(asked: Asked, depths: Sequence[int], how: How) -> None:
    """Contenders against each other, at one depth after the other.

    Raises:
        UserError: an unknown setting, variant, depth or device.
        RunError: a contender's process failed.
    """
    _check_device(how.device)
    planned = [contenders(asked, depth) for depth in depths]  # all wrong input before any work
    say = _teller()
    records = []
    for depth, group in zip(depths, planned, strict=True):
        say(f"{asked.variant}-{depth}: {', '.join(one.name for one in group)}; starting …")
        found, ceilings = measure(group, how.device, asked.threads, how.rounds, how.seconds, say)
        records.append(record(found, ceilings))
        if not how.as_json:
            show(records[-1], console_for_output())
    fits = fit(records)
    if how.as_json:
        _print_json({"format": FORMAT, "benchmarks": records, "fits": fits})
    elif fits:
        show_fits(fits, console_for_output())


def record(found: Sequence[Measured], ceilings: Ceilings) -> dict[str, Any]:
    """All figures of one depth, as JSON holds them; seconds, bytes, images/s, FLOP/s."""
    first = found[0].contender.settings
    baseline = next((one for one in found if one.contender.plain), None)
    name, most = ceilings.flops
    return {
        "variant": first.variant,
        "depth": first.depth,
        "unit": first.architecture.unit,
        "flop_per_image": flop(first.ordering, first.architecture),
        "ceiling": {
            "bf16_flops": ceilings.median("bf16"),
            "fp32_flops": ceilings.median("fp32"),
            "copy_bytes_per_second": ceilings.median("copy"),
            "fastest": name,
        },
        "contenders": [_one(each, baseline, most) for each in found],
    }


def _one(found: Measured, baseline: Measured | None, most: float) -> dict[str, Any]:
    s = found.contender.settings
    work = flop(s.ordering, s.architecture)
    return {
        "name": found.contender.name,
        "precision": found.precision,
        "threads": found.threads,
        "batch_size": s.batch_size,
        "bn_batch_size": s.bn_batch_size,
        "images_per_second": found.speed,
        "slowest": min(found.speeds),
        "fastest": max(found.speeds),
        "turns": found.speeds,
        "seconds_per_iteration": median(found.seconds),
        "ratio": found.ratio(baseline) if baseline else None,
        "share_of_ceiling": found.speed * work / most,
        "peak_bytes": found.peak,
        "own_bytes": found.own,
        "time": found.shares,
    }


def show(found: dict[str, Any], console: Console) -> None:
    """One depth: who was how fast, what it took, and where the time went."""
    top = found["ceiling"]
    table = Table(
        "contender", "images/s", "min to max", "ratio", "of ceiling", "memory", "ms/iteration",
        title=f"{found['variant']}-{found['depth']}", title_justify="left", box=None,
        pad_edge=False,
    )  # fmt: skip
    for one in found["contenders"]:
        table.add_row(
            f"{one['name']} ({one['precision']}, {one['batch_size']}/{one['bn_batch_size']}, "
            f"{pluralize(one['threads'], 'thread')})",
            f"{one['images_per_second']:,.0f}",
            f"{one['slowest']:,.0f} to {one['fastest']:,.0f}",
            "–" if one["ratio"] is None else f"{one['ratio']:.2f}",
            f"{one['share_of_ceiling']:.0%}",
            "–" if one["own_bytes"] is None else f"{one['own_bytes'] / 2**20:,.0f} MiB",
            f"{1e3 * one['seconds_per_iteration']:,.1f}",
        )
    console.print(table)
    shown = [name for name in HEADINGS if any(name in one["time"] for one in found["contenders"])]
    where = Table("time in", *shown, box=None, pad_edge=False)
    for one in found["contenders"]:
        where.add_row(one["name"], *(f"{one['time'].get(name, 0):.0%}" for name in shown))
    console.print(where)
    console.print(
        f"Ceiling: matrix product {top['bf16_flops'] / 1e9:,.0f} GFLOP/s in bf16, "
        f"{top['fp32_flops'] / 1e9:,.0f} in fp32; copy {top['copy_bytes_per_second'] / 1e9:.1f} "
        f"GB/s. Of ceiling: {found['flop_per_image'] / 1e9:.2f} GFLOP an image, against "
        f"{top['fastest']}.\n",
        highlight=False,
    )


def fit(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of an iteration as a straight line over depth, per contender and kind of unit.

    Only where there are three depths or more: a line goes through any two.
    """
    groups: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for found in records:
        for one in found["contenders"]:
            point = found["depth"], 1e3 * one["seconds_per_iteration"]
            groups.setdefault((one["name"], found["unit"]), []).append(point)
    fits = []
    for (name, unit), points in groups.items():
        depths, times = zip(*points, strict=True)
        if len(set(depths)) < 3:
            continue
        slope, start = linear_regression(depths, times)
        fits.append(
            {"name": name, "unit": unit, "ms_per_layer": slope, "ms_at_zero": start,
             "r_squared": correlation(depths, times) ** 2, "depths": list(depths)}
        )  # fmt: skip
    return fits


def show_fits(fits: Sequence[dict[str, Any]], console: Console) -> None:
    for one in fits:
        console.print(
            f"{one['name']}, {one['unit']} units: {one['ms_at_zero']:+.1f} ms "
            f"+ {one['ms_per_layer']:.2f} ms a layer, R² = {one['r_squared']:.4f}.",
            highlight=False,
        )


# --- the floor ------------------------------------------------------------------------------------


def bench_floor(asked: Asked, depths: Sequence[int], how: How) -> None:
    """What must be computed and moved, and the least time that this takes here."""
    _check_device(how.device)
    planned = [contenders(asked, depth)[0].settings for depth in depths]
    _teller()("Measuring the ceiling, a few seconds …")
    ceilings = Ceilings()
    with at_work([None], how.device, asked.threads) as (top,):
        top.answer()
        for _ in range(min(how.rounds, 5)):
            ceilings.turns.append(top.ask(do="run")["ceiling"])
    flops, copy = ceilings.flops[1], ceilings.median("copy")
    floors = [(s, floor(s.ordering, s.architecture, s.batch_size)) for s in planned]
    if how.as_json:
        rows = [_floor_record(s, each, flops, copy) for s, each in floors]
        return _print_json({"format": FORMAT, "flops": flops, "copy": copy, "floors": rows})
    console = console_for_output()
    table = Table(
        "network", "batch", "GFLOP", "computing", *(f"{way}: GB" for way in PASSES),
        *(f"{way}: ms" for way in PASSES), *(f"{way}: images/s" for way in PASSES),
        box=None, pad_edge=False,
    )  # fmt: skip
    for s, each in floors:
        least = {way: each.seconds(way, flops, copy) for way in PASSES}
        table.add_row(
            f"{s.variant}-{s.depth}", str(s.batch_size), f"{each.flop / 1e9:,.0f}",
            f"{1e3 * each.flop / flops:,.0f} ms",
            *(f"{each.moved[way] / 1e9:.2f}" for way in PASSES),
            *(f"{1e3 * least[way]:,.0f}" for way in PASSES),
            *(f"{s.batch_size / least[way]:,.0f}" for way in PASSES),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"At {flops / 1e9:,.0f} GFLOP/s ({ceilings.flops[0]}) and {copy / 1e9:.1f} GB/s copied; "
        "activations of 2 bytes. GB: what BN, ReLU and additions move.",
        highlight=False,
    )
    return None


def _floor_record(s: Settings, found: Floor, flops: float, copy: float) -> dict[str, Any]:
    return {
        "variant": s.variant, "depth": s.depth, "batch_size": s.batch_size, "flop": found.flop,
        "moved_bytes": found.moved,
        "seconds": {way: found.seconds(way, flops, copy) for way in PASSES},
    }  # fmt: skip


# --- jobs × threads -------------------------------------------------------------------------------


def bench_sweep(asked: Asked, depths: Sequence[int], how: How) -> None:
    """One run on all cores against several on a share each, in turn; which does most in all.

    Raises:
        UserError: a GPU was asked for: there `--per-gpu` says how many runs share one.
    """
    if how.device not in ("auto", "cpu"):
        raise UserError("--sweep shares out the cores of the processor; leave --device out.")
    cores = available_cores()
    say = _teller()
    records: list[dict[str, Any]] = []
    plans = [(depth, contenders(asked, depth)[0].settings) for depth in depths]
    for depth, settings in plans:
        shares = splits(cores)
        say(f"{asked.variant}-{depth}: {' against '.join(map(_in_words, shares))}; starting …")
        speeds = _measure_splits(settings, shares, how, say)
        best = max(shares, key=lambda share: median(speeds[share]))
        records.append(
            {
                "variant": settings.variant, "depth": depth, "cores": cores,
                "jobs": best[0], "threads": best[1],
                "splits": [{"jobs": j, "threads": t, "images_per_second": median(speeds[j, t]),
                            "turns": speeds[j, t]} for j, t in shares],
            }
        )  # fmt: skip
    if how.as_json:
        return _print_json({"format": FORMAT, "sweeps": records})
    for one in records:
        for each in one["splits"]:
            print(
                f"{one['variant']}-{one['depth']}  {_in_words((each['jobs'], each['threads']))}: "
                f"{each['images_per_second']:,.0f} images/s in all "
                f"({min(each['turns']):,.0f} to {max(each['turns']):,.0f})"
            )
        print(f"Best: resvar sweep … --jobs {one['jobs']}")
    return None


def splits(cores: int) -> list[tuple[int, int]]:
    """Jobs × threads that use all cores: 1, 2, 4 … jobs, and one per core."""
    jobs = {2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores}
    return [(count, cores // count) for count in sorted(jobs)]


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _measure_splits(
    settings: Settings, shares: Sequence[tuple[int, int]], how: How, say: Callable[[str], None]
) -> dict[tuple[int, int], list[float]]:
    """Images per second of all jobs together, turn by turn, for each split."""
    speeds: dict[tuple[int, int], list[float]] = {share: [] for share in shares}
    groups: dict[tuple[int, int], list[Worker]] = {}
    everyone = [
        Contender(_in_words(share), settings, share[1]) for share in shares for _ in range(share[0])
    ]
    with at_work(list(everyone), "cpu", None) as workers:
        rest = list(workers)
        for share in shares:
            groups[share], rest = rest[: share[0]], rest[share[0] :]
        for worker in workers:
            worker.answer()
        turns = {}
        for share, group in groups.items():
            together(group, 2)
            turns[share] = max(1, round(how.seconds / together(group, 1)))
        say(f"{how.rounds} rounds: about {how.rounds * len(shares) * how.seconds:.0f} s or more.")
        for number in range(how.rounds):
            for share, group in groups.items():
                images = turns[share] * share[0] * settings.batch_size
                speeds[share].append(images / together(group, turns[share]))
            say(f"round {number + 1} of {how.rounds}")
    return speeds


def _in_words(share: tuple[int, int]) -> str:
    jobs, threads = share
    return f"{pluralize(jobs, 'job')} × {pluralize(threads, 'thread')}"


# --- around ---------------------------------------------------------------------------------------


def _check_device(device: str) -> None:
    """Refuse a device that is not there, before any process is started.

    `auto` and `cpu` are always there: torch, whose loading takes seconds, need not be asked.
    """
    if device not in ("auto", "cpu"):
        from resvar.training.machine import choose_device

        choose_device(device)


def _teller() -> Callable[[str], None]:
    """What is going on goes to stderr, so that stdout holds the figures alone."""
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return say


def _print_json(found: dict[str, Any]) -> None:
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")
