"""Stopping a run politely: Ctrl-C and SIGTERM ask, the loop answers after its iteration."""

from __future__ import annotations

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
    """Whether somebody asked this process to stop; the second time it does so at once."""

    def __init__(self, message: str, together: bool) -> None:
        self._message, self._together = message, together
        self._asked_at: float | None = None
        self._parent = os.getppid() if together else int(os.environ.get(PARENT, "0"))

    def __bool__(self) -> bool:
        alone = self._parent != 0 and os.getppid() != self._parent
        return self._asked_at is not None or alone

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del signum, frame
        now = time.monotonic()
        if self._asked_at is not None:
            if self._together and now - self._asked_at < HANDED_ON:
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
