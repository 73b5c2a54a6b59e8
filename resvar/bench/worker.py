"""The process of one contender, which waits for its turn.

Started by `resvar.bench.turns` as `python -m resvar.bench.worker`. The first line on stdin says
what to train; each further line is a command. It answers each with one line of JSON on stdout, and
ends when stdin does. Separate processes do not share threads, torch's global switches or memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resvar.bench.contenders import Contender
from resvar.bench.plain import PlainTraining
from resvar.bench.profile import device_work, launches, shares
from resvar.data.memory import MemoryTrainLoader
from resvar.errors import UserError, first_line
from resvar.settings import Settings
from resvar.streams import log, open_standard_streams
from resvar.training.execution import Execution
from resvar.training.machine import choose_device
from resvar.training.step import Updater, build_network
from resvar.training.throughput import made_up_loader, warm_up_updates

IMAGES = 10_000
"""Synthetic, so no dataset is needed; the content of images does not affect the time."""


PROFILED = 3
"""Updates under the profiler."""


class Training:
    """The updates of a contender, run and measured.

    `held` is the memory of the process before network and data exist, in bytes.
    """

    def __init__(self, contender: Contender, device: torch.device) -> None:
        self.plan = plan = Execution.resolve(contender.settings, device, log=log)
        self.device, self.settings = device, plan.settings
        plan.prepare_process(keep_memory=not contender.plain)  # plain PyTorch does not do that
        self.held = memory("VmRSS")
        loader = made_up_loader(plan, max(IMAGES, 2 * self.settings.batch_size))
        self.step: Callable[..., None]
        if contender.plain:
            self.step = self._plain(loader)
        else:
            self.step = self._ours(_ProfiledLoader(loader), Updater(plan))

    def _ours(self, loader: _ProfiledLoader, updater: Updater) -> Callable[..., None]:
        """The update of `resvar train`, with nothing around it."""

        def step(replay: bool = True) -> None:
            updater(*loader.batch(updater.iteration), replay)

        return step

    def _plain(self, loader: MemoryTrainLoader) -> Callable[..., None]:
        pad = loader.padding
        inner = loader.images[:, pad : pad + loader.size, pad : pad + loader.size]
        pixels, labels = inner.cpu().numpy(), loader.labels.cpu().numpy()
        batch_size = self.settings.batch_size
        plain = PlainTraining(build_network(self.settings), pixels, labels, batch_size, self.device)

        def step(replay: bool = True) -> None:
            del replay  # there is no graph
            plain.step()

        return step

    def run(self, iterations: int) -> float:
        """Run this many updates; return the seconds."""
        self._wait()
        begun = time.perf_counter()
        for _ in range(iterations):
            self.step()
        self._wait()
        return time.perf_counter() - begun

    def warm_up(self) -> float:
        """Run the first iterations, which are slower than the rest; return the seconds."""
        return self.run(warm_up_updates(self.plan))

    def peak(self) -> dict[str, int | None]:
        """Peak bytes during updates: of the process, and of network, data and update alone."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.run(2)
            most = torch.cuda.max_memory_allocated(self.device)
            return {"peak": most, "own": most}
        forget_peak()
        self.run(2)
        top, held = memory("VmHWM"), self.held
        return {"peak": top, "own": top - held if top and held else None}

    def profile(self) -> dict[str, Any]:
        """`shares` of the time of an update; on a GPU also its number of `kernels` and `copies`."""
        events = self.events()
        # A kernel is also an event; its time already counts for the operator that launched it.
        here = (e for e in events if e.device_type.name == "CPU")
        if self.device.type != "cuda":
            return {"shares": shares(here, lambda e: e.self_cpu_time_total)}
        return {
            "shares": shares(here, lambda e: e.self_device_time_total),
            **launches(device_work(events, PROFILED)),
        }

    def events(self) -> list[Any]:
        """What torch's profiler records of `PROFILED` updates, launched kernel by kernel.

        A graph launches the same kernels, but the profiler cannot say by which operator. A process
        profiles once, since a second session of NVIDIA's CUPTI loses kernels. Without CUPTI, the
        events are those of the host; none, and a message, if the profiler fails.
        """
        try:
            return self._traced()
        except RuntimeError as error:  # the times measured so far are worth keeping
            log(f"torch's profiler failed: {first_line(error)}")
            return []

    def _traced(self) -> list[Any]:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities, acc_events=True) as found:
            for _ in range(PROFILED):
                self.step(replay=False)
            self._wait()
        return list(found.events())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _ProfiledLoader:
    """Marks the creation of batches for the profiler."""

    def __init__(self, loader: MemoryTrainLoader) -> None:
        self.loader = loader

    def batch(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.profiler.record_function("bench::data"):
            return self.loader.batch(iteration)


LONGEST_PRODUCT = 0.4
"""Seconds. With sides twice as long, a product takes eight times as long."""


class Ceiling:
    """The limits of the machine: a large matrix product, and a large copy."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.manual_seed(0)
        self.matrices = {
            name: self._large(kind)
            for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        }
        self.source = torch.ones(2**26, device=device)  # 256 MiB, far beyond the caches
        self.target = torch.empty_like(self.source)

    def run(self, seconds: float = 0.3) -> dict[str, float]:
        """FLOP per second of both products; bytes per second of a copy, read and written."""
        found = {
            name: 2.0 * len(matrix) ** 3 / self._each(_product(matrix), seconds)
            for name, matrix in self.matrices.items()
        }
        moved = 2.0 * self.source.numel() * self.source.element_size()
        found["copy"] = moved / self._each(lambda: self.target.copy_(self.source), seconds)
        return found

    def _large(self, kind: torch.dtype) -> torch.Tensor:
        """Start small: without bf16 instructions, a large product would take minutes."""
        side, most = 256, 2048 if self.device.type == "cpu" else 8192
        while True:
            matrix = torch.randn(side, side, device=self.device).to(kind)
            if side == most or self._each(_product(matrix), 0) > LONGEST_PRODUCT / 8:
                return matrix
            side *= 2

    def _each(self, work: Callable[[], object], seconds: float) -> float:
        """Median seconds of `work`, repeated for `seconds`; the first repetition is left out."""
        times: list[float] = []
        while len(times) < 4 or sum(times) < seconds:
            begun = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - begun)
        return float(np.median(times[1:]))


def _product(matrix: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.mm(matrix, matrix)


def memory(field: str) -> int | None:
    """Bytes of this process as Linux counts them (VmRSS, or the peak VmHWM); None elsewhere."""
    try:
        for line in Path("/proc/self/status").read_text("utf-8", "replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def forget_peak() -> None:
    """Reset VmHWM to the current memory of the process, where Linux allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_bytes(b"5")


def serve() -> None:
    """Answer until stdin ends."""
    open_standard_streams()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    asked = json.loads(sys.stdin.readline())
    if asked["threads"] is not None:
        torch.set_num_threads(asked["threads"])
    device = choose_device(asked["device"])
    work: Training | Ceiling
    if asked["settings"] is None:
        work = Ceiling(device)
    else:
        settings = Settings.model_validate(asked["settings"])
        try:
            work = Training(Contender("", settings, plain=asked["plain"]), device)
        except UserError as error:
            answer(refused=str(error))
            return
    answer(threads=torch.get_num_threads(), precision=_precision(work))
    for line in sys.stdin:
        command = json.loads(line)
        if isinstance(work, Ceiling):
            answer(ceiling=work.run())
        elif command["do"] == "warm up":
            answer(seconds=work.warm_up())
        elif command["do"] == "run":
            answer(seconds=work.run(command["iterations"]))
        elif command["do"] == "peak":
            answer(**work.peak())
        else:
            answer(**work.profile())


def _precision(work: Training | Ceiling) -> str | None:
    return work.settings.precision if isinstance(work, Training) else None


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the bench was killed
        serve()
