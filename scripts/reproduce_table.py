"""Table 2 of the paper from nothing: get the data, train the ten cells, report.

`make reproduce-table` calls this. Each step is a `resvar` command that can be typed alone, and is
printed before it runs. Typed again, everything goes on where it stopped.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import torch

from resvar.files import configs

PAPER = "the paper's protocol, 64,000 iterations"
OTHERS = "NOT the paper's protocol: its figures are not comparable with the published ones"


def main() -> int:
    """Run the steps; the exit code of the first that fails."""
    arguments = parse()
    gpu = torch.cuda.is_available()
    protocol = arguments.protocol or ("paper" if gpu else "quick")
    seeds = arguments.seeds or ("5" if gpu else "1")
    runs = Path(arguments.runs)
    print(
        f"Table 2 of He et al. 2016: five orderings at ResNet-110 and ResNet-164, {seeds} seed(s) "
        f"each, on {torch.cuda.get_device_name() if gpu else 'the processor'}.\n"
        f"Protocol '{protocol}': {PAPER if protocol == 'paper' else OTHERS}.\n"
        "Another: make reproduce-table PROTOCOL=paper|short|quick SEEDS=N",
        flush=True,
    )
    table = configs() / "sweeps" / "table2.yaml"
    jobs = ["--jobs", arguments.jobs] if arguments.jobs else []
    archive = ["--archive", arguments.archive] if arguments.archive else []
    report = runs / Path(protocol).stem
    steps = [
        ["data", *archive],
        ["sweep", str(table), "--protocol", protocol, "--seeds", seeds, "--out", str(runs), *jobs],
        ["report", str(report), "--format", "markdown", "--out", str(report / "report.md")],
        ["report", str(report), "--format", "html", "--out", str(report / "report.html")],
        ["report", str(report)],
    ]
    for step in steps:
        print(f"\n$ resvar {' '.join(step)}", flush=True)
        if code := call([sys.executable, "-m", "resvar", *step]):
            return code
    return 0


def call(command: list[str]) -> int:
    """The exit code of a command; Ctrl-C and SIGTERM are its to answer, with a checkpoint."""
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal has told the command itself
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    return process.wait()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--protocol", help="paper, short or quick; default: paper on a GPU, else quick"
    )
    parser.add_argument("--seeds", help="how many; default: 5 on a GPU, else 1")
    parser.add_argument("--jobs", help="runs at a time")
    parser.add_argument("--archive", help="a local archive of CIFAR-10 instead of the download")
    parser.add_argument("--runs", default="runs", help="the folder of all runs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
