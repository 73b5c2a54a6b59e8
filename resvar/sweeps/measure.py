"""Measure the speed of networks, in separate processes: `python -m resvar.sweeps.measure`.

Runs that share a GPU, or the cores, slow each other down. So as many processes measure at the same
time: each reports the end of its warm-up, then all start together.

The first line on stdin is the request, and each later byte starts a measurement. A process ends
when stdin is closed, so it never outlives its sweep. The answers are lines of JSON on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from statistics import fmean
from typing import Any, Self

from resvar.errors import RunError, UserError
from resvar.settings import Settings
from resvar.streams import open_standard_streams
from resvar.sweeps.processes import SAFE_PYTHON, ending_of, import_path
from resvar.sweeps.slots import Slot


def measured_speeds(
    kinds: Sequence[tuple[Settings, bool]], slot: Slot, together: int = 1
) -> tuple[list[float], str]:
    """Images per second of a run of each kind beside others like it; and the device in words.

    Args:
        kinds: settings, and whether a run with them has begun: it is not refused here.
        slot: where the runs work.
        together: runs at a time in such slots of one device.

    Raises:
        UserError: the device cannot train one of them.
        RunError: a process ended without an answer.
    """
    request = {
        "kinds": [(settings.model_dump(), begun) for settings, begun in kinds],
        "threads": slot.threads,
        "device": slot.device,
    }
    speeds, device = list[float](), ""
    with ExitStack() as stack:
        processes = [stack.enter_context(_Measurement(request, slot)) for _ in range(together)]
        for _ in kinds:
            for process in processes:
                process.answer()  # it is warm
            for process in processes:
                process.send("\n")
            answers = [process.answer() for process in processes]
            speeds.append(fmean(answer["speed"] for answer in answers))
            device = answers[0]["device"]
    return speeds, device


class _Measurement:
    """A process that measures. A context manager, which waits for its end, or kills it."""

    def __init__(self, request: Mapping[str, Any], slot: Slot) -> None:
        self._process = subprocess.Popen(
            [*SAFE_PYTHON, "-m", "resvar.sweeps.measure"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            env={**os.environ, **import_path(), **slot.environment},
        )  # fmt: skip
        self.send(json.dumps(request) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self._process.kill()
        with suppress(BrokenPipeError), self._process:
            pass  # closes its pipes and waits

    def send(self, text: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; `answer` says so
            self._process.stdin.write(text)
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer; other output, such as that of libraries, is ignored."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                found = json.loads(line)
                if not isinstance(found, dict):
                    continue
                if "refused" in found:
                    raise UserError(found["refused"])
                return found
        ending = ending_of(self._process.wait())
        raise RunError(f"the process that measures the speed ended ({ending}).")


# --- in the process -------------------------------------------------------------------------------


class _OtherProcesses:
    """The processes that measure at the same time, as far as stdin tells."""

    def __init__(self) -> None:
        self._go = threading.Semaphore(0)
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self) -> None:
        """Until all are warm."""
        _answer({"warm": True})
        self._go.acquire()

    def _listen(self) -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would be held when the interpreter ends
            self._go.release()
        os._exit(1)


def _answer(found: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def _measure(request: Mapping[str, Any], ready: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """An answer for each kind of the request."""
    import torch

    from resvar.training.execution import Execution
    from resvar.training.machine import choose_device, device_name
    from resvar.training.throughput import measure_throughput

    device = choose_device(request["device"])
    torch.set_num_threads(request["threads"])
    for values, begun in request["kinds"]:
        values["num_classes"] = values["num_classes"] or 1000  # a folder tells it once open
        settings = Settings(**values)
        plan = Execution.resolve(settings, device, begun=settings if begun else None)
        plan.prepare_process()
        yield {"speed": measure_throughput(plan, ready=ready), "device": device_name(device)}


if __name__ == "__main__":
    open_standard_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep decides
    asked = json.loads(sys.stdin.readline())
    try:
        for found in _measure(asked, _OtherProcesses().wait):
            _answer(found)
    except UserError as error:
        _answer({"refused": str(error)})
