"""Files: the shipped configurations, safe reads, atomic writes.

A folder may come from anyone: reading never waits for a pipe or device, and the program's own files
are not written through links. This module imports nothing of resvar but the errors.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from resvar.errors import UnreadableError, UserError

PACKAGE = Path(__file__).parent


def configs() -> Path:
    """The folder `configs`: inside the package in a wheel, next to it in a checkout."""
    return _shipped_folder("configs")


def examples() -> Path:
    """The folder `examples/`: inside the package in a wheel, next to it in a checkout."""
    return _shipped_folder("examples")


def _shipped_folder(name: str) -> Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def shipped(kind: str) -> dict[str, Path]:
    """Name → file of the shipped configurations of a kind: `variants`, `protocols` or `sweeps`."""
    return {path.stem: path for path in sorted((configs() / kind).glob("*.yaml"))}


# --- reading --------------------------------------------------------------------------------------


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading; links are followed. A pipe or device is not even opened.

    Raises:
        UserError: it is a folder, pipe, socket or device.
        OSError: it is missing or not readable.
    """
    _require_regular(path, path.stat())
    return _opened(path, os.O_RDONLY, "rb")


def open_to_append(path: Path) -> IO[bytes]:
    """Open a file for reading and appending, or create it; never through a link.

    Raises:
        UserError: it is a link, folder, pipe, socket or device.
        OSError: it is not writable.
    """
    with contextlib.suppress(FileNotFoundError):
        _require_regular(path, path.lstat())
    return _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | NO_FOLLOW, "a+b")


def read_text(path: Path, largest: int, kind: str) -> str:
    """The text of a file of at most `largest` bytes.

    Args:
        kind: the expected kind of file, for the error message.

    Raises:
        UserError: the file is missing, not a regular file, too large, or not UTF-8.
        UnreadableError: permissions or the disk forbid it.
    """
    try:
        with open_regular(path) as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise UserError(f"{path}: over {largest:,} bytes, which is too large for a {kind}.")
        return io.StringIO(content.decode("utf-8"), newline=None).read()  # lines end in \n
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not a text file in UTF-8.") from error
    except OSError as error:
        absent = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        found = UserError if absent else UnreadableError
        raise found(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(path)!r}: this is not a file name ({error}).") from error


def refuse_newer(path: Path, written: object, known: int) -> None:
    """Refuse a file of a later version of resvar, which would otherwise look damaged.

    Args:
        written: the format number in the file; anything but an integer passes.
        known: the newest format that this version reads.

    Raises:
        UnreadableError: the format is newer.
    """
    if type(written) is int and written > known:
        raise UnreadableError(
            f"{path}: its format is {written} and this version of resvar reads {known}; update "
            "resvar."
        )


# --- atomic writes --------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` on exit; readers see the old or the new content.

    A replaced file's mode stays, and its owner where the system allows it. A link is replaced, not
    followed. On an error the new file is removed, and `path` stays as it was.

    Args:
        durable: flush to disk first; False for a file that may be lost in a power cut.
    """
    temporary = temporary_beside(path)
    try:
        with create_new(temporary, like=path) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """A new, unpredictable name next to `path`; `stale_temporaries` recognises it."""
    return path.with_name(f"{path.name[:50]}.{secrets.token_hex(8)}.tmp")  # 255 bytes at most


def stale_temporaries(folder: Path, names: str) -> list[Path]:
    """What killed processes have left in `folder` of writing the files that match `names`."""
    pattern = re.compile(rf"({names})(\.[0-9a-f]{{16}})?\.tmp")
    return [path for path in folder.glob("*.tmp") if pattern.fullmatch(path.name)]


def create_new(path: Path, like: Path) -> IO[bytes]:
    """Create a file for writing, with mode and owner of the file `like` if there is one.

    Raises:
        OSError: the name is taken, also by a link that points nowhere; or it cannot be written.
    """
    try:
        model = like.lstat()
    except FileNotFoundError:
        model = None
    if model is None or not stat.S_ISREG(model.st_mode):
        return _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, "w+b")
    mode = stat.S_IMODE(model.st_mode) & 0o777
    file = _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, "w+b", mode)
    if hasattr(os, "fchown"):
        created = os.fstat(file.fileno())
        if (created.st_uid, created.st_gid) != (model.st_uid, model.st_gid):
            with contextlib.suppress(PermissionError):
                os.fchown(file.fileno(), model.st_uid, model.st_gid)
        with contextlib.suppress(PermissionError):  # a file system without modes
            os.fchmod(file.fileno(), mode)  # the umask was subtracted
    return file


def flush_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, on systems that can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replace a file by `text`, atomically."""
    with replacing(path, durable) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replace a file by `value` as indented JSON, atomically. NaN, which JSON lacks, is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", durable)


