"""Start-up time: of the help, and of a run until its first iteration, with the data available.

    python scripts/start_up.py --repeats 5

Prints the median of this many starts, with the fastest and the slowest. Needs CIFAR-10 (see
`resvar data`). For Linux and macOS.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from statistics import median

FIRST_ITERATION = """
import sys, time
from resvar.cli import main
from resvar.training.step import Updater
update = Updater.__call__
def first(*arguments, **named):
    update(*arguments, **named)
    print("FIRST", time.time(), flush=True)
    sys.exit()
Updater.__call__ = first
main(sys.argv[1:])
"""
"""`resvar train` that exits after one update and prints the time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--depth", default="20")
    options = parser.parse_args()
    helps, firsts = [], []
    for _ in range(options.repeats):
        begun = time.time()
        subprocess.run(
            [sys.executable, "-m", "resvar", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        helps.append(time.time() - begun)
        firsts.append(first_iteration(options.depth))
    for what, seconds in (("resvar --help", helps), ("resvar train, first iteration", firsts)):
        print(
            f"{what}: {median(seconds):.2f} s, the median of {len(seconds)} "
            f"({min(seconds):.2f} to {max(seconds):.2f})"
        )


def first_iteration(depth: str) -> float:
    """Seconds from the start of the command to the end of its first update."""
    with tempfile.TemporaryDirectory() as folder:
        train = ["train", "--variant", "full-preact", "--depth", depth, "--out", f"{folder}/run"]
        begun = time.time()
        done = subprocess.run(
            [sys.executable, "-c", FIRST_ITERATION, *train],
            stdout=subprocess.PIPE, encoding="utf-8", check=False,
        )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("FIRST "):
            return float(line.split()[1]) - begun
    raise SystemExit("resvar train did not reach its first iteration")


if __name__ == "__main__":
    main()
