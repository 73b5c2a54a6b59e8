"""Measure the speed of networks, in a separate process: `python -m resvar.sweeps.measure`.

The first line on stdin is the request, the last one on stdout the answer, both in JSON. The process
ends when its stdin does, so that it never outlives the sweep that waits for it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from resvar.config import Settings
from resvar.errors import RunError, UserError
from resvar.streams import open_standard_streams
from resvar.sweeps.processes import SAFE_PYTHON, ending_of, import_path
from resvar.sweeps.slots import Slot


def measured_speeds(kinds: Sequence[tuple[Settings, bool]], slot: Slot) -> tuple[list[float], str]:
    """Images per second of each, from a few updates in a slot; and the device in words.

    Args:
        kinds: settings, and whether a run with them has begun: it is not refused here.

    Raises:
        UserError: the device cannot train one of them.
        RunError: the process ended without an answer.
    """
    request = {
        "kinds": [(settings.model_dump(), begun) for settings, begun in kinds],
        "threads": slot.threads,
        "device": slot.device,
    }
    process = subprocess.Popen(
        [*SAFE_PYTHON, "-m", "resvar.sweeps.measure"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        env={**os.environ, **import_path(), **slot.environment},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    lines: list[str] = []
    with suppress(BrokenPipeError), process:
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            lines = process.stdout.read().splitlines()
        except KeyboardInterrupt:
            process.kill()
            raise
    return _answered(lines, process.returncode)


def _answered(lines: Sequence[str], code: int) -> tuple[list[float], str]:
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise RunError(f"the process that measures the speed ended ({ending_of(code)}).") from None
    if "refused" in answer:
        raise UserError(answer["refused"])
    return answer["speeds"], answer["device"]


# --- in the process -------------------------------------------------------------------------------


def _end_with_stdin() -> None:
    os.read(0, 1)  # not sys.stdin: its lock would be held when the interpreter ends
    os._exit(1)


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from resvar.training.execution import Execution
    from resvar.training.machine import choose_device, device_name
    from resvar.training.throughput import measure_throughput

    device = choose_device(request["device"])
    torch.set_num_threads(request["threads"])
    speeds = []
    for values, begun in request["kinds"]:
        values["num_classes"] = values["num_classes"] or 1000  # a folder tells it once open
        settings = Settings(**values)
        plan = Execution.resolve(settings, device, begun=settings if begun else None)
        plan.prepare_process()
        speeds.append(measure_throughput(plan))
    return {"speeds": speeds, "device": device_name(device)}


if __name__ == "__main__":
    open_standard_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep decides
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        found = _measure(asked)
    except UserError as error:
        found = {"refused": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")
