"""Stop a run cleanly: Ctrl-C and SIGTERM ask, the trainer obeys after its iteration."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PARENT = "RESVAR_SWEEP_PID"
"""A sweep sets this for its runs, which stop when that process is gone."""

FORWARDING = 2.0
"""Seconds in which signals count as one: torchrun forwards what Slurm may also have sent."""

MESSAGE = "\nStopping after this iteration; once more stops at once.\n"


class StopRequest:
    """Whether somebody asked this process to stop; a second request ends it at once.

    A run of a sweep ignores the second: its sweep asks once, and Slurm may signal both of them.
    """

    def __init__(self, message: str, together: bool) -> None:
        swept = int(os.environ.get(PARENT, "0"))
        self._parent = os.getppid() if together else swept
        self._patience = math.inf if swept else FORWARDING if together else 0.0
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
    """Listen to SIGINT and SIGTERM inside the block; print `message` at the first.

    Args:
        together: this is one of several processes of a launcher, and stops when that is gone.
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
