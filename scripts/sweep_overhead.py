"""The overhead of a sweep: its wall time minus the total time of its runs.

    python scripts/sweep_overhead.py --runs 4 --iterations 150

A sweep does a few runs of ResNet-20 one after the other. The `seconds` in their results start when
a run's network is built. The difference is the start of processes, the loading of torch and the
dataset, and the sweep's own estimate: a few seconds per run, however long the run is. Prints these
seconds, and the length of a run for which they are below 2 %. Needs CIFAR-10.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALLOWED = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--depth", default="20")
    options = parser.parse_args()
    sets = [f"iterations={options.iterations}", "milestones=[]", "warmup_iterations=0"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "resvar", "sweep", "--variants", "full-preact",
            "--depths", options.depth, "--seeds", str(options.runs), "--jobs", "1",
            "--device", "cpu", "--out", folder, *(w for s in sets for w in ("--set", s)),
        ]  # fmt: skip
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.monotonic() - begun
        results = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in Path(folder).rglob("result.json")
        ]
    assert len(results) == options.runs
    runs = sum(result["seconds"] for result in results)
    each = (wall - runs) / options.runs
    print(
        f"{options.runs} runs of {runs / options.runs:.1f} s: {wall:.1f} s of wall time, "
        f"{each:.2f} s of overhead per run ({(wall - runs) / runs:.1%}).\n"
        f"That is below {ALLOWED:.0%} for runs longer than {each / ALLOWED:.0f} s."
    )


if __name__ == "__main__":
    main()
