"""Ctrl-Z on a sweep: its runs stop with it, and continue when it does.

Each run has its own session, which Ctrl-Z does not reach. If the sweep is killed while it is
stopped, its runs continue, and end as for any sweep that is gone (`resvar.training.stop`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from resvar.sweeps.processes import RunProcess

CTRL_Z = getattr(signal, "SIGTSTP", None)  # Windows has none


class Suspension:
    """Whether somebody asked this process to stop for a while."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del signum, frame
        self._asked = True

    def obey(
        self, processes: Iterable[RunProcess], hide: Callable[[], None], show: Callable[[], None]
    ) -> None:
        """If asked, stop the processes and this one; return when it continues.

        Args:
            hide: leave the terminal to the shell.
            show: take it back.
        """
        if not self._asked or CTRL_Z is None:
            return
        self._asked = False
        groups = [process.handle.pid for process in processes]  # each leads its session
        hide()
        _signal(groups, signal.SIGSTOP)
        try:
            signal.signal(CTRL_Z, signal.SIG_DFL)
            signal.raise_signal(CTRL_Z)  # stops here
        finally:
            signal.signal(CTRL_Z, self.ask)
            _signal(groups, signal.SIGCONT)
            show()


@contextmanager
def suspension() -> Iterator[Suspension]:
    """Listen to Ctrl-Z inside the block, unless this process was started to ignore it."""
    request = Suspension()
    here = threading.current_thread() is threading.main_thread()
    if CTRL_Z is None or not here or signal.getsignal(CTRL_Z) is signal.SIG_IGN:
        yield request
        return
    before = signal.signal(CTRL_Z, request.ask)
    try:
        yield request
    finally:
        signal.signal(CTRL_Z, before)


def _signal(groups: Iterable[int], number: int) -> None:
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)
