"""The lock of a dataset's folder: one process at a time fetches data into it.

Whoever only reads the data takes no lock: each file is verified while it is read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from resvar.files import open_regular, open_to_append
from resvar.rundir import try_lock

FETCH_LOCK = ".resvar.lock"
"""In the folder while a process fetches data into it. A killed process may leave the file behind,
but not the lock."""

RETRY_EVERY = 0.2
"""Seconds between two attempts to take the lock."""


@contextlib.contextmanager
def exclusive(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Lock a folder, after any process that works there; that process is logged once.

    A file system without locks is used unlocked.

    Raises:
        OSError: the folder cannot be written.
    """
    path, told = folder / FETCH_LOCK, False
    while True:
        with open_to_append(path) as file:
            if not _try_alone(file):
                if not told:
                    log(f"{folder}: {_holder(file)} fetches data into it now; waiting for its end.")
                told = True
                time.sleep(RETRY_EVERY)
            elif _is_still(file, path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
                file.flush()
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):  # Windows keeps a file that is open
                        path.unlink()
                return


def find_fetching(folder: Path) -> str | None:
    """The process that fetches data into the folder now: `process 12 on host`."""
    with contextlib.suppress(Exception), open_regular(folder / FETCH_LOCK) as file:
        if not try_lock(file.fileno(), shared=True):
            return _holder(file)
    return None


def _try_alone(file: IO[bytes]) -> bool:
    try:
        return try_lock(file.fileno(), shared=False)
    except OSError:  # no locks here
        return True


def _is_still(file: IO[bytes], path: Path) -> bool:
    """Whether the path leads to this file: the process before has removed its own at its end."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(300).decode(errors="replace").strip() or "another process"
