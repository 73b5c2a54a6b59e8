"""Stopping a run politely: Ctrl-C and SIGTERM ask, the loop answers after its iteration."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PARENT = "RESVAR_SWEEP_PID"
"""A sweep sets this for its runs: when that process is gone, so is the reason to go on."""


MESSAGE = "\nStopping after this iteration; once more stops at once.\n"


class StopRequest:
    """Whether somebody asked this process to stop; the second time it does so at once.

    A run of a sweep is patient: its sweep asks once, and Slurm may say the same to both of them.
    """

    def __init__(self, message: str) -> None:
        self._asked = False
        self._parent = int(os.environ.get(PARENT, "0"))
        self._message = message if not self._parent else "\nStopping after this iteration.\n"

    def __bool__(self) -> bool:
        return self._asked or (self._parent != 0 and os.getppid() != self._parent)

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del signum, frame
        if self._asked and not self._parent:
            os._exit(130)
        if self._asked:
            return
        self._asked = True
        with suppress(OSError):
            os.write(2, self._message.encode())


@contextmanager
def stop_request(message: str = MESSAGE) -> Iterator[StopRequest]:
    """Listen to SIGINT and SIGTERM inside the block; the first is answered with `message`."""
    request = StopRequest(message)
    before = {
        number: signal.signal(number, request.ask) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
