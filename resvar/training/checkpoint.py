"""Checkpoints that are whole or not there, and that notice when they were damaged.

A checkpoint is an ordinary `torch.save` file with a digest of its own content inside. The new one
is written beside the old, flushed, read back and verified before it takes the old one's name; the
old one is kept as `checkpoint.previous.pt`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from resvar.errors import RunError
from resvar.files import flush_folder
from resvar.training.run import CHECKPOINT, PREVIOUS_CHECKPOINT

FORMAT = 2

State = dict[str, Any]
"""What a run needs to go on: tensors, numbers, strings, and dicts and lists of them."""


class DamagedError(Exception):
    """A checkpoint file that is not what was written."""


def save(folder: Path, state: State) -> None:
    """Make `state` the newest checkpoint of a run directory.

    Raises:
        OSError: the disk is full or read-only; the checkpoints that were there are untouched.
        DamagedError: what was written does not read back.
    """
    newest, previous = folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT
    temporary = folder / f"{CHECKPOINT}.tmp"
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "digest": digest(state), "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        load(temporary)
        if newest.exists():
            newest.replace(previous)
        temporary.replace(newest)
        flush_folder(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> State:
    """The state in a checkpoint file, on the CPU. No code in the file can run.

    Raises:
        DamagedError: the file was cut, changed, or is no checkpoint of resvar.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise DamagedError(f"its format {content['format']} is not known to this version")
        state: State = content["state"]
        if content["digest"] != digest(state):
            raise DamagedError("its content does not match its digest")
    except DamagedError:
        raise
    except pickle.UnpicklingError as error:
        raise DamagedError("it holds more than numbers and text") from error
    except Exception as error:  # flipped bits can make torch's reader raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DamagedError(f"it cannot be read ({reason})") from error
    return state


def load_newest(folder: Path, warn: Any = None) -> State | None:
    """The newest state in a run directory that is whole; None where there is no checkpoint.

    Args:
        warn: called with a sentence when a damaged file is passed over.

    Raises:
        RunError: there are checkpoints and all are damaged. Nothing is deleted.
    """
    problems = []
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = load(path)
        except DamagedError as error:
            problems.append(f"{path} is damaged: {error}")
            continue
        for problem in problems:
            if warn is not None:
                warn(f"{problem}; going on from {name}.")
        return state
    if problems:
        raise RunError(f"{'; '.join(problems)}. Start the run over with --fresh.")
    return None


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
