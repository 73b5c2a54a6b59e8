"""One contender at work: a process that waits for its turn.

Started by `resvar.bench.turns` as `python -m resvar.bench.worker`. The first line on stdin says
what to train, each further one is a command; each is answered by one line of JSON on stdout. It
ends when stdin does. A process of its own keeps its threads, torch's switches and its memory clean.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resvar.bench.contenders import Contender
from resvar.bench.plain import PlainTraining
from resvar.bench.profile import shares
from resvar.config import Settings
from resvar.data.memory import MemoryTrainLoader, Normalization
from resvar.errors import UserError
from resvar.training.capture import WARM_UPS, choose_capture
from resvar.training.fusing import choose_kernels
from resvar.training.loop import (
    Means,
    Meters,
    build_network,
    build_optimizer,
    train_step,
    trainable,
)
from resvar.training.machine import choose_device, choose_precision, prepare

IMAGES = 10_000
"""Made up, so that no dataset is needed; what they show does not change the time."""


class Training:
    """Something that can be trained step by step, and measured.

    `held` is the process's memory before network and data were there, in bytes.
    """

    def __init__(self, contender: Contender, device: torch.device) -> None:
        self.device = device
        self.batch_size = contender.settings.batch_size
        settings = contender.settings.model_copy(
            update={"precision": choose_precision(contender.settings.precision, device)}
        )
        settings = settings.model_copy(update={"kernels": choose_kernels(settings, device, _say)})
        settings = settings.model_copy(update={"capture": choose_capture(settings, device)})
        self.settings = settings
        prepare(settings, device, keep_memory=not contender.plain)  # nobody else does that
        self.held = memory("VmRSS")
        count = max(IMAGES, 2 * settings.batch_size)
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = random.integers(0, 10, count)
        make = self._plain if contender.plain else self._ours
        self.step, self.step_by_step = make(pixels, labels)

    def _ours(self, pixels: Any, labels: Any) -> tuple[Callable[[], None], Callable[[], None]]:
        """The update that `resvar train` makes, and nothing around it; and the same one
        operator at a time, as the profiler wants it."""
        s, device = self.settings, self.device
        batches = _Noted(
            MemoryTrainLoader(
                pixels, labels, Normalization.measure(pixels, s.normalize), s.batch_size, 0,
                s.crop_padding, s.flip, device,
            )
        )  # fmt: skip
        network = trainable(s, device)
        optimizer, sums = build_optimizer(network, s), Meters.zero(device)
        means, iterations = Means.of(network, s), iter(range(10**9))

        def step(means: Means) -> None:
            train_step(network, optimizer, batches, next(iterations), s, sums, means)

        return partial(step, means), partial(step, Means())

    def _plain(self, pixels: Any, labels: Any) -> tuple[Callable[[], None], Callable[[], None]]:
        network = build_network(self.settings)
        step = PlainTraining(network, pixels, labels, self.batch_size, self.device).step
        return step, step

    def run(self, iterations: int) -> float:
        """Seconds that so many updates take."""
        self._wait()
        begun = time.perf_counter()
        for _ in range(iterations):
            self.step()
        self._wait()
        return time.perf_counter() - begun

    def warm_up(self) -> float:
        """Seconds of the first iterations, as many as are unlike the rest."""
        return self.run(WARM_UPS + 1 if self.settings.capture == "iteration" else 2)

    def peak(self) -> dict[str, int | None]:
        """Bytes: the most that an update needs, and of it what network, data and update brought."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.run(2)
            most = torch.cuda.max_memory_allocated(self.device)
            return {"peak": most, "own": most}
        forget_peak()
        self.run(2)
        top, held = memory("VmHWM"), self.held
        return {"peak": top, "own": top - held if top and held else None}

    def profile(self) -> dict[str, float]:
        """Where the time of two updates goes."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        cuda = self.device.type == "cuda"
        if cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities, acc_events=True) as found:
            for _ in range(2):
                self.step_by_step()
            self._wait()
        own = (lambda e: e.self_device_time_total) if cuda else (lambda e: e.self_cpu_time_total)
        # A kernel is an event itself, and its time that of the operator which launched it.
        here = (e for e in found.events() if e.device_type.name == "CPU")
        return shares(here, own)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Noted:
    """Batches that the profiler can tell from the rest."""

    def __init__(self, batches: MemoryTrainLoader) -> None:
        self.batches, self.labels = batches, batches.labels

    def batch(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.profiler.record_function("bench::data"):
            return self.batches.batch(iteration)


LONGEST_PRODUCT = 0.4
"""Seconds; a product of sides twice as long takes eight times as long."""


class Ceiling:
    """What the machine can do at most: a large matrix product, and a large copy."""

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
        """Where bf16 is no instruction of the processor, a large product would take minutes."""
        side, most = 256, 2048 if self.device.type == "cpu" else 8192
        while True:
            matrix = torch.randn(side, side, device=self.device).to(kind)
            if side == most or self._each(_product(matrix), 0) > LONGEST_PRODUCT / 8:
                return matrix
            side *= 2

    def _each(self, work: Callable[[], object], seconds: float) -> float:
        """Seconds of one of as many as fit, the first left out; the median."""
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
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def forget_peak() -> None:
    """Let VmHWM begin anew at what the process holds now, where Linux lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

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
            answer(shares=work.profile())


def _precision(work: Training | Ceiling) -> str | None:
    return work.settings.precision if isinstance(work, Training) else None


if __name__ == "__main__":
    main()
