"""`resvar bench`: contenders, the floor, or jobs × threads, as tables or JSON.

Only the worker processes import torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import correlation, linear_regression, median
from typing import Any

from resvar.bench.contenders import BenchOptions, Contender
from resvar.bench.floor import PASSES, Floor, floor, flop
from resvar.bench.profile import HEADINGS
from resvar.bench.turns import Ceilings, Measurement, run_together, started_workers, take_turns
from resvar.console import (
    deliver,
    deliver_drawn,
    duration,
    file_size,
    log,
    per_second,
    percent,
    pluralize,
)
from resvar.errors import UserError
from resvar.limits import available_cores
from resvar.settings import Settings
from resvar.table import Filled, Table, draw_parts, filled, left, right

JSON_FORMAT = 1


def bench_contenders(options: BenchOptions) -> None:
    """Measure contenders in turns, one depth after the other.

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
    fits = fit_depths(records)
    parts = [part for record in records for part in _measurement_parts(record)]
    parts += [
        f"{one['name']}, {one['unit']} units: {one['ms_at_zero']:+.1f} ms "
        f"+ {one['ms_per_layer']:.2f} ms per layer, R² = {one['r_squared']:.4f}."
        for one in fits
    ]
    _deliver_parts(parts, {"benchmarks": records, "fits": fits}, options)


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
        **found.launches,
    }


def _measurement_parts(found: dict[str, Any]) -> Sequence[str | Table]:
    """One depth: speed, memory, and the shares of the time."""
    contenders = found["contenders"]
    kernels = right("kernels", lambda c: c.get("kernels"), ",d")
    speeds = filled(
        f"{found['variant']}-{found['depth']}",
        (
            left("contender", _contender_label, wrap=20),
            right("images/s", lambda c: per_second(c["images_per_second"])),
            *([kernels] if any(c.get("kernels") for c in contenders) else []),
            right("min to max", lambda c: _range(c["slowest"], c["fastest"]), drop=1),
            right("ratio", lambda c: c["ratio"], ".2f"),
            right("of\nceiling", lambda c: percent(100 * c["share_of_ceiling"], 0), drop=3),
            right("memory", lambda c: c["own_bytes"] and file_size(c["own_bytes"]), drop=2),
            right("ms/iteration", lambda c: 1e3 * c["seconds_per_iteration"], ",.1f", drop=4),
        ),
        contenders,
    )
    shown = [name for name in HEADINGS if any(name in c["time"] for c in contenders)]

    def share(name: str) -> Filled:
        drop = int(name in ("addition", "optimizer"))
        return right(name, lambda c: percent(100 * c["time"].get(name, 0), 0), drop=drop)

    columns = (left("time in", lambda c: c["name"], wrap=12), *map(share, shown))
    times: tuple[str | Table, ...] = ("", filled("", columns, contenders)) if shown else ()
    top = found["ceiling"]
    return (
        speeds,
        *times,
        f"Ceiling: matrix product {top['bf16_flops'] / 1e9:,.0f} GFLOP/s in bf16, "
        f"{top['fp32_flops'] / 1e9:,.0f} in fp32; copy {top['copy_bytes_per_second'] / 1e9:.1f} "
        f"GB/s. Of ceiling: {found['flop_per_image'] / 1e9:.2f} GFLOP per image, against "
        f"{top['fastest']}.",
        "",
    )


def _contender_label(one: dict[str, Any]) -> str:
    return (
        f"{one['name']} ({one['precision']}, {one['batch_size']}/{one['bn_batch_size']}, "
        f"{pluralize(one['threads'], 'thread')})"
    )


def _range(lowest: float, highest: float) -> str:
    return f"{per_second(lowest)} to {per_second(highest)}"


