"""The run directory: the names of its files, its lock, its readers and writers. No torch.

A run is finished exactly when it has `result.json`. All files but the lock, the log and the event
files are replaced as a whole, so a reader never meets half of one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.config import Settings, differences, resolve, settings_in
from resvar.errors import RunError, UserError
from resvar.files import LARGEST_YAML, parse_mapping, read_text, refuse_newer, write_text

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from numpy.typing import NDArray

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint.previous.pt"
RESULT = "result.json"
PREDICTIONS = "predictions.npy"
PROGRESS = "progress.json"  # how far a run is, renewed every few seconds while it works
DIVERGED = "diverged.json"  # the loss became NaN or infinite: how the run ended, and it stays so
FAILURE = "failure.json"  # why the last attempt ended without a result; gone when the next starts
LOCK = "run.lock"
SNAPSHOTS = "snapshots"  # a folder: the weights at each iteration of 'probe_at'
PROBE = "probe.json"  # what `resvar probe` measured last
LOG = "log.txt"  # what a run started by a sweep printed

NOTE_FORMAT = 1
"""The `format` of the JSON files that this package writes, and the newest that it reads."""

LARGEST_JSON = 20_000_000
"""Bytes; the list of a sweep with 100,000 runs takes five million."""

LARGEST_PREDICTIONS = 100_000_000
"""Bytes; those of ten million images take 80 million."""

METRIC_COLUMNS = (
    "iteration", "epoch", "lr", "train_loss", "train_error", "test_loss", "test_error",
    "images_per_second", "seconds",
)  # fmt: skip
HOLDOUT_COLUMNS = ("holdout_loss", "holdout_error")
"""Two more columns, behind the others, where a run keeps training images aside."""

CONFIG_FORMAT = 1
CONFIG_HEAD = "# The settings of a run of resvar; format {}\n"
"""The first line of `config.yaml`: a comment, since every name in that file is a setting."""

SEED_LINE = re.compile("^seed: (0|[1-9][0-9]{0,17})$", re.MULTILINE)
"""How `config.yaml` writes a seed, and nothing else that YAML knows."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: iterations done of all, seconds spent, images per second."""

    iteration: int
    iterations: int
    seconds: float
    images_per_second: float

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.iteration / self.iterations)


@dataclass(frozen=True)
class Divergence:
    """How a run ended whose loss became NaN or infinite."""

    iteration: int
    message: str


