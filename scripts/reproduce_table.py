"""Table 2 of the paper from nothing: get the data, train the ten cells, report.

`make reproduce-table` calls this. Each step is a `resvar` command that can be typed alone, and is
printed before it runs. Rerun it to resume where it stopped. Where CIFAR-10 cannot be downloaded,
the table is made from the sample in the package.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import torch

PAPER = "The paper's protocol: 64,000 iterations."
OTHERS = "NOT the paper's protocol: not comparable with the published figures."

SAMPLE = """
================================================================================
CIFAR-10 could not be downloaded, so this table is made from a sample that comes
with resvar: 2,000 training and 1,000 test images of CIFAR-10. It shows that
everything works, and SAYS NOTHING ABOUT THE PAPER.

To use the real data (170 MB), do one of these and rerun the same command:
  - connect this machine to the network, or set https_proxy;
  - copy cifar-10-python.tar.gz from another machine, and add
    DATA_ARCHIVE=/path/to/cifar-10-python.tar.gz
Runs on the real data are kept apart from those on the sample.
================================================================================"""

FAILED = 1
"""The exit code of `resvar data` where no source can be reached; for wrong input it is 2."""


def main() -> int:
    """Run the steps; the exit code of the first that fails."""
    arguments = parse()
    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else "the processor"
    print(f"Table 2 of He et al. 2016: five orderings at ResNet-110 and ResNet-164.\nOn {where}.")
    archive = ["--archive", arguments.archive] if arguments.archive else []
    code = step("data", *archive)
    sample = code == FAILED and not archive
    if code and not sample:
        return code
    if sample:
        print(SAMPLE)
    code = make_table(arguments, sample, gpu and not sample)
    if sample and code == 0:
        print(SAMPLE)
    return code


def make_table(arguments: argparse.Namespace, sample: bool, long: bool) -> int:
    """Train and report; the exit code of the first step that fails.

    Args:
        long: the paper's protocol and five seeds by default.
    """
    protocol = arguments.protocol or ("paper" if long else "quick")
    seeds = arguments.seeds or ("5" if long else "1")
    print(
        f"\nProtocol {protocol}, seeds: {seeds}.\n{PAPER if protocol == 'paper' else OTHERS}\n"
        "Another: make reproduce-table PROTOCOL=paper|short|quick SEEDS=N\n"
        "The sweep measures this machine first and prints how long it will take."
    )
    dataset = ["--dataset", "sample"] if sample else []
    jobs = ["--jobs", arguments.jobs] if arguments.jobs else []
    report = Path(arguments.runs) / Path(protocol).stem
    plan = ["--protocol", protocol, "--seeds", seeds, *dataset, "--out", arguments.runs, *jobs]
    steps = [
        ["sweep", "table2", *plan],
        ["report", str(report), "--out", str(report / "report.md")],
        ["report", str(report), "--out", str(report / "report.html")],
        ["report", str(report)],
    ]
    return next((code for words in steps if (code := step(*words))), 0)


def step(*words: str) -> int:
    """Print and run a `resvar` command; its exit code.

    Ctrl-C and SIGTERM are for the command to answer, with a checkpoint.
    """
    print(f"\n$ resvar {' '.join(words)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "resvar", *words])
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal has told the command itself
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    return process.wait()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--protocol",
        help="paper, short, quick or a YAML file; default: paper on a GPU with the real data, "
        "else quick",
    )
    parser.add_argument("--seeds", help="default: 5 on a GPU with the real data, else 1")
    parser.add_argument("--jobs", help="runs at a time")
    parser.add_argument("--archive", help="a local archive of CIFAR-10 instead of the download")
    parser.add_argument("--runs", default="runs", help="the folder of all runs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
