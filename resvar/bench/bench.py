"""`resvar bench`: contenders, the floor, or jobs × threads, as tables or JSON.

Only the worker processes import torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import correlation, linear_regression, median
from typing import Any

from rich.console import Console
from rich.table import Table

from resvar.bench.contenders import BenchOptions, Contender
from resvar.bench.floor import PASSES, Floor, floor, flop
from resvar.bench.profile import HEADINGS
from resvar.bench.turns import Ceilings, Measurement, run_together, started_workers, take_turns
from resvar.config import Settings
from resvar.console import console_for_output, deliver, log, pluralize
from resvar.errors import UserError
from resvar.limits import available_cores

JSON_FORMAT = 1


def bench_contenders(options: BenchOptions) -> None:
    """Contenders in turns, at one depth after the other.

    Raises:
        UserError: an unknown setting, variant, depth or device.
        RunError: a contender's process failed.
    """
    _check_device(options.device)
    groups = [options.contenders(depth) for depth in options.depths]  # refuse before any work
    records = []
    for depth, group in zip(options.depths, groups, strict=True):
        names = ", ".join(one.name for one in group)
        log(f"{options.variant}-{depth}: {names}; starting …")
        found, ceilings = take_turns(
            group, options.device, options.threads, options.rounds, options.seconds, log
        )
        records.append(measurement_record(found, ceilings))
        if not options.as_json:
            _print_measurements(records[-1], console_for_output())
    fits = fit_depths(records)
    if options.as_json:
        _print_json(benchmarks=records, fits=fits)
        return
    for one in fits:
        _print_sentence(
            f"{one['name']}, {one['unit']} units: {one['ms_at_zero']:+.1f} ms "
            f"+ {one['ms_per_layer']:.2f} ms a layer, R² = {one['r_squared']:.4f}."
        )


def measurement_record(found: Sequence[Measurement], ceilings: Ceilings) -> dict[str, Any]:
    """The JSON of one depth: seconds, bytes, images/s, FLOP/s."""
    first = found[0].contender.settings
    baseline = next((one for one in found if one.contender.plain), None)
    fastest, most = ceilings.flops
    return {
        "variant": first.variant,
        "depth": first.depth,
        "unit": first.architecture.unit,
        "flop_per_image": flop(first.ordering, first.architecture),
        "ceiling": {
            "bf16_flops": ceilings.median("bf16"),
            "fp32_flops": ceilings.median("fp32"),
            "copy_bytes_per_second": ceilings.median("copy"),
            "fastest": fastest,
        },
        "contenders": [_contender_record(each, baseline, most) for each in found],
    }


def _contender_record(
    found: Measurement, baseline: Measurement | None, most: float
) -> dict[str, Any]:
    s = found.contender.settings
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
        "share_of_ceiling": found.speed * flop(s.ordering, s.architecture) / most,
        "peak_bytes": found.peak,
        "own_bytes": found.own,
        "time": found.shares,
    }


def _print_measurements(found: dict[str, Any], console: Console) -> None:
    """One depth: speed, memory, and the shares of the time."""
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
    shares = Table("time in", *shown, box=None, pad_edge=False)
    for one in found["contenders"]:
        shares.add_row(one["name"], *(f"{one['time'].get(name, 0):.0%}" for name in shown))
    console.print(shares)
    top = found["ceiling"]
    console.print(
        f"Ceiling: matrix product {top['bf16_flops'] / 1e9:,.0f} GFLOP/s in bf16, "
        f"{top['fp32_flops'] / 1e9:,.0f} in fp32; copy {top['copy_bytes_per_second'] / 1e9:.1f} "
        f"GB/s. Of ceiling: {found['flop_per_image'] / 1e9:.2f} GFLOP an image, against "
        f"{top['fastest']}.",
        end="\n\n",
        highlight=False,
    )


def fit_depths(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of an iteration as a straight line over depth, per contender and kind of unit.

    Only from three depths on: a line passes through any two.
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


# --- the floor ------------------------------------------------------------------------------------


def bench_floor(options: BenchOptions) -> None:
    """FLOP and memory traffic of an iteration, and the least time for them on this machine."""
    _check_device(options.device)
    planned = [options.contenders(depth)[0].settings for depth in options.depths]
    log("Measuring the ceiling, a few seconds …")
    ceilings = Ceilings()
    with started_workers([None], options.device, options.threads) as (top,):
        top.answer()
        for _ in range(min(options.rounds, 5)):
            ceilings.measure(top)
    name, flops = ceilings.flops
    copy = ceilings.median("copy")
    floors = [(s, floor(s.ordering, s.architecture, s.batch_size)) for s in planned]
    records = [_floor_record(s, each, flops, copy) for s, each in floors]
    if options.as_json:
        _print_json(flops=flops, copy=copy, floors=records)
        return
    table = Table(
        "network", "batch", "GFLOP", "computing", *(f"{way}: GB" for way in PASSES),
        *(f"{way}: ms" for way in PASSES), *(f"{way}: images/s" for way in PASSES),
        box=None, pad_edge=False,
    )  # fmt: skip
    for one in records:
        moved, seconds = one["moved_bytes"].values(), one["seconds"].values()
        table.add_row(
            f"{one['variant']}-{one['depth']}", str(one["batch_size"]), f"{one['flop'] / 1e9:,.0f}",
            f"{1e3 * one['flop'] / flops:,.0f} ms",
            *(f"{each / 1e9:.2f}" for each in moved),
            *(f"{1e3 * each:,.0f}" for each in seconds),
            *(f"{one['batch_size'] / each:,.0f}" for each in seconds),
        )  # fmt: skip
    console = console_for_output()
    console.print(table)
    console.print(
        f"At {flops / 1e9:,.0f} GFLOP/s ({name}) and {copy / 1e9:.1f} GB/s copied; "
        "activations of 2 bytes. GB: what BN, ReLU and additions move.",
        highlight=False,
    )


def _floor_record(s: Settings, found: Floor, flops: float, copy: float) -> dict[str, Any]:
    return {
        "variant": s.variant, "depth": s.depth, "batch_size": s.batch_size, "flop": found.flop,
        "moved_bytes": found.moved,
        "seconds": {way: found.seconds(way, flops, copy) for way in PASSES},
    }  # fmt: skip


# --- jobs × threads -------------------------------------------------------------------------------

Split = tuple[int, int]
"""Jobs at the same time, and the threads of each."""


def bench_sweep(options: BenchOptions) -> None:
    """One run on all cores against several with a share of them each, in turns.

    Raises:
        UserError: a GPU was requested; `--per-gpu` determines how many runs share one.
    """
    if options.device not in ("auto", "cpu"):
        raise UserError("--sweep shares out the cores of the processor; leave --device out.")
    cores = available_cores()
    records = []
    planned = [options.contenders(depth)[0].settings for depth in options.depths]
    for settings in planned:
        speeds = _measure_splits(settings, core_splits(cores), options)
        jobs, threads = max(speeds, key=lambda split: median(speeds[split]))
        splits = [
            {"jobs": j, "threads": t, "images_per_second": median(turns), "turns": turns}
            for (j, t), turns in speeds.items()
        ]
        records.append(
            {"variant": settings.variant, "depth": settings.depth, "cores": cores, "jobs": jobs,
             "threads": threads, "splits": splits}
        )  # fmt: skip
        if not options.as_json:
            _print_splits(records[-1])
    if options.as_json:
        _print_json(sweeps=records)


def core_splits(cores: int) -> list[Split]:
    """Jobs × threads that use all cores: 1, 2, 4 … jobs, and one per core."""
    jobs = {2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores}
    return [(count, cores // count) for count in sorted(jobs)]


def _measure_splits(
    settings: Settings, splits: Sequence[Split], options: BenchOptions
) -> dict[Split, list[float]]:
    """Images per second of all jobs of a split together, turn by turn."""
    labels = " against ".join(map(_split_label, splits))
    log(f"{options.variant}-{settings.depth}: {labels}; starting …")
    jobs = [split for split in splits for _ in range(split[0])]
    contenders = [Contender(_split_label(split), settings, split[1]) for split in jobs]
    speeds: dict[Split, list[float]] = {split: [] for split in splits}
    with started_workers(contenders, "cpu") as workers:
        for worker in workers:
            worker.answer()
        groups, iterations = {}, {}
        for split in splits:
            group = [worker for worker, own in zip(workers, jobs, strict=True) if own == split]
            run_together(group, 2)
            iterations[split] = max(1, round(options.seconds / run_together(group, 1)))
            groups[split] = group
        whole = options.rounds * len(splits) * options.seconds
        log(f"{options.rounds} rounds: about {whole:.0f} s or more.")
        for number in range(options.rounds):
            for split, group in groups.items():
                images = iterations[split] * len(group) * settings.batch_size
                speeds[split].append(images / run_together(group, iterations[split]))
            log(f"round {number + 1} of {options.rounds}")
    return speeds


def _print_splits(record: dict[str, Any]) -> None:
    for one in record["splits"]:
        label = _split_label((one["jobs"], one["threads"]))
        _print_sentence(
            f"{record['variant']}-{record['depth']}  {label}: "
            f"{one['images_per_second']:,.0f} images/s in all "
            f"({min(one['turns']):,.0f} to {max(one['turns']):,.0f})"
        )
    _print_sentence(f"Best: resvar sweep … --jobs {record['jobs']}")


def _split_label(split: Split) -> str:
    jobs, threads = split
    return f"{pluralize(jobs, 'job')} × {pluralize(threads, 'thread')}"


# --- common to all --------------------------------------------------------------------------------


def _check_device(device: str) -> None:
    """Refuse a missing device before any process starts; `auto` and `cpu` need no torch."""
    if device not in ("auto", "cpu"):
        from resvar.training.machine import choose_device

        choose_device(device)


def _print_sentence(line: str) -> None:
    console_for_output().print(line, highlight=False, soft_wrap=True)


def _print_json(**values: Any) -> None:
    deliver(json.dumps({"format": JSON_FORMAT, **values}, indent=2) + "\n", None)
