"""The cache of built libraries, in folders where nobody else can put code that we would run.

A library's name ends with the SHA-256 of its content, so a damaged one is never loaded. It appears
complete or not at all, and one process builds at a time: anything in the folder `build` when a
process gets the lock was left by a killed one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resvar.files import flush_folder, open_to_append
from resvar.rundir import try_lock

Say = Callable[[str], None]

SILENT_WAIT = 2.0
"""Seconds after which a process that waits for another's build says so."""


def cache() -> Path:
    """The folder of built libraries: `$XDG_CACHE_HOME/resvar` or `~/.cache/resvar`."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))  # its standard ignores a relative one
    return (named if named.is_absolute() else Path.home() / ".cache") / "resvar"


def private_folder(say: Say) -> Path:
    """The cache, created if necessary; below the temporary folder if others can write to it.

    Raises:
        OSError: the folder cannot be created.
        RuntimeError: there is no home directory, or others can write to both folders.
    """
    reasons: list[str] = []
    for folder in (cache(), Path(tempfile.gettempdir()) / f"resvar-{os.geteuid()}"):
        for part in reversed((folder, *folder.parents)):
            if not part.exists():
                part.mkdir(mode=0o700, exist_ok=True)
        folder = folder.resolve()
        reason = _open_to_others(folder)
        if reason is None and os.statvfs(folder).f_flag & os.ST_NOEXEC:
            reason = f"{folder} is mounted noexec"
        if reason is None:
            if reasons:
                say(f"The fused operators are kept in {folder}, since {reasons[0]}.")
            return folder
        reasons.append(reason)
    raise RuntimeError(" and ".join(reasons))


def find_library(folder: Path, key: str, say: Say = lambda _: None) -> Path | None:
    """A complete library with this key that only we or root can have put there."""
    for library in _libraries(folder, key):
        if _is_sound(library):
            return library
        say(f"{library} is not used: it is damaged, or others can write to it.")
    return None


def digest_in(library: str) -> str:
    """The digest in a library's name: the first 16 hexadecimal digits of its SHA-256."""
    return Path(library).stem.rpartition("-")[2]


@contextmanager
def building(folder: Path, say: Say) -> Iterator[Path]:
    """An empty folder to build in, for one process at a time; removed at the end.

    Waits for another process that builds; the lock ends with its process.
    """
    work = folder / "build"
    with open_to_append(folder / "build.lock") as file:
        told, silent_until = False, time.monotonic() + SILENT_WAIT
        while not try_lock(file.fileno(), shared=False):
            if not told and time.monotonic() > silent_until:
                say(f"Waiting for another process that builds fused operators in {folder} …")
                told = True
            time.sleep(0.05)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def keep(built: Path, folder: Path, key: str) -> Path:
    """Move a working library into the cache and remove the old ones for this key; survives a power
    cut. Returns the new path."""
    for unfit in _libraries(folder, key):
        unfit.unlink()
    library = folder / f"fused-{key}-{_library_digest(built)}.so"
    with built.open("rb+") as file:
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    built.replace(library)
    flush_folder(folder)
    return library


# --- what can be trusted --------------------------------------------------------------------------


def _libraries(folder: Path, key: str) -> list[Path]:
    return sorted(folder.glob(f"fused-{key}-*.so"))


def _is_sound(library: Path) -> bool:
    try:
        whole = library.resolve()
        ours = whole.is_file() and _open_to_others(whole) is None
        return ours and _library_digest(whole) == digest_in(library.name)
    except (OSError, RuntimeError):  # removed meanwhile, or a link to itself
        return False


def _library_digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _open_to_others(path: Path) -> str | None:
    """Why someone else could put their own file at `path`, which has no links; None if only we and
    root can."""
    for part in (path, *path.parents):
        status = part.stat()
        above = part != path
        # Others can add files to a sticky folder such as /tmp, but not replace ours.
        writable = status.st_mode & 0o022 and not (above and status.st_mode & stat.S_ISVTX)
        owners = {0, os.geteuid(), *([_NOBODY] if above else [])}
        if status.st_uid not in owners:
            return f"{part} belongs to another user"
        if writable:
            return f"others can write to {part} (chmod go-w)"
    return None


_NOBODY = 65534
"""The owner that root's folders show in a container without root."""