def fit_depths(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of an iteration as a straight line over depth, per contender and kind of unit.

    Needs three depths: a line passes through any two.
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
    """FLOP and memory traffic of an iteration, and the least time that they take here."""
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
    least = filled("The least time of an iteration", _floor_columns(flops), records)
    sentence = (
        f"At {flops / 1e9:,.0f} GFLOP/s ({name}) and {copy / 1e9:.1f} GB/s copied; "
        "activations of 2 bytes. GB: memory traffic of BN, ReLU and additions."
    )
    values = {"flops": flops, "copy": copy, "floors": records}
    _deliver_parts((least, sentence), values, options)


def _floor_columns(flops: float) -> list[Filled]:
    """Time and speed for every key of `PASSES`; their derivation is dropped first."""

    def of(key: str, way: str, value: Callable[[dict[str, Any], float], str]) -> Any:
        return lambda record: value(record, record[key][way])

    return [
        left("network", lambda r: f"{r['variant']}-{r['depth']}", wrap=12),
        right("batch", lambda r: r["batch_size"], drop=4),
        right("GFLOP", lambda r: r["flop"] / 1e9, ",.0f", drop=4),
        right("computing:\nms", lambda r: 1e3 * r["flop"] / flops, ",.0f", drop=1),
        *(
            right(f"{way}:\nGB", of("moved_bytes", way, lambda _, n: f"{n / 1e9:.2f}"), drop=3)
            for way in PASSES
        ),
        *(
            right(f"{way}:\nms", of("seconds", way, lambda _, s: f"{1e3 * s:,.0f}"))
            for way in PASSES
        ),
        *(
            right(
                f"{way}:\nimages/s",
                of("seconds", way, lambda r, s: per_second(r["batch_size"] / s)),
                drop=2,
            )
            for way in PASSES
        ),
    ]


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
    """Compare one run on all cores with several that share the cores, in turns.

    Raises:
        UserError: a GPU was requested; `--per-gpu` determines how many runs share one.
    """
    if options.device not in ("auto", "cpu"):
        raise UserError("--sweep divides the cores of the processor; leave out --device.")
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
    parts = [line for record in records for line in _split_lines(record)]
    _deliver_parts(parts, {"sweeps": records}, options)


def core_splits(cores: int) -> list[Split]:
    """Jobs × threads that use all cores: 1, 2, 4 … jobs, and one per core."""
    jobs = {2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores}
    return [(count, cores // count) for count in sorted(jobs)]


def _measure_splits(
    settings: Settings, splits: Sequence[Split], options: BenchOptions
) -> dict[Split, list[float]]:
    """Total images per second of the jobs of each split, turn by turn."""
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
        log(f"{pluralize(options.rounds, 'round')}: about {duration(whole)} or more.")
        for number in range(options.rounds):
            for split, group in groups.items():
                images = iterations[split] * len(group) * settings.batch_size
                speeds[split].append(images / run_together(group, iterations[split]))
            log(f"round {number + 1} of {options.rounds}")
    return speeds


def _split_lines(record: dict[str, Any]) -> Iterator[str]:
    for one in record["splits"]:
        label = _split_label((one["jobs"], one["threads"]))
        yield (
            f"{record['variant']}-{record['depth']}  {label}: "
            f"{per_second(one['images_per_second'])} images/s in total "
            f"({_range(min(one['turns']), max(one['turns']))})"
        )
    yield f"Best: resvar sweep … --jobs {record['jobs']}"


def _split_label(split: Split) -> str:
    jobs, threads = split
    return f"{pluralize(jobs, 'job')} × {pluralize(threads, 'thread')}"


# --- common to all --------------------------------------------------------------------------------


def _check_device(device: str) -> None:
    """Refuse a missing device before any process starts; `auto` and `cpu` need no torch."""
    if device not in ("auto", "cpu"):
        from resvar.training.machine import choose_device

        choose_device(device)


def _deliver_parts(
    parts: Sequence[str | Table], values: Mapping[str, Any], options: BenchOptions
) -> None:
    """Print or write the result: `values` as JSON, or `parts` as text."""
    if options.format == "json":
        text = json.dumps({"format": JSON_FORMAT, **values}, indent=2) + "\n"
        deliver(text, options.out)
        return

    deliver_drawn(lambda console: draw_parts(parts, console), options.out)
