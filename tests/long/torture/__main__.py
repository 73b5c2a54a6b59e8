"""Kill trainings again and again, and compare their outcome with an undisturbed one.

    python -m tests.long.torture --kills 200
    python -m tests.long.torture --kills 20 --data /folder/with/cifar
    python -m tests.long.torture --kills 30 --sweep
    python -m tests.long.torture --damage 3000
    python -m tests.long.torture --reads 10000

A tiny run (ResNet-8, 14 iterations) is killed by SIGKILL and SIGTERM and started again, until it
ends; then weights, momentum, predictions, metrics and result must equal those of an undisturbed
run, bit for bit. A third of the kills falls at named places in the code, a third anywhere in a
process's life, a third anywhere after it has loaded. With --sweep a sweep of four runs with two
jobs is killed instead: each time all its processes must end, and in the end every run must be there
exactly once. With --damage the newest checkpoint of a stopped run is damaged so many times: loading
must notice it and use the previous one. With --reads a run is read so many times while it is
stopped, killed, resumed and started over: no read may find it damaged.

Exits with 1 if anything differs. Needs a checkout and Linux or macOS; --sweep reads /proc and so
needs Linux.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.long.torture.checkpoints import torture_checkpoints
from tests.long.torture.kills import Tally
from tests.long.torture.readers import read_while_training
from tests.long.torture.runs import Victim, torture_runs
from tests.long.torture.sweeps import torture_sweep
from tests.support.commands import TINY, Commands, WarmCommands, sets, train
from tests.support.tiny import make_marked_cifar

VARIANTS = ("original", "full-preact")
SEEDS = 2
REAL = sets("eval_every=7")
"""On the real data an evaluation takes seconds: fewer of them."""


def main() -> int:
    """Torture as asked; 0 if everything was survived."""
    asked = parse()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        make_marked_cifar(folder / "data")
        if asked.damage is not None:
            return damage(asked, folder)
        if asked.reads is not None:
            return read(asked, folder)
        if asked.data is not None:
            (folder / "data" / "md5.json").write_text(
                "{}", encoding="utf-8"
            )  # the official files count
        data, md5 = asked.data or folder / "data", folder / "data"
        what = "real CIFAR-10" if asked.data else "made-up images in the official format"
        print(f"{asked.kills} kills, seed {asked.seed}, on {what}", flush=True)
        tally = torture(asked, folder, data, md5)
    print(tally.table())
    things = "sweeps" if asked.sweep else "runs"
    minutes = (time.monotonic() - begun) / 60
    print(f"{tally.verdict}; {tally.ends} {things} brought to their end, {minutes:.1f} minutes")
    for problem in tally.problems:
        print(f"PROBLEM: {problem}")
    return 1 if tally.problems else 0


def torture(asked: argparse.Namespace, folder: Path, data: Path, md5: Path) -> Tally:
    more = REAL if asked.data is not None else []
    if not asked.sweep:
        victim = Victim.undisturbed(WarmCommands(data, md5), train(*more), folder)
        print(
            f"an undisturbed run takes {victim.life:.1f} s, {victim.work:.1f} s of them at work",
            flush=True,
        )
        return torture_runs(victim, folder, asked.kills, asked.seed)
    sweep = [
        "sweep", "--variants", ",".join(VARIANTS), "--depths", "8", "--seeds", str(SEEDS),
        "--jobs", "2", "--device", "cpu", *sets(*TINY, "precision=fp32"), *more,
    ]  # fmt: skip
    runs = [
        Path("paper") / f"{variant}-8" / f"seed-{seed}"
        for variant in VARIANTS
        for seed in range(SEEDS)
    ]
    return torture_sweep(Commands(data, md5), sweep, runs, folder, asked.kills, asked.seed)


def damage(asked: argparse.Namespace, folder: Path) -> int:
    print(f"{asked.damage} damaged files, seed {asked.seed}", flush=True)
    run = folder / "run"
    killed = Commands(folder / "data").run(
        *train("--out", str(run)), cwd=folder, RESVAR_TEST_KILL="iteration:8"
    )
    if killed.code != -signal.SIGKILL:
        raise RuntimeError(f"the run did not get to its second checkpoint: {killed}")
    found = torture_checkpoints(run, asked.damage, asked.seed)
    print(f"{found.table()}\n{found.verdict}")
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    return 1 if found.problems or found.refused != found.noticed else 0


def read(asked: argparse.Namespace, folder: Path) -> int:
    print(f"{asked.reads} reads, seed {asked.seed}", flush=True)
    reads = read_while_training(folder, asked.reads, asked.seed)
    print(f"{reads.table()}\n{reads.verdict}")
    for problem in reads.problems:
        print(f"PROBLEM: {problem}")
    return 1 if reads.problems else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.long.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=200, help="number of kills; default: 200")
    parser.add_argument("--seed", type=int, help="of the random moments; default: random")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a folder with CIFAR-10; default: made-up images"
    )
    parser.add_argument("--sweep", action="store_true", help="kill a sweep instead of single runs")
    parser.add_argument(
        "--damage", type=int, metavar="TIMES", help="damage checkpoints instead of killing"
    )
    parser.add_argument(
        "--reads", type=int, metavar="TIMES", help="read a run at work instead of killing it"
    )
    asked = parser.parse_args()
    if min(asked.kills, *(n for n in (asked.damage, asked.reads) if n is not None), 1) < 1:
        parser.error("--kills, --damage and --reads must be at least 1")
    if asked.seed is None:
        asked.seed = random.SystemRandom().randrange(10**6)
    return asked


if __name__ == "__main__":
    sys.exit(main())
