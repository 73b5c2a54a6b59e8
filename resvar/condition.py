"""The condition of a run directory: usable, finished, damaged. Used by training, sweeps, reports.

A run is finished when its `result.json` is complete and possible, and of the settings in
`config.yaml`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from resvar.errors import RunError, UnreadableError, UserError, first_line
from resvar.rundir import (
    CONFIG,
    LOCK,
    LOG,
    NOTE_FORMAT,
    RESULT,
    RUN_FILES,
    read_json,
    read_settings,
)
from resvar.settings import Settings

Read = TypeVar("Read")

MOST_ATTEMPTS = 20
"""Reads of a run that is started over again and again; one start disturbs two at most."""

_NUMBER = (int, float)
_RESULT_TYPES: dict[str, Any] = {
    "variant": (str,), "depth": (int,), "seed": (int,), "protocol": (str,), "dataset": (str,),
    "iterations": (int,), "parameters": (int,), "test_error": _NUMBER,
    "best_test_error": _NUMBER, "train_loss": _NUMBER, "train_error": _NUMBER,
    "seconds": _NUMBER, "images_per_second": _NUMBER, "device": (str,), "precision": (str,),
    "config_hash": (str,), "commit": (str, type(None)),
}  # fmt: skip
_PERCENT = ("test_error", "best_test_error", "train_error", "holdout_error")
_AS_CONFIGURED = ("variant", "depth", "seed", "protocol", "dataset", "iterations")


def read_result(folder: Path, settings: Settings | None = None) -> dict[str, Any] | None:
    """The result of a finished run; None if there is none yet.

    Args:
        settings: those in `config.yaml`, if they are known.

    Raises:
        UserError: `result.json` or `config.yaml` is damaged, or the result is of other settings.
    """
    path = folder / RESULT
    if not os.path.lexists(path):  # a dangling link is a damaged result, not none
        return None
    result = _sound(read_json(path), path)
    settings = settings or read_settings(folder)
    for key in _AS_CONFIGURED:
        if result[key] != (asked := getattr(settings, key)):
            raise UserError(f"{path}: '{key}' is {result[key]}, but {CONFIG} says {asked}.")
    if result["config_hash"] != settings.hash:
        raise UserError(
            f"{path}: 'config_hash' is not that of {CONFIG}, so the result is of other settings."
        )
    return result


def _sound(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """The result, if it is complete and its values are possible.

    Raises:
        UserError: a field is missing or impossible.
    """
    if (written := result.get("format", NOTE_FORMAT)) != NOTE_FORMAT:
        raise UserError(
            f"{path}: 'format' is {written!r}; this version of resvar reads {NOTE_FORMAT}."
        )
    types = _RESULT_TYPES | ({"holdout_error": _NUMBER} if "holdout_error" in result else {})
    for key, kinds in types.items():
        if key not in result:
            raise UserError(f"{path}: '{key}' is missing.")
        value: Any = result[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"{path}: '{key}' is {value!r:.100}, which is of the wrong type.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}: '{key}' is {value}, which is not a finite number.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{path}: '{key}' is far too large a number.")
        if key in _PERCENT and not 0 <= value <= 100:
            raise UserError(f"{path}: '{key}' is {value}, which is not a percentage.")
    return result


def require_usable(folder: Path, writing: bool = False) -> None:
    """Check that `folder` can be a run directory, or does not exist yet.

    Args:
        writing: whether the run will be trained here, not only read.

    Raises:
        UserError: it is not a folder, or one of a run's files is not a regular file.
        UnreadableError: this user may not read or write it.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in (*RUN_FILES, LOCK, LOG) and not entry.is_file():
                    raise UserError(
                        f"{folder / entry.name}: this is not a file; remove or rename it."
                    )
        here = folder
    except FileNotFoundError:
        if folder.is_symlink():
            raise UserError(f"{folder}: this link is broken; remove it.") from None
        here = next(parent for parent in folder.absolute().parents if parent.exists())
    except ValueError as error:  # a lone surrogate, which no name can have
        raise UserError(f"{str(folder)!r}: this is not a folder name ({error}).") from error
    except OSError as error:
        denied = isinstance(error, PermissionError)
        kind = UnreadableError if denied else UserError
        raise kind(f"{folder}: this folder cannot be used ({error.strerror}).") from error
    if writing and not os.access(here, os.W_OK | os.X_OK):
        raise UnreadableError(f"{here}: this user may not write here.")


# --- a folder that others write -------------------------------------------------------------------


def read_undisturbed(folder: Path, read: Callable[[], Read]) -> Read:
    """What `read` finds in a run directory; read again if its run began or ended meanwhile.

    Raises:
        UserError: any error that `read` raises: the parsers of damaged files raise many types.
        UnreadableError: the disk or the memory failed.
        RunError: `read` raises it.
    """
    for _ in range(MOST_ATTEMPTS):
        before = run_stamp(folder)
        try:
            found = _read_or_user_error(folder, read)
        except (UserError, RunError):
            if run_stamp(folder) == before:
                raise
        else:
            if run_stamp(folder) == before:
                return found
    return _read_or_user_error(folder, read)


def _read_or_user_error(folder: Path, read: Callable[[], Read]) -> Read:
    try:
        return read()
    except (UserError, RunError):
        raise
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UnreadableError(f"{folder}: cannot be read ({reason}).") from error
    except Exception as error:
        raise UserError(f"{folder}: this is damaged ({first_line(error)}).") from error


RunStamp = tuple[tuple[int, ...] | None, ...]


def run_stamp(folder: Path) -> RunStamp:
    """The identity of settings and result: it changes when a run begins, ends or is removed.

    None means a missing file.
    """
    return tuple(_file_stamp(folder / name) for name in (CONFIG, RESULT))


def _file_stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, ValueError):  # ValueError: no possible name
        return None
    except OSError as error:
        return (error.errno or 0,)
    return status.st_ino, status.st_mtime_ns, status.st_size
