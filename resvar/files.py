"""Files: the shipped configurations, text, atomic writes.

This module imports nothing of resvar but the errors.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from resvar.errors import UserError


def configs() -> Path:
    """The folder `configs`: inside the package in a wheel, beside it in a checkout."""
    return _shipped_folder("configs")


def examples() -> Path:
    """The folder `examples/`: inside the package in a wheel, beside it in a checkout."""
    return _shipped_folder("examples")


def _shipped_folder(name: str) -> Path:
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name


def shipped(kind: str) -> dict[str, Path]:
    """Name → file of the shipped configurations of a kind: `variants`, `protocols` or `sweeps`."""
    return {path.stem: path for path in sorted((configs() / kind).glob("*.yaml"))}


def read_text(path: Path, largest: int, kind: str) -> str:
    """The text of a file of at most `largest` bytes.

    Args:
        kind: the expected kind of file, for the error message.

    Raises:
        UserError: the file is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        status = path.stat()  # once: a report reads tens of thousands of files
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a pipe never ends
            raise UserError(f"{path}: this is no file.")
        if status.st_size > largest:
            raise UserError(f"{path}: over {largest:,} bytes, so this is no {kind}.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not a text file in UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(path)!r}: this is no file name ({error}).") from error


def refuse_newer(path: Path, written: object, known: int) -> None:
    """Refuse a file of a later version of resvar, which would otherwise look damaged.

    Args:
        written: the format number in the file; anything but an integer passes.
        known: the newest format that this version reads.

    Raises:
        UserError: the format is newer.
    """
    if type(written) is int and written > known:
        raise UserError(
            f"{path}: its format is {written} and this version of resvar reads {known}; update "
            "resvar."
        )


# --- atomic writes --------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` on exit; readers see the old or the new content.

    On an error the temporary file is removed, and `path` stays as it was.

    Args:
        durable: flush to disk first; False for a file that may be lost in a power cut.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
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
