"""Bad input by the thousand: damaged and hostile files are read, and each must end in words.

    python -m tests.long.fuzz --cases 1000

Hypothesis makes so many cases of each kind (settings, orderings, protocols, sweeps, --set,
result.json, metrics.csv and other records, odd files, checkpoints, archives) from valid ones. A
case fails if it leaves a traceback, takes over 5 s of processor time or a gigabyte of memory, or
changes anything outside its folder; the program then ends with an error that shows the smallest
such case. Prints
the outcomes of the cases, the slowest, and the most memory of one. Needs a checkout and a POSIX
system; memory is measured on Linux.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.long.fuzz.targets import Fuzz


def main() -> int:
    """Fuzz as asked; 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.long.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=1000, help="of each kind; default: 1000")
    parser.add_argument("--seed", type=int, help="default: random")
    parser.add_argument("--only", metavar="KIND", help="one kind only, such as checkpoint.pt")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    sys.dont_write_bytecode = True  # a late import would write outside the folder
    torch.set_num_threads(1)
    begun, total = time.monotonic(), 0
    print(f"seed {seed}")
    print(f"{'kind':20} {'cases':>7} {'slowest':>9} {'memory':>9}  what became of them")
    most = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        fuzz = Fuzz(Path(name))
        for kind in [asked.only] if asked.only else fuzz.targets:
            found = fuzz.attack(kind, asked.cases, seed)
            total, most = total + found.cases, max(most, found.memory)
            words = ", ".join(f"{count} {word}" for word, count in sorted(found.words.items()))
            figures = f"{found.cases:7,} {found.slowest:7.2f} s {found.memory / 1e6:6.0f} MB"
            print(f"{kind:20} {figures}  {words}", flush=True)
    minutes = (time.monotonic() - begun) / 60
    print(f"{total:,} cases in {minutes:.1f} minutes; a case took {most / 1e6:,.0f} MB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
