"""Check on a GPU what the tests cannot check without one, claim by claim.

    python scripts/check_gpu.py [--depth 110] [--limit 350] [--out FILE.json]

Claims about bits come first, several at a time, at ResNet-20. Those about time
follow one at a time: how fast ResNet-110 trains, beside the figure wanted on an
H100 (no verdict on another card), and which kernels take the time. Each claim
is checked in a separate process, since torch's switches belong to a process. A
claim for which no time is left is reported as not checked.

Exits with 0 if all claims hold, 1 if one does not or was not checked, 2 if
there is no GPU or the input is wrong. No dataset is needed. From a checkout
that is not installed, set PYTHONPATH=. too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from gpu_claims import (
    Case,
    Finding,
    Verdict,
    captures,
    equals_cpu,
    equals_micro_batches,
    queues_only,
    repeats,
    resumes,
    trains,
)
from gpu_figures import DEPTH, faster, packing_pays, service_advice, several, speed

from resvar.errors import UserError, kind_and_text
from resvar.files import write_json, write_output
from resvar.kernels.ghost_fuse import triton_version
from resvar.models.ordering import PAPER_ORDER
from resvar.sweeps.slots import MPS_CONTROL
from resvar.training.machine import choose_device, device_name
from resvar.training.source import source_version

SMALL = 20
"""The depth where it does not matter."""

LIMIT = 350.0
"""Seconds."""

BITS = 0.5
"""The share of the limit after which no time is spent on claims about bits."""

LEAST = 10.0
"""Seconds; with less time left, no process starts."""

RESERVE = 5.0
"""Seconds before the limit, when checks end."""

SERVICE = 10.0
"""Seconds for the multi-process service to start or to quit."""


VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "KINETO_LOG_LEVEL": "99"}
"""Of each process: for cuBLAS to repeat bit for bit, and for the profiler not to print its log."""


@dataclass(frozen=True)
class Claim:
    """How a claim is checked.

    Attributes:
        how: the settings that it is about.
        large: at the requested depth, else at `SMALL`.
        gpu: only a GPU can do that.
        shared: several processes share the GPU, which takes NVIDIA's multi-process service.
    """

    check: Callable[..., Finding]
    how: tuple[str, ...] = ()
    large: bool = False
    gpu: bool = False
    shared: bool = False


FUSED, COMPILED = ("kernels=fused",), ("compile=unit",)

OF_BITS = {  # the longest first
    "resumes bit for bit, compiled": Claim(resumes, COMPILED, gpu=True),
    "repeats bit for bit, compiled": Claim(repeats, COMPILED, gpu=True),
    "waits for nothing, compiled": Claim(queues_only, COMPILED, gpu=True),
    "resumes bit for bit": Claim(resumes),
    "resumes bit for bit, fused": Claim(resumes, FUSED),
    "fused equals micro-batches": Claim(partial(equals_micro_batches, variants=PAPER_ORDER)),
    "fused equals micro-batches, deep": Claim(
        partial(equals_micro_batches, variants=("full-preact",)), large=True
    ),
    "equals the processor": Claim(equals_cpu),
    "training works": Claim(trains),
    "training works, fused": Claim(trains, FUSED),
    "repeats bit for bit": Claim(repeats),
    "repeats bit for bit, fused": Claim(repeats, FUSED),
    "captured: the same bits": Claim(captures, gpu=True),
    "captured: the same bits, fused": Claim(captures, FUSED, gpu=True),
    "waits for nothing": Claim(queues_only, gpu=True),
    "waits for nothing, fused": Claim(queues_only, FUSED, gpu=True),
    "waits for nothing, not captured": Claim(queues_only, ("capture=none",), gpu=True),
}
OF_TIME = {  # those with wanted figures first
    "speed, fused": Claim(
        partial(
            speed, table=True, wanted={"images_per_second": (19_000, None), "kernels": (None, 1150)}
        ),
        FUSED, large=True,
    ),
    "speed, plain": Claim(
        partial(speed, table=True, wanted={"images_per_second": (8_800, None)}),
        ("kernels=plain",), large=True,
    ),
    "speed, compiled": Claim(
        partial(speed, wanted={"images_per_second": (11_800, None)}), COMPILED, large=True
    ),
    "speed of four runs, fused": Claim(
        partial(several, runs=4, wanted={"images_per_second": (30_000, None)}),
        FUSED, large=True, gpu=True, shared=True,
    ),
    "two runs on a GPU do more than one": Claim(packing_pays, large=True, gpu=True, shared=True),
    "capturing is faster": Claim(partial(faster, new=(), old=("capture=none",)), gpu=True),
    "compile=unit is faster": Claim(partial(faster, new=COMPILED, old=()), gpu=True),
}  # fmt: skip
CLAIMS = OF_BITS | OF_TIME


def main() -> int:
    """Check the requested claims; returns the exit code."""
    options = parse()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no GPU that torch can use, so nothing was checked.", file=sys.stderr)
        return 2
    try:
        options.device = choose_device(options.device)
        for depth in (options.depth, options.small):  # wrong settings are refused at once
            Case(depth, options.device, tuple(options.set)).settings()
        if options.found is not None:
            return here(options.claim[0], options)
        return Session(options).run()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="\n  ".join(["the claims:", *CLAIMS]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--depth", type=int, default=DEPTH, help=f"of the claims about time; default: {DEPTH}")
    add("--small", type=int, default=SMALL, help=f"depth of the others; default: {SMALL}")
    add("--device", default="cuda", help="default: cuda; with cpu, what needs no GPU is checked")
    add(
        "--claim", choices=CLAIMS, action="append", metavar="NAME",
        help="check this one only; can be repeated",
    )  # fmt: skip
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all claims")
    add("--limit", type=float, default=LIMIT, help=f"seconds; default: {LIMIT:.0f}")
    add("--out", type=Path, metavar="FILE.json", help="write all findings to this file")
    add("--found", type=Path, help=argparse.SUPPRESS)  # in the process of a claim
    return parser.parse_args()


def here(name: str, options: argparse.Namespace) -> int:
    """Check a claim in this process, and write the finding to the file that is asked for."""
    claim = CLAIMS[name]
    case = Case(options.depth if claim.large else options.small, options.device, tuple(options.set))
    try:
        finding = claim.check(case, *claim.how)
    except Exception as error:  # a check that breaks fails its claim, not the others
        finding = Finding("FAILS", kind_and_text(error))
    figures = {
        name: value if isfinite(value or 0) else None for name, value in finding.figures.items()
    }
    write_json(options.found, asdict(finding) | {"figures": figures})
    return 0


COUNTED: dict[Verdict, str] = {
    "holds": "hold", "FAILS": "fail", "figure": "without a verdict", "not checked": "not checked",
}  # fmt: skip
"""Verdicts as the last line counts them."""


class Session:
    """The requested claims, each checked in a process of its own, and the record of the findings.

    A signal to stop ends the checks that are running; the rest is then not checked.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.begun = time.monotonic()
        self.end = self.begun + options.limit - RESERVE
        self.stopped = False
        self.record = {**facts(options), "claims": {}}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self) -> int:
        """Check all of them; returns the exit code."""
        self.write()
        print(headline(self.record), flush=True)
        names = [name for name in CLAIMS if name in (self.options.claim or CLAIMS)]
        bits = [name for name in names if name in OF_BITS]
        until = self.begun + (BITS if len(bits) < len(names) else 1) * self.options.limit
        with signals_to(self.stop):
            with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
                list(pool.map(partial(self.check, until=until), bits))
            for name in names[len(bits) :]:
                with service(CLAIMS[name].shared) as variables:
                    self.check(name, variables=variables)
        verdicts = [one["verdict"] for one in self.record["claims"].values()]
        counts = [
            f"{verdicts.count(one)} {text}" for one, text in COUNTED.items() if one in verdicts
        ]
        print(f"{', '.join(counts)}; {time.monotonic() - self.begun:.0f} s")
        return 1 if {"FAILS", "not checked"} & {*verdicts} else 0

    def check(self, name: str, until: float = inf, variables: Mapping[str, str] = {}) -> None:
        """Check a claim before the moment `until`; show the finding and add it to the record."""
        begun = time.monotonic()
        left = min(until, self.end) - begun
        if CLAIMS[name].gpu and self.options.device.type != "cuda":
            finding = Finding("not checked", "it needs a GPU")
        elif left < LEAST:
            finding = Finding("not checked", "no time was left")
        else:
            finding = self.in_a_process(name, left, variables or {})
        entry = asdict(finding) | {"seconds": round(time.monotonic() - begun, 1)}
        lines = [f"{finding.verdict:11}  {name}: {finding.evidence}", *entry.pop("lines")]
        with self._lock:
            print("\n".join(lines), flush=True)
            self.record["claims"][name] = entry
            self.write()

    def in_a_process(self, name: str, seconds: float, variables: Mapping[str, str]) -> Finding:
        """What a new process finds, which has this many seconds."""
        o = self.options
        arguments = ["--depth", o.depth, "--small", o.small, "--device", o.device, "--claim", name]
        for setting in o.set:
            arguments += ["--set", setting]
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder, "found.json")
            process = subprocess.Popen(
                [sys.executable, __file__, *map(str, arguments), "--found", answer],
                env={**os.environ, **VARIABLES, **variables},
                start_new_session=True,  # so that its own processes end with it
            )
            self._running.add(process)
            try:
                code = process.wait(0.0 if self.stopped else seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                kill(process)
                self._running.discard(process)
            if answer.exists():  # also from a process that then did not end
                return Finding(**json.loads(answer.read_text(encoding="utf-8")))
        if self.stopped:
            return Finding("not checked", "stopped")
        if code is None:
            return Finding("not checked", f"the {seconds:.0f} s that were left did not suffice")
        return Finding("FAILS", f"its process exited with {code}")

    def stop(self, *_signal: object) -> None:
        self.stopped, self.end = True, 0.0
        for process in list(self._running):
            kill(process)

    def write(self) -> None:
        """The record so far: the machine may be taken away at any moment."""
        if self.options.out is not None:
            write_output(self.options.out, (json.dumps(self.record, indent=2) + "\n").encode())


# --- what is around the checks --------------------------------------------------------------------


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, the versions and the options."""
    source = source_version()
    return {
        "format": 1,
        "device": device_name(options.device),
        "driver": driver_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": usable_triton(),
        "commit": source.commit,
        "dirty": source.dirty,
        "depth": options.depth,
        "small": options.small,
        "settings": options.set,
        "limit": options.limit,
    }


def usable_triton() -> str | None:
    """The version of Triton; None if it is missing or broken, which only its own claims need."""
    with suppress(Exception):
        return triton_version()
    return None


def headline(facts: Mapping[str, Any]) -> str:
    commit = facts["commit"] and facts["commit"][:7]
    return (
        f"ResNet-{facts['depth']} on {facts['device']}: torch {facts['torch']}, Triton "
        f"{facts['triton']}, driver {facts['driver']}, commit {commit}"
        f"{' with changes' if facts['dirty'] else ''}"
    )


DRIVER = Path("/proc/driver/nvidia/version")


def driver_version() -> str | None:
    """Of NVIDIA's driver, such as 575.57.08; None where Linux does not show one."""
    try:
        named = re.search(r"\b\d+\.\d+(\.\d+)?\b", DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return None
    return named and named[0]


@contextmanager
def service(needed: bool) -> Iterator[dict[str, str]]:
    """NVIDIA's multi-process service, started for this block unless one is alive or it is missing.

    Yields the variables by which processes find it.
    """
    if not needed or shutil.which(MPS_CONTROL) is None or service_advice() is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        control = partial(
            subprocess.run, env={**os.environ, **own}, timeout=SERVICE, encoding="utf-8",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired, OSError):
            control([MPS_CONTROL, "-d"])
        try:
            yield own
        finally:
            with suppress(subprocess.TimeoutExpired, OSError):
                control([MPS_CONTROL], input="quit\n")


@contextmanager
def signals_to(stop: Callable[..., None]) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM call `stop`."""
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill(process: subprocess.Popen[bytes]) -> None:
    """A process that leads a session, with those that it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):  # it ended meanwhile, seen by another thread
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
