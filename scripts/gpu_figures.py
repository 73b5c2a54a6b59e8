"""The claims of check_gpu.py about time: what a GPU needs for an update.

Each check runs in a process of its own, on random images, as `resvar bench` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from gpu_claims import Case, Finding, Verdict, found

from resvar.bench.contenders import Contender
from resvar.bench.profile import DeviceWork, device_work, launches, shares
from resvar.bench.turns import run_together, started_workers, take_turns
from resvar.bench.worker import PROFILED, Training
from resvar.console import percent
from resvar.sweeps.slots import VISIBLE, Slot, mps_advice
from resvar.training.machine import device_name

CARD, DEPTH = "H100", 110
"""For which figures are wanted."""

TURNS, ROUND = 5, 50
"""Turns of each measurement, and updates of a turn of runs side by side."""

SHOWN, NAME = 25, 42
"""Kernels in a table, and the width of their names."""

Range = tuple[float | None, float | None]
"""The least and the most that is wanted."""


def speed(case: Case, *how: str, wanted: Mapping[str, Range], table: bool = False) -> Finding:
    """The images per second of one run, and the kernels of an update."""
    settings = case.settings(*how)
    training = Training(Contender("", settings), case.device)
    training.warm_up()
    updates = max(1, round(3 / training.run(3)))  # in a turn of a second
    seconds = median(training.run(updates) / updates for _ in range(TURNS))
    events = training.events()
    work = device_work(events, PROFILED)
    figures = {
        "images_per_second": settings.batch_size / seconds,
        **(launches(work) if case.device.type == "cuda" else {}),
        "milliseconds": 1e3 * seconds,
        "kernel_milliseconds": sum(one.microseconds for one in work) / 1e3,
        **{f"share of {heading}": part for heading, part in device_shares(events).items()},
    }
    lines = [*kernel_table(work), *time_lines(figures)] if table and work else []
    return replace(judged(case, figures, wanted), kernels=work, lines=lines)


def several(case: Case, *how: str, runs: int, wanted: Mapping[str, Range]) -> Finding:
    """The images per second of several runs that share the GPU, in total."""
    if advice := service_advice():
        return Finding("not checked", advice)
    alone, together = side_by_side(case, runs, how)
    figures = {"images_per_second": together, "images_per_second_alone": alone}
    return judged(case, figures, wanted)


def packing_pays(case: Case) -> Finding:
    """Two runs that share the GPU are faster together than one alone (`--per-gpu 2`)."""
    if advice := service_advice():
        return Finding("not checked", advice)
    alone, both = side_by_side(case, 2)
    return pair(alone, both, 1.0, both / alone, "in total")


def faster(case: Case, new: tuple[str, ...], old: tuple[str, ...]) -> Finding:
    """`new` is at least a tenth faster than `old`, measured in turns."""
    group = [Contender(" ".join(how) or "default", case.settings(*how)) for how in (old, new)]
    (before, after), _ = take_turns(
        group, str(case.device), None, TURNS, 1.0, lambda _: None, details=False
    )
    return pair(before.speed, after.speed, 1.1, after.ratio(before), f"(median of {TURNS} turns)")


def pair(before: float, after: float, least: float, ratio: float, note: str) -> Finding:
    evidence = f"{before:,.0f} → {after:,.0f} images/s {note}, {ratio:.2f} ×"
    return found(ratio > least, evidence, {"before": before, "after": after, "ratio": ratio})


def side_by_side(case: Case, runs: int, how: Sequence[str] = ()) -> tuple[float, float]:
    """Images per second of one run alone, and of `runs` runs together, in total."""
    settings = case.settings(*how)
    crowd = [Contender(f"run {n}", settings) for n in range(runs)]
    with started_workers(crowd, str(case.device)) as workers:
        for worker in workers:
            worker.answer()
            worker.ask(do="warm up")
        run_together(workers, 10)
        alone, together = [], []
        for _ in range(TURNS):
            alone.append(ROUND * settings.batch_size / run_together(workers[:1], ROUND))
            images = runs * ROUND * settings.batch_size
            together.append(images / run_together(workers, ROUND))
    return median(alone), median(together)


def service_advice() -> str | None:
    """What to do where NVIDIA's multi-process service does not answer; None where it does."""
    return mps_advice(2 * [Slot("shared", 1, "cuda", {VISIBLE: "0"})])


