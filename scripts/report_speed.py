"""Time and memory that `resvar report` and `resvar status` take for many runs. The run directories
are synthetic, like those that training leaves; each command is timed in a separate process.

    python scripts/report_speed.py --runs 1000
    python scripts/report_speed.py --status --runs 10000

Prints a line per format of the report, or several lines for the status of a sweep in progress.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice, product
from pathlib import Path
from tempfile import TemporaryDirectory

from resvar import rundir
from resvar.config import resolve
from resvar.files import write_json, write_text
from resvar.models.ordering import PAPER_ORDER
from resvar.settings import Settings
from resvar.sweeps.grid import MANIFEST

FORMATS = ("table", "markdown", "json", "html")


def main() -> None:
    arguments = parse()
    with TemporaryDirectory() as folder:
        runs = Path(arguments.keep or folder)
        if arguments.status:
            time_status(runs, arguments.runs, Path(folder) / "status.txt")
            return
        made = make_runs(runs, arguments.runs)
        print(f"{made} synthetic runs of protocol paper, 164 evaluations each")
        for name in arguments.formats.split(","):
            cost = measure(runs, name, Path(folder) / f"report.{name}")
            print(
                f"{name:9} {cost.seconds:6.2f} s, {cost.processor:5.2f} s of processor time, "
                f"{cost.peak / 2**20:5.0f} MiB, {cost.size / 1e6:5.2f} MB written"
            )


def time_status(runs: Path, wanted: int, out: Path, repeats: int = 5) -> None:
    """Time the status of one sweep several times; the first finds recently written files."""
    working = make_sweep(runs, wanted)
    with ExitStack() as held:
        for folder in working:
            held.enter_context(rundir.locked(folder))
        for _ in range(repeats):
            cost = measure_status(runs, out)
            print(
                f"status of {wanted:,} run directories: {cost.seconds:5.2f} s, "
                f"{cost.processor:5.2f} s of processor time, {cost.peak / 2**20:4.0f} MiB"
            )
    print(out.read_text(encoding="utf-8").splitlines()[-1])


def make_runs(root: Path, wanted: int, protocol: str = "paper") -> int:
    """Write `wanted` finished runs below `root`: ten cells, as many seeds as it takes."""
    for settings in islice(cells(protocol), wanted):
        write_run(root, settings)
    return wanted


def make_sweep(root: Path, wanted: int, protocol: str = "paper") -> list[Path]:
    """Write `wanted` run directories of a sweep in progress, and its list of runs.

    Of every hundred, 70 are done, 10 stopped, 9 failed and 10 diverged; one is returned, for the
    caller to lock like a running run. The list contains a tenth more, which have not begun.
    """
    working, planned = [], []
    for index, settings in enumerate(islice(cells(protocol), wanted + wanted // 10)):
        planned.append(str(settings.directory))
        if index >= wanted:
            continue
        place = index * 37 % 100  # spread over the cells
        folder = write_run(root, settings, None if place < 70 else place - 60)
        if place >= 70:
            write_note(folder, settings, place - 60)
        if 80 <= place < 89:
            note = {"format": 1, "message": "No space left on device", "diverged": False}
            write_json(folder / rundir.FAILURE, note, durable=False)
        if 89 <= place < 99:
            note = {"format": 1, "iteration": 400, "message": "the training loss became nan"}
            write_json(folder / rundir.DIVERGED, note, durable=False)
        if place == 99:
            working.append(folder)
    write_json(root / f"made-up{MANIFEST}", {"format": 1, "runs": planned}, durable=False)
    return working


def write_note(folder: Path, settings: Settings, evaluations: int) -> None:
    done = evaluations * settings.eval_every
    note = {
        "format": 1, "iteration": done, "iterations": settings.iterations,
        "seconds": done * 0.032, "images_per_second": 4000.0,
    }  # fmt: skip
    write_json(folder / rundir.PROGRESS, note, durable=False)
    (folder / rundir.LOCK).write_bytes(b"process 1 on a machine that is made up")


def cells(protocol: str) -> Iterator[Settings]:
    """The ten cells of Table 2 with seed 0, then with seed 1, and so on."""
    known = [
        resolve(
            options={"variant": variant, "depth": depth, "protocol": protocol},
            overrides=["precision=bf16"],
        )
        for depth, variant in product((110, 164), PAPER_ORDER)
    ]
    for seed in count():
        for settings in known:
            yield settings.model_copy(update={"seed": seed})


def write_run(root: Path, settings: Settings, evaluations: int | None = None) -> Path:
    """A run that looks like one of the paper's figure 6: noise, then steps down with the rate.

    Args:
        evaluations: number of evaluations so far; None for a finished run.
    """
    folder = root / settings.directory
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(f"{settings.variant} {settings.depth} {settings.seed}")
    rows = list(islice(curve(settings, chance), evaluations))
    write_text(folder / rundir.CONFIG, settings.to_yaml(), durable=False)
    write_json(folder / rundir.ENVIRONMENT, environment(settings), durable=False)
    rundir.write_metrics(folder / rundir.METRICS, rows)
    if evaluations is None:
        write_json(folder / rundir.RESULT, result(settings, rows), durable=False)
    return folder


def curve(settings: Settings, chance: random.Random) -> list[dict[str, float]]:
    """The rows of `metrics.csv`."""
    rank = PAPER_ORDER.index(settings.variant) if settings.variant in PAPER_ORDER else 2
    final = (6.6, 8.1, 7.8, 6.7, 6.3)[rank] - (0.7 if settings.depth > 110 else 0)
    total, rows = settings.iterations, []
    for iteration in [*range(settings.eval_every, total, settings.eval_every), total]:
        share = iteration / total
        drops = (share >= 0.5) + (share >= 0.75)
        floor = (9.0, 1.2, 0.0)[drops]
        error = final + floor + 70 * math.exp(-40 * share) + chance.gauss(0, (3, 0.4, 0.12)[drops])
        loss = (0.3, 0.03, 0.012)[drops] * chance.uniform(0.9, 1.1) + 1.6 * math.exp(-25 * share)
        rows.append(
            {
                "iteration": iteration,
                "epoch": iteration * settings.batch_size / 50_000,
                "lr": settings.lr * 0.1**drops,
                "train_loss": loss,
                "train_error": min(100.0, 30 * loss),
                "test_loss": error / 20,
                "test_error": round(min(90.0, max(0.5, error)), 2),
                "images_per_second": 4000.0,
                "seconds": iteration * 0.032,
            }
        )
    return rows


def result(settings: Settings, rows: list[dict[str, float]]) -> dict[str, object]:
    names = ("variant", "depth", "seed", "protocol", "dataset", "iterations", "precision")
    last = {name: rows[-1][name] for name in ("test_error", "train_loss", "train_error", "seconds")}
    return {
        "format": 1,
        **{name: getattr(settings, name) for name in names},
        **last,
        "parameters": 1_727_962,
        "best_test_error": min(row["test_error"] for row in rows),
        "images_per_second": 4000.0,
        "device": "a GPU that is made up",
        "config_hash": settings.hash,
        "commit": "0123456789abcdef0123456789abcdef01234567",
    }


def environment(settings: Settings) -> dict[str, object]:
    """Even seeds on one machine, odd ones on another."""
    return {
        "format": 1, "resvar": "0.1.0", "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False, "python": "3.11.7", "torch": "2.8.0", "numpy": "2.3.1",
        "platform": "Linux", "device": ("GPU A", "GPU B")[settings.seed % 2],
        "device_type": "cuda", "cuda": "12.8", "cpu_capability": "AVX2", "threads": 8,
        "dataset_checksum": "made up",
    }  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Wall and processor time in seconds, peak resident memory and output in bytes."""

    seconds: float
    processor: float
    peak: int
    size: int


LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:], stdout=open(sys.argv[1], "w"))
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""
"""Starts a command and prints its cost. The peak of a process starts with the memory of its parent,
so the parent must be small."""


def measure(runs: Path, format: str, out: Path) -> Cost:
    """The cost of one report."""
    whole = ["--full"] if format == "table" else []
    return timed(["report", str(runs), "--format", format, "--out", str(out), *whole], out)


def measure_status(runs: Path, out: Path) -> Cost:
    """The cost of one status; its output goes to `out`."""
    return timed(["status", str(runs)], out, printed=out)


def timed(command: list[str], written: Path, printed: Path = Path(os.devnull)) -> Cost:
    """The cost of a resvar command, run in a separate process."""
    command = [sys.executable, "-m", "resvar", *command]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, str(printed), *command],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    seconds = time.monotonic() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    processor, peak = done.stdout.split()
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(seconds, float(processor), int(peak) * unit, written.stat().st_size)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="number of runs (1000)")
    parser.add_argument("--formats", default=",".join(FORMATS), help="separated by commas")
    parser.add_argument("--status", action="store_true", help="time `resvar status` instead")
    parser.add_argument("--keep", metavar="DIR", help="create the runs there, and keep them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
