"""Let one sweep do very many very small runs, and watch what its process holds.

    python scripts/soak.py --runs 500

Prints the memory, open files, threads and children of the sweep's process, at the beginning, every
tenth of the way and at the end. Leaves with 1 where any of them grew, a process was left over, or a
run was not done exactly once. Each run is a process of its own that loads torch, so that 500 take
about twenty minutes on two cores. Needs a checkout and Linux.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.long.soak import Sample, soak
from tests.support.commands import Commands
from tests.support.tiny import make_marked_cifar


def main() -> int:
    """Soak as asked; 0 if nothing grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=500, help="how many; default: 500")
    runs = parser.parse_args().runs
    if runs < 10:
        parser.error("--runs must be at least 10")
    print("runs done  memory (MB)  open files  threads  children")
    said = -1

    def tell(sample: Sample) -> None:
        nonlocal said
        if sample.done * 10 // runs > said:
            said = sample.done * 10 // runs
            print(
                f"{sample.done:9}  {sample.memory / 2**20:11.2f}  {sample.files:10}  "
                f"{sample.threads:7}  {sample.children:8}",
                flush=True,
            )

    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        make_marked_cifar(Path(name) / "data")
        found = soak(Commands(Path(name) / "data"), Path(name) / "runs", runs, tell=tell)
    before, after = (value / 2**20 for value in found.medians("memory"))
    print(
        f"{runs} runs in {found.seconds / 60:.1f} minutes; memory {before:.2f} MB in the first "
        f"fifth, {after:.2f} MB in the last (medians of {len(found.samples)} looks)"
    )
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