# --- who works here -------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run directory's lock; it dies with the process, however that ends.

    Raises:
        RunError: another process holds it; its pid and host are named. Or the file system has no
            locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            free = _lock_soon(file.fileno())
        except OSError as error:
            raise RunError(
                f"{folder}: this file system cannot lock files ({error.strerror}), so nothing "
                "would keep a second process out; choose a folder on another one with --out."
            ) from error
        if not free:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise RunError(f"{folder}: {owner} is working here; wait for it or stop it.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process is working in the run directory now."""
    try:
        with (folder / LOCK).open("r") as file:
            return not _try_lock(file.fileno(), shared=True)
    except OSError:
        return False


def _lock_soon(descriptor: int) -> bool:
    """Take the lock, with patience for those who only look whether it is free."""
    for _ in range(10):
        if _try_lock(descriptor, shared=False):
            return True
        time.sleep(0.1)
    return False


def _try_lock(descriptor: int, shared: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there nothing guards against a second process
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- what it says ---------------------------------------------------------------------------------


def read_settings(folder: Path) -> Settings:
    """The settings that a run was started with.

    Raises:
        UserError: `config.yaml` is missing or wrong, or of a later version of resvar.
    """
    path = folder / CONFIG
    text = read_text(path, LARGEST_YAML, "configuration")
    head = re.match(CONFIG_HEAD.format("([0-9]{1,9})"), text)
    if head is not None:
        refuse_newer(path, int(head[1]), CONFIG_FORMAT)
    cell, lines = SEED_LINE.subn("seed: 0", text)
    if lines == 1 and (seed := SEED_LINE.search(text)):
        with suppress(UserError):
            return _settings_of_cell(cell).model_copy(update={"seed": int(seed[1])})
    return resolve(config=path)  # and says what is wrong, and where


@lru_cache(maxsize=256)
def _settings_of_cell(text: str) -> Settings:
    """What a `config.yaml` with `seed: 0` says. Remembered: the runs of a cell differ in that line
    alone, and YAML is slow to read.

    Raises:
        UserError: it is wrong.
    """
    values = parse_mapping(text, CONFIG)
    if values.get("seed") != 0:  # what looked like its line is part of another value
        raise UserError(f"{CONFIG}: there is no line for the seed.")
    return settings_in(values, CONFIG)


def guard(folder: Path, wanted: Settings) -> None:
    """Refuse to work in `folder` for a run that is not the one there.

    Raises:
        UserError: the folder holds a run with other settings, and which differ.
    """
    if not (folder / CONFIG).exists():
        return
    if differing := differences(wanted, read_settings(folder)):
        raise UserError(
            f"{folder} holds a run with other settings ({'; '.join(differing)}): choose another "
            "--out, or start that run over with `resvar train … --fresh`."
        )


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run, with a test error in it.

    Raises:
        UserError: it is damaged.
    """
    result = read_json(folder / RESULT)
    error = result.get("test_error")
    if isinstance(error, bool) or not isinstance(error, int | float) or not 0 <= error <= 100:
        raise UserError(
            f"{folder / RESULT}: this is damaged: 'test_error' is {error!r:.100}, no percentage; "
            "start the run over with --fresh."
        )
    return result


def read_predictions(folder: Path) -> NDArray[np.integer[Any]] | None:
    """The predicted class of each test image, [N] of some integer type; None where there are none.

    Raises:
        UserError: the file is damaged.
    """
    import numpy as np

    path = folder / PREDICTIONS
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_PREDICTIONS:
            raise ValueError("no file, or too large a one")
        with path.open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
        if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
            raise ValueError("no list of classes")
    except Exception as error:  # NumPy parses the header as Python, which can raise nearly anything
        raise UserError(f"{path}: this is damaged or no NumPy file.") from error
    return found


def read_divergence(folder: Path) -> Divergence | None:
    """How the run diverged; None where it did not.

    Raises:
        UserError: `diverged.json` is damaged.
    """
    path = folder / DIVERGED
    if not path.exists():
        return None
    note = read_json(path)
    iteration, message = note.get("iteration"), note.get("message")
    if type(iteration) is not int or not isinstance(message, str):
        raise UserError(f"{path}: this is damaged; start the run over with --fresh.")
    return Divergence(iteration, message)


def read_progress(folder: Path) -> Progress | None:
    """What `progress.json` says.

    None where the file is missing or makes no sense: it is renewed soon, or does not matter.
    """
    try:
        note = read_json(folder / PROGRESS)
        progress = Progress(
            int(note["iteration"]), int(note["iterations"]),
            float(note["seconds"]), float(note["images_per_second"]),
        )  # fmt: skip
    except (UserError, KeyError, TypeError, ValueError, OverflowError):
        return None
    times = (progress.seconds, progress.images_per_second)
    sound = all(math.isfinite(value) and value >= 0 for value in times)
    return progress if sound and 0 <= progress.iteration <= progress.iterations > 0 else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in one of resvar's JSON files.

    Raises:
        UserError: the file cannot be read, holds something else, or is of a later version of
            resvar.
    """
    text = read_text(path, LARGEST_JSON, "record of a run")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: this is damaged or no JSON ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: this is damaged: an object is expected.")
    refuse_newer(path, value.get("format"), NOTE_FORMAT)
    return value


def write_metrics(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write `metrics.csv` anew; numbers in the shortest form that reads back to the same bits."""
    text = io.StringIO()
    columns = METRIC_COLUMNS + (HOLDOUT_COLUMNS if rows and HOLDOUT_COLUMNS[0] in rows[0] else ())
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: repr(row[key]) for key in columns} for row in rows)
    write_text(path, text.getvalue())


def read_metrics(folder: Path) -> pandas.DataFrame:
    """The rows of `metrics.csv`, one per evaluation; no rows where the file is missing.

    Raises:
        UserError: the file is damaged.
    """
    import pandas

    path = folder / METRICS
    try:
        return pandas.read_csv(path)
    except FileNotFoundError:
        return pandas.DataFrame(columns=list(METRIC_COLUMNS))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: this is damaged ({str(error).splitlines()[0]}).") from error


def snapshot_path(folder: Path, iteration: int) -> Path:
    """Where a run keeps its weights after so many updates."""
    return folder / SNAPSHOTS / f"iteration-{iteration:06d}.safetensors"


def snapshots(folder: Path) -> dict[int, Path]:
    """Iteration → file of the weights that a run has kept (`probe_at`), in the run's order."""
    found = {}
    for path in (folder / SNAPSHOTS).glob("iteration-*.safetensors"):
        number = path.stem.removeprefix("iteration-")
        if number.isdecimal():
            found[int(number)] = path
    return dict(sorted(found.items()))
