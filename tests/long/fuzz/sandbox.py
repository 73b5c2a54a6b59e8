"""The limits of a case: processor time, memory, and changes outside its folder."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

SLOWEST = 5.0
"""Seconds of processor time that a case may take."""

LONGEST_WAIT = 600.0
"""Seconds of wall time: a case that waits for ever uses no processor, and a pause does no harm."""


class Hang(BaseException):
    """A case took too long. A BaseException, so that no `except Exception` catches it."""


class Sandbox:
    """A folder, and an audit hook that records every change outside it while a case runs.

    Python never removes an audit hook: one per process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.active = False
        self.violations: list[str] = []
        sys.addaudithook(self._see)

    @contextlib.contextmanager
    def case(self) -> Iterator[None]:
        self.violations.clear()
        before = [signal.signal(number, _hang) for number in (signal.SIGPROF, signal.SIGALRM)]
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)
            for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
                signal.signal(number, handler)
        assert not self.violations, list(self.violations)

    def _see(self, event: str, details: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, _, flags = details
            if (flags or 0) & _WRITES and not isinstance(path, int):
                self._check(event, path)
        elif event in _CHANGES:
            for path in details[: _CHANGES[event]]:
                self._check(event, path)
        elif event in _FORBIDDEN:
            self.violations.append(f"{event} {details!r:.200}")

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int) or os.fspath(path) in (os.devnull, os.fsencode(os.devnull)):
            return
        place = Path(os.fsdecode(path))
        real = Path(os.path.realpath(self.folder / place))  # resolve() refuses a link to itself
        if not real.is_relative_to(self.folder):
            self.violations.append(f"{event} {path!r}")


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1,
    "shutil.move": 2, "shutil.copyfile": 2,
}  # fmt: skip
"""Events that change a file system → how many of their first arguments are paths."""

_FORBIDDEN = {
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill",
    "subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request",
    "pickle.find_class", "webbrowser.open",
}  # fmt: skip


def peak_memory() -> int:
    """Peak resident bytes of this process since `reset_peak_memory`; 0 if unknown."""
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return 0


def reset_peak_memory() -> int:
    """Make the current resident bytes the peak; returns them."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_memory()


def _hang(number: int, frame: FrameType | None) -> None:
    del frame
    at_work = number == signal.SIGPROF
    raise Hang(f"over {SLOWEST:.0f} s of work" if at_work else f"over {LONGEST_WAIT:.0f} s")