# --- verdicts and tables --------------------------------------------------------------------------

LABELS = {
    "images_per_second": "images/s",
    "images_per_second_alone": "images/s of one run alone",
    "kernels": "kernels an update",
}
"""Of the figures in a line of evidence."""


def judged(case: Case, figures: Mapping[str, float | None], wanted: Mapping[str, Range]) -> Finding:
    """The figures beside those wanted; a verdict only where they are wanted."""
    wanted = wanted if case.depth == DEPTH and not case.overrides else {}
    parts, verdicts = [], set[Verdict]()
    for name, label in LABELS.items():
        if name not in figures:
            continue
        value = figures[name]
        text = f"{label} unknown" if value is None else f"{value:,.0f} {label}"
        if name in wanted:
            least, most = wanted[name]
            text += f" (wanted on an {CARD}: {sign_and_limit(least, most)})"
            verdicts.add(verdict_of(value, least, most))
        parts.append(text)
    verdict: Verdict = "figure"
    if verdicts and CARD in device_name(case.device):
        verdict = next(one for one in ("FAILS", "not checked", "holds") if one in verdicts)
    return Finding(verdict, ", ".join(parts), figures)


def verdict_of(value: float | None, least: float | None, most: float | None) -> Verdict:
    if value is None:
        return "not checked"
    inside = (least is None or value >= least) and (most is None or value <= most)
    return "holds" if inside else "FAILS"


def sign_and_limit(least: float | None, most: float | None) -> str:
    return f"≥ {least:,.0f}" if least is not None else f"≤ {most:,.0f}"


def kernel_table(work: Sequence[DeviceWork]) -> list[str]:
    """The kernels that take longest: launches of an update × mean time = sum."""
    whole = sum(one.microseconds for one in work)
    shown, rest = [*work[:SHOWN]], work[SHOWN:]
    if rest:
        count, time = sum(one.count for one in rest), sum(one.microseconds for one in rest)
        shown.append(DeviceWork(f"{len(rest)} others", count, time))
    return [
        f"  {short(one.name):{NAME}} {one.count:5,.0f} × {one.microseconds / one.count:6.1f} µs = "
        f"{one.microseconds / 1e3:6.2f} ms {percent(100 * one.microseconds / whole, 0):>5}"
        for one in shown
    ]


def short(name: str, width: int = NAME) -> str:
    """A C++ name without its arguments and namespaces, cut in the middle to `width`."""
    name = re.sub(r"\((?!anonymous).*$|^void |\(anonymous namespace\)::|\b\w+::", "", name)
    cut = width // 3
    return name if len(name) <= width else f"{name[: width - cut - 1]}…{name[-cut:]}"


def device_shares(events: Sequence[Any]) -> dict[str, float]:
    here = (one for one in events if one.device_type.name == "CPU")
    return shares(here, lambda one: one.self_device_time_total)


def time_lines(figures: Mapping[str, float | None]) -> list[str]:
    """How long an update and its kernels take, and what for; the rest is between the kernels."""
    parts = [
        f"{name.removeprefix('share of ')} {percent(100 * part, 0)}"
        for name, part in figures.items()
        if name.startswith("share of ") and part
    ]
    return [
        f"  An update takes {figures['milliseconds']:.1f} ms. Launched one by one, its kernels run "
        f"for {figures['kernel_milliseconds']:.1f} ms:",
        f"  {', '.join(parts)}.",
    ]
