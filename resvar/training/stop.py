"""Stopping a run politely: Ctrl-C and SIGTERM ask, the loop answers after its iteration."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PARENT = "RESVAR_SWEEP_PID"
"""A sweep sets this for its runs: when that process is gone, so is the reason to go on."""


HANDED_ON = 2.0
"""Seconds in which a signal counts once that torchrun hands on: Slurm may have sent it too."""

MESSAGE = "\nStopping after this iteration; once more stops at once.\n"


class StopRequest:
    """Whether somebody asked this process to stop; the second time it does so at once.

    A run of a sweep is patient: its sweep asks once, and Slurm may say the same to both of them.
    """

    def __init__(self, message: str, together: bool) -> None:
        swept = int(os.environ.get(PARENT, "0"))
        self._parent = os.getppid() if together else swept
        self._patience = math.inf if swept else HANDED_ON if together else 0.0
        self._message = "\nStopping after this iteration.\n" if swept and message else message
        self._asked_at: float | None = None

    def __bool__(self) -> bool:
        alone = self._parent != 0 and os.getppid() != self._parent
        return self._asked_at is not None or alone

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del signum, frame
        now = time.monotonic()
        if self._asked_at is not None:
            if now - self._asked_at < self._patience:
                return
            os._exit(130)
        self._asked_at = now
        with suppress(OSError):
            os.write(2, self._message.encode())


@contextmanager
def stop_request(message: str = MESSAGE, together: bool = False) -> Iterator[StopRequest]:
    """Listen to SIGINT and SIGTERM inside the block; the first is answered with `message`.

    Args:
        together: this is one of several processes of a launcher; they stop when it is gone.
    """
    request = StopRequest(message, together)
    before = {
        number: signal.signal(number, request.ask) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