def write_output(path: Path, content: bytes) -> None:
    """Write a file that a person named: `--out FILE`.

    Links are followed. A regular file is replaced as a whole, and keeps its mode and owner. What
    cannot be replaced is written in place: a device, a pipe, a mount point, another user's file.

    Raises:
        UserError: it is a folder or a disk, it is a pipe without a reader, or it cannot be written.
    """
    with _refusals(path):
        require_place(path)
        if not _is_replaceable(path) or not _replaced(path.resolve(), content):
            with _opened_in_place(path) as file:
                file.write(content)


def require_place(path: Path) -> None:
    """Refuse an `--out` that cannot be written, before the work.

    Raises:
        UserError: it is a folder, a disk or a socket; its folder is missing; it is not a file name.
    """
    with _refusals(path):
        if not path.exists():
            if not path.resolve().parent.is_dir():  # a dangling link names the file to be made
                raise UserError(
                    f"--out {path}: cannot be written (there is no folder {path.resolve().parent})."
                )
            return
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"--out {path}: this is a folder; name a file in it.")
        if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            kind = "disk" if stat.S_ISBLK(mode) else "socket"
            raise UserError(f"--out {path}: this is a {kind}; name a file.")


def names_stdout(path: Path) -> bool:
    """Whether a path is the name that Unix gives to standard output."""
    return str(path) in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


# --- helpers --------------------------------------------------------------------------------------

NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
NO_WAIT: int = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
BINARY: int = getattr(os, "O_BINARY", 0)

FILE_TYPES = {
    stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "link", stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = FILE_TYPES.get(stat.S_IFMT(status.st_mode), "device")
        raise UserError(f"{path}: this is a {kind}, not a regular file.")


def _opened(path: Path, flags: int, mode: str, permissions: int = 0o666) -> IO[bytes]:
    """Open without waiting; the second look is for a file that was exchanged after the first."""
    descriptor = os.open(path, flags | NO_WAIT | BINARY, permissions)
    try:
        _require_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise


def _is_replaceable(path: Path) -> bool:
    """Whether a file of this name may take the place of what is there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return True
    mine = not hasattr(os, "geteuid") or os.geteuid() in (0, status.st_uid)
    return stat.S_ISREG(status.st_mode) and mine and not _names_descriptor(path)


def _names_descriptor(path: Path) -> bool:
    """Such as /dev/stdout or /dev/fd/3, which may be an open regular file."""
    return re.fullmatch(r"/dev/(std\w+|fd/\d+)|/proc/(self|\d+)/fd/\d+", str(path)) is not None


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn errors of the system about `--out` into one sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        reason = getattr(error, "strerror", None) or "its links form a circle"
        raise UserError(f"--out {path}: cannot be written ({reason}).") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"--out {str(path)!r}: this is not a file name ({error}).") from error


READER_TIMEOUT = 10.0
"""Seconds to wait for a reader of a named pipe."""


def _opened_in_place(path: Path) -> IO[bytes]:
    """Open what is there, to be written and not replaced.

    Raises:
        UserError: it is a named pipe without a reader.
    """
    if not stat.S_ISFIFO(path.stat().st_mode):
        return path.open("ab" if _names_descriptor(path) else "wb")
    until = time.monotonic() + READER_TIMEOUT
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | NO_WAIT)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise UserError(
                    f"--out {path}: no process reads this named pipe; start its reader first."
                ) from error
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return os.fdopen(descriptor, "wb")


def _replaced(path: Path, content: bytes) -> bool:
    """Replace the file; False where only its name cannot be: a mount point, a read-only folder."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EACCES, errno.EPERM) and path.exists():
            return False
        raise
    return True
