"""Checkpoints that are complete or absent, and that detect damage.

A checkpoint is an ordinary `torch.save` file that contains a digest of its content. A new one is
written next to the old one, flushed, read back and verified; the old one becomes
`checkpoint.previous.pt` too, and then the new one takes its name. So a reader finds a complete
`checkpoint.pt` at every moment.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from resvar.errors import BrokenOffError, RunError, UserError, first_line, is_out_of_memory
from resvar.files import create_new, flush_folder, open_regular, temporary_beside
from resvar.rundir import CHECKPOINT, PREVIOUS_CHECKPOINT, RESULT

FORMAT = 2
"""Of the file. A later version of resvar that changes it still reads this one."""

State = dict[str, Any]
"""Everything that resumes a run: tensors, numbers, strings, and dicts and lists of them."""


LARGEST_UNFOLDING = 4
"""The size of a state in memory, in sizes of its file; ours repeats only the metrics' names."""


class DamagedError(Exception):
    """A checkpoint file whose content has changed since it was written."""


class NewerError(RunError):
    """An intact checkpoint file of a later version of resvar."""


def save(folder: Path, state: State) -> None:
    """Make `state` the newest checkpoint of a run directory.

    Raises:
        OSError: the disk is full or read-only; the existing checkpoints are untouched.
        BrokenOffError: the new file does not read back; the existing ones are untouched.
    """
    newest, previous = folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT
    temporary = temporary_beside(newest)
    try:
        with create_new(temporary, like=newest) as file:
            _write(file, {"format": FORMAT, "digest": digest(state), "state": state})
        try:
            load(temporary)
        except DamagedError as error:
            raise BrokenOffError(
                f"{newest}: the file just written does not read back ({error}): check that disk."
            ) from error
        if newest.exists() and _is_whole(newest):  # a damaged one must not push out a good one
            _keep_as(previous, newest)
        temporary.replace(newest)
        flush_folder(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> State:
    """The state in a checkpoint file, on the CPU.

    No code in the file can run, and reading it takes no more memory or time than its size explains.

    Raises:
        DamagedError: the file was cut, changed, or is not a checkpoint of resvar.
        NewerError: it was written by a later version of resvar.
        OSError: it is missing, or this user may not read it.
        MemoryError, RuntimeError: there is not enough memory to read it.
    """
    try:
        with open_regular(path) as file:  # once: the name may change its file at any moment
            size = os.fstat(file.fileno()).st_size
            _check_stored(file, size)
            file.seek(0)
            with warnings.catch_warnings():  # about unusual pickles: reported below
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
        _check_unfolding(content, LARGEST_UNFOLDING * size)
        written = content["format"]
        if type(written) is int and written > FORMAT:
            raise NewerError(
                f"{path}: its format is {written} and this version of resvar reads {FORMAT}; "
                "update resvar to resume."
            )
        if written != FORMAT:
            raise DamagedError(f"its format {written!r} is not known")
        state: State = content["state"]
        if content["digest"] != digest(state):
            raise DamagedError("its content does not match its digest")
    except (DamagedError, NewerError, FileNotFoundError, PermissionError):
        raise
    except UserError as error:
        raise DamagedError(str(error).removeprefix(f"{path}: ").rstrip(".")) from error
    except pickle.UnpicklingError as error:
        raise DamagedError("it contains more than numbers and text") from error
    except Exception as error:  # flipped bits can make torch's reader raise nearly anything
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DamagedError(f"it cannot be read ({reason})") from error
    return state


def load_newest(folder: Path, warn: Any = None) -> State | None:
    """The newest intact state in a run directory; None if there is no checkpoint.

    Args:
        warn: called with a sentence when a damaged file is skipped.

    Raises:
        RunError: there are checkpoints and all are damaged, or one is of a later version of
            resvar. Nothing is deleted.
    """
    problems = []
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            state = load(path)
        except FileNotFoundError:  # replaced or removed meanwhile
            continue
        except DamagedError as error:
            problems.append(f"{path} is damaged: {error}")
            continue
        for problem in problems:
            if warn is not None:
                warn(f"{problem}; resuming from {name}.")
        return state
    if problems:
        raise RunError(f"{'; '.join(problems)}. Start the run over with --fresh.")
    return None


def outlook(folder: Path, fresh: bool = False) -> str:
    """What a rerun of a command will do, by the checkpoints that load: the end of a sentence.

    Args:
        fresh: the command had `--fresh`.
    """
    if (folder / RESULT).exists():
        return "the run is finished"
    try:
        state = load_newest(folder)
    except RunError as error:
        return str(error).rstrip(".")
    except Exception as error:
        return f"whether its checkpoint can be used is not known ({first_line(error)})"
    if state is None:
        return "no checkpoint was saved, so rerun the command to start from the beginning"
    without = " without --fresh" if fresh else ""
    return (
        f"a checkpoint is saved: rerun the command{without} to resume at iteration "
        f"{state['iteration']:,}"
    )


def _check_stored(file: IO[bytes], size: int) -> None:
    """Refuse an archive that unpacks to more than it has bytes; `torch.save` compresses nothing.

    Raises:
        DamagedError: it is compressed, or its members overlap.
        zipfile.BadZipFile: it is not an archive.
    """
    with zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > size:
            raise DamagedError("it unpacks to more than it has bytes")


def _check_unfolding(value: Any, most: int) -> None:
    """Refuse a value that unfolds to far more than its file, or contains foreign objects.

    For example a list that contains the same list ten times, which does so too, and so on; or a
    tensor of a thousand million elements with a stride of 0.

    Raises:
        DamagedError: it comes to more than `most` bytes, or contains other types.
    """
    waiting, size = [value], 0
    while waiting:
        held = waiting.pop()
        if isinstance(held, torch.Tensor):
            size += held.numel() * held.element_size()
        elif isinstance(held, str | bytes):
            size += len(held)
        elif isinstance(held, dict | list | tuple):
            inside = [*held.keys(), *held.values()] if isinstance(held, dict) else held
            size += 8 * len(inside)
            if size <= most:
                waiting.extend(inside)
        elif held is not None and not isinstance(held, int | float):
            raise DamagedError("it contains more than numbers and text")
        if size > most:
            raise DamagedError("it unfolds to far more than its file contains")


def _is_whole(path: Path) -> bool:
    try:
        load(path)
    except DamagedError:
        return False
    return True


def _keep_as(kept: Path, path: Path) -> None:
    """Give a file a second name, replacing a file of that name, so that `path` is never missing.

    Where the system has no hard links, the file is renamed.
    """
    link = temporary_beside(kept)
    try:
        os.link(path, link, follow_symlinks=False)
    except OSError:
        path.replace(kept)
        return
    try:
        link.replace(kept)  # does nothing if both are the same file already
    finally:
        link.unlink(missing_ok=True)


def _write(file: IO[bytes], content: Any) -> None:
    """Write and flush a file.

    Raises:
        OSError: of the disk; torch's own writer would hide it behind its own error.
    """
    try:
        torch.save(content, file)
    except RuntimeError as error:
        hidden = error.__context__
        while hidden is not None and not isinstance(hidden, OSError):
            hidden = hidden.__context__
        raise hidden or error from None
    file.flush()
    os.fsync(file.fileno())


def digest(value: Any) -> str:
    """SHA-256 over a nested value: its structure, its numbers, the bytes of its tensors."""
    sha = hashlib.sha256()
    _update(sha, value)
    return sha.hexdigest()


def _update(sha: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)};".encode())
        for key, held in value.items():
            _update(sha, key)
            _update(sha, held)
    elif isinstance(value, list | tuple):
        sha.update(f"list {len(value)};".encode())
        for held in value:
            _update(sha, held)
    else:
        sha.update(f"{type(value).__name__} {value!r};".encode())
