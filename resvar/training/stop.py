"""Stop a run cleanly: a signal asks, the trainer obeys after its iteration.

Ctrl-C, SIGTERM, SIGHUP (the terminal was closed), SIGUSR1 and SIGUSR2 (which batch systems send
some time before they kill) all ask for the same: save a checkpoint and end.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from resvar.errors import UserError

PARENT = "RESVAR_SWEEP_PID"
"""A sweep sets this for its runs, which stop when that process is gone."""

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)

FORWARDING = 2.0
"""Seconds in which signals count as one: torchrun forwards what Slurm may also have sent, and of a
closed terminal both the system and the shell send SIGHUP."""

MESSAGE = "\nStopping after this iteration; once more stops at once.\n"


class StopRequest:
    """Whether this process was asked to stop; a second request ends it at once.

    A run of a sweep ignores the second: its sweep asks once, and Slurm may signal both of them.
    """

    def __init__(self, message: str, together: bool) -> None:
        swept = sweep_process()
        self._parent = os.getppid() if together else swept
        self._patience = math.inf if swept else FORWARDING if together else 0.0
        self._message = "\nStopping after this iteration.\n" if swept and message else message
        self._asked_at: float | None = None

    def __bool__(self) -> bool:
        alone = self._parent != 0 and os.getppid() != self._parent
        return self._asked_at is not None or alone

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del frame
        now = time.monotonic()
        if self._asked_at is not None:
            twice = signum == getattr(signal, "SIGHUP", None)
            if now - self._asked_at < max(self._patience, FORWARDING if twice else 0.0):
                return
            os._exit(130)
        self._asked_at = now
        with suppress(OSError):
            os.write(2, self._message.encode())


def sweep_process() -> int:
    """The process of the sweep that started this one; 0 without a sweep.

    Raises:
        UserError: the environment names something else.
    """
    text = os.environ.get(PARENT, "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise UserError(
            f"the environment variable {PARENT} is {text!r:.40}, but a sweep sets it to the number "
            "of its process; unset it."
        )
    return int(text)


@contextmanager
def stop_request(message: str = MESSAGE, together: bool = False) -> Iterator[StopRequest]:
    """Listen to the signals inside the block; print `message` at the first.

    A signal that this process was started to ignore, as by `nohup`, stays ignored. Outside the main
    thread, where Python handles no signals, only the end of a parent counts.

    Args:
        together: this is one of several processes of a launcher, and stops when that is gone.
    """
    request = StopRequest(message, together)
    before = {
        number: signal.signal(number, request.ask)
        for number in SIGNALS
        if _in_main_thread() and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def continue_without_sweep() -> None:
    """If Ctrl-Z has stopped this run with its sweep, have Linux continue it if the sweep is killed.

    A stopped process would not notice it, and would keep its lock and its memory.
    """
    if PARENT in os.environ and sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """End this process at a second signal, even while it waits in torch for other processes.

    Python's handlers run only after that wait, which may last ten minutes.
    """
    if not _in_main_thread():
        yield
        return
    reader, writer = socket.socketpair()

    def watch() -> None:
        first: float | None = None
        while numbers := reader.recv(64):
            if not set(SIGNALS).intersection(numbers):
                continue
            first = time.monotonic() if first is None else first
            if time.monotonic() - first >= FORWARDING:
                os._exit(130)

    with reader, writer:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.shutdown(socket.SHUT_WR)
            thread.join()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_PR_SET_PDEATHSIG = 1
"""From sys/prctl.h."""
