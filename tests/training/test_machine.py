"""The switches of a run, in separate processes: they cannot be undone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from resvar.config import resolve
from resvar.training.execution import Execution

settings = resolve(options={"variant": "full-preact", "depth": 20})
plan = Execution.for_inference(settings, torch.device("cpu"))
plan.prepare_process(keep_memory=sys.argv[1] == "keep")
torch.set_num_threads(1)

def iteration():
    held = [torch.ones(10_000_000) for _ in range(4)]  # 160 MB, page for page
    del held

for _ in range(8):  # pieces that lie between grow the heap in the first two or three
    iteration()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    iteration()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a switch of glibc")
def test_what_was_freed_is_taken_again_without_the_system():
    def faults(how):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, encoding="utf-8", check=True
        )
        return int(done.stdout)

    kept, given_back = faults("keep"), faults("give back")
    # 3 × 160 MB are 117,000 pages of 4 KiB, and 230 where the system gives 2 MiB at a time.
    assert given_back > 200
    assert kept < given_back / 10
