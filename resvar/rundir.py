"""The run directory: file names, lock, readers and writers. No torch.

A run is finished when `result.json` exists and `resvar.condition` finds it sound. Every file but
the lock, the log and the event files is replaced as a whole, so a reader never sees a partial one.
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

from resvar.config import settings_in
from resvar.errors import OtherRunError, RunError, UnreadableError, UserError, first_line
from resvar.files import (
    open_regular,
    open_to_append,
    read_text,
    refuse_newer,
    stale_temporaries,
    write_json,
    write_text,
)
from resvar.settings import Settings, differences
from resvar.strict_yaml import LARGEST_YAML, parse_mapping

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from numpy.typing import NDArray

RESULT = "result.json"  # the result; written once, last
CONFIG = "config.yaml"  # every setting, resolved
ENVIRONMENT = "environment.json"  # versions, device, commit, and where the run resumed
METRICS = "metrics.csv"  # one row per evaluation
PREDICTIONS = "predictions.npy"  # the predicted class of each test image
PROGRESS = "progress.json"  # refreshed every few seconds while the run is running
FAILURE = "failure.json"  # why the last attempt failed; removed when the next one starts
DIVERGED = "diverged.json"  # the loss became NaN or infinite, which ends the run for good
CHECKPOINT = "checkpoint.pt"  # the newest complete state
PREVIOUS_CHECKPOINT = "checkpoint.previous.pt"  # kept until the newest one is verified
PROBE = "probe.json"  # the last measurement of `resvar probe`
WANDB = "wandb.json"  # the id of the run in Weights & Biases
SNAPSHOTS = "snapshots"  # folder: the weights at each iteration of `probe_at`
EVENTS = "events.out.tfevents.*.resvar"  # TensorBoard event files
LOCK = "run.lock"
LOG = "log.txt"  # output of a run that a sweep started

RUN_FILES = (
    RESULT, CONFIG, ENVIRONMENT, METRICS, PREDICTIONS, PROGRESS, FAILURE, DIVERGED, CHECKPOINT,
    PREVIOUS_CHECKPOINT, PROBE, WANDB,
)  # fmt: skip
"""The files of a run that `--fresh` removes, with snapshots and event files. Lock and log stay, and
so does everything else in the folder."""

WRITTEN_UNDER_LOCK = tuple(name for name in RUN_FILES if name not in (FAILURE, PROBE))
"""The files that only the process with the lock writes, so that it may remove unfinished ones."""

NOTE_FORMAT = 1
"""The `format` of the JSON files: the one written, and the newest one read."""

OWNER_BYTES = 300
"""Of `run.lock`, which names the lock's holder; an untrusted one may contain anything."""

LARGEST_JSON = 20_000_000
"""Bytes. The manifest of a sweep with 100,000 runs takes five million."""

LARGEST_METRICS = 100_000_000
"""Bytes; 64,000 iterations evaluated one by one take twelve million."""

LARGEST_PREDICTIONS = 100_000_000
"""Bytes. The predictions for ten million images take 80 million."""

METRIC_COLUMNS = (
    "iteration", "epoch", "lr", "train_loss", "train_error", "test_loss", "test_error",
    "images_per_second", "seconds",
)  # fmt: skip
HOLDOUT_COLUMNS = ("holdout_loss", "holdout_error")
"""Two more columns at the end, for a run that sets training images aside."""

CONFIG_FORMAT = 1
CONFIG_HEAD = "# The settings of a run of resvar; format {}\n"
"""The first line of `config.yaml`. A comment, since every name in that file is a setting."""

SEED_LINE = re.compile("^seed: (0|[1-9][0-9]{0,17})$", re.MULTILINE)
"""A seed as `config.yaml` writes it, and in none of YAML's other notations."""


@dataclass(frozen=True)
class RunProgress:
    """The content of `progress.json`: iterations done and in total, seconds spent, images/s.

    Attributes:
        test_images: images of an evaluation; None in a file of an older version.
        seconds_left: as the bar shows them; None while unknown, and in a file of an older version.
        checkpoint_seconds: of the newest checkpoint that this process saved; None as above.
    """

    iteration: int
    iterations: int
    seconds: float
    images_per_second: float
    test_images: int | None = None
    seconds_left: float | None = None
    checkpoint_seconds: float | None = None

    @property
    def share(self) -> float:
        """The share of the run that is done, 0 to 1."""
        return min(1.0, self.iteration / self.iterations)


@dataclass(frozen=True)
class Divergence:
    """The end of a run whose loss became NaN or infinite."""

    iteration: int
    message: str


# --- the lock -------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the run directory. The lock ends with the process, however that ends.

    What killed processes have left of writing files is removed.

    Raises:
        RunError: another process has the lock (its pid and host are named), or the file system has
            no locks.
        UserError: `run.lock` is a link or not a regular file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open_to_append(folder / LOCK) as file:
        try:
            free = _acquire(file.fileno())
        except OSError as error:
            raise RunError(
                f"{folder}: this file system cannot lock files ({error.strerror}), so nothing "
                "would keep a second process out; choose a folder on another one with --out."
            ) from error
        if not free:
            file.seek(0)
            owner = file.read(OWNER_BYTES).decode(errors="replace").strip() or "another process"
            raise RunError(f"{folder}: {owner} is working here; wait for it or stop it.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        _remove_stale(folder, "|".join(map(re.escape, WRITTEN_UNDER_LOCK)))
        _remove_stale(folder / SNAPSHOTS, r"iteration-\d+\.safetensors")
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process is using the run directory now."""
    try:
        with open_regular(folder / LOCK) as file:
            return not try_lock(file.fileno(), shared=True)
    except (OSError, UserError, ValueError):  # ValueError: no possible name
        return False


def _acquire(descriptor: int) -> bool:
    """Take the lock. Retries for a second: `is_locked` takes it for a moment too."""
    for _ in range(10):
        if try_lock(descriptor, shared=False):
            return True
        time.sleep(0.1)
    return False


def try_lock(descriptor: int, shared: bool) -> bool:
    """Lock an open file without waiting, until it is closed; False where another process has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock: a second process is not detected
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_stale(folder: Path, names: str) -> None:
    for path in stale_temporaries(folder, names):
        with suppress(OSError):  # a folder, or not ours to remove
            path.unlink()


# --- writers --------------------------------------------------------------------------------------


def write_settings(folder: Path, settings: Settings) -> None:
    """Write `config.yaml`."""
    write_text(folder / CONFIG, CONFIG_HEAD.format(CONFIG_FORMAT) + settings.to_yaml())


def write_note(path: Path, values: Mapping[str, Any], durable: bool = True) -> None:
    """Write one of the JSON files, with the number of its format.

    Args:
        durable: False for a file that may be lost in a power cut.
    """
    write_json(path, {"format": NOTE_FORMAT, **values}, durable)


def write_failure(folder: Path, message: str) -> None:
    """Record why an attempt at a run failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_note(folder / FAILURE, {"message": message})


def write_metrics(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write `metrics.csv`: of each number the shortest text that reads back to the same bits."""
    text = io.StringIO()
    columns = METRIC_COLUMNS + (HOLDOUT_COLUMNS if rows and HOLDOUT_COLUMNS[0] in rows[0] else ())
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: repr(row[key]) for key in columns} for row in rows)
    write_text(path, text.getvalue())


# --- readers --------------------------------------------------------------------------------------


def guard(folder: Path, wanted: Settings) -> None:
    """Refuse a folder that belongs to another run.

    Raises:
        OtherRunError: the run in `folder` has other settings; the message lists the differences.
        UserError: its settings cannot be read.
    """
    if not (folder / CONFIG).exists():
        return
    if differing := differences(wanted, read_settings(folder)):
        raise OtherRunError(
            f"{folder} contains a run with other settings ({'; '.join(differing)}): choose another "
            "folder with --out, or start that run over with `resvar train … --fresh`."
        )


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
    return settings_in(parse_mapping(text, str(path)), str(path))  # names the file in its errors


@lru_cache(maxsize=256)
def _settings_of_cell(text: str) -> Settings:
    """The settings in a `config.yaml` with `seed: 0`.

    Cached: the runs of a cell differ in that line only, and YAML is slow to parse.

    Raises:
        UserError: a setting is unknown or wrong.
    """
    values = parse_mapping(text, CONFIG)
    if values.get("seed") != 0:  # the line was part of another value
        raise UserError(f"{CONFIG}: there is no line for the seed.")
    return settings_in(values, CONFIG)


def read_predictions(folder: Path) -> NDArray[np.integer[Any]] | None:
    """The predicted class of each test image, integers [N]; None before the run is finished.

    Raises:
        UserError: `predictions.npy` is damaged.
    """
    import numpy as np

    path = folder / PREDICTIONS
    if not os.path.lexists(path):
        return None
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > LARGEST_PREDICTIONS:
                raise ValueError("too large")
            found = np.lib.format.read_array(file, allow_pickle=False)
        if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
            raise ValueError("not a list of classes")
    except UserError:
        raise
    except PermissionError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror}).") from error
    except Exception as error:  # NumPy parses the header as Python, which raises many types
        raise UserError(f"{path}: this is damaged or not a NumPy file.") from error
    return found


def read_divergence(folder: Path) -> Divergence | None:
    """How the run diverged; None if it did not.

    Raises:
        UserError: `diverged.json` is damaged.
    """
    path = folder / DIVERGED
    if not os.path.lexists(path):
        return None
    note = read_json(path)
    iteration, message = note.get("iteration"), note.get("message")
    if type(iteration) is not int or not isinstance(message, str):
        raise UserError(f"{path}: this is damaged; start the run over with --fresh.")
    return Divergence(iteration, message)


def read_progress(folder: Path) -> RunProgress | None:
    """The content of `progress.json`; None if it is missing or damaged: it is refreshed soon."""
    try:
        note = read_json(folder / PROGRESS)
        progress = RunProgress(
            int(note["iteration"]), int(note["iterations"]),
            float(note["seconds"]), float(note["images_per_second"]),
            None if note.get("test_images") is None else int(note["test_images"]),
            *(None if note.get(key) is None else float(note[key])
              for key in ("seconds_left", "checkpoint_seconds")),
        )  # fmt: skip
    except (UserError, KeyError, TypeError, ValueError, OverflowError):
        return None
    times = (progress.seconds, progress.images_per_second, progress.test_images or 0,
             progress.seconds_left or 0, progress.checkpoint_seconds or 0)  # fmt: skip
    sound = all(math.isfinite(value) and value >= 0 for value in times)
    return progress if sound and 0 <= progress.iteration <= progress.iterations > 0 else None


def read_json(path: Path) -> dict[str, Any]:
    """The content of one of the JSON files.

    Raises:
        UserError: the file cannot be read, is not a JSON object, or is of a later version of
            resvar.
    """
    text = read_text(path, LARGEST_JSON, "record of a run")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: this is damaged or not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: this is damaged: an object is expected.")
    refuse_newer(path, value.get("format"), NOTE_FORMAT)
    return value


def read_metrics(folder: Path) -> pandas.DataFrame:
    """The rows of `metrics.csv`, one per evaluation; none if the file is missing.

    Raises:
        UserError: `metrics.csv` is damaged: a column or field is missing, the iterations do not
            rise, a training loss is not finite, or a test error is not a percentage.
    """
    import pandas

    path = folder / METRICS
    if not os.path.lexists(path):
        return pandas.DataFrame(columns=list(METRIC_COLUMNS))
    header, *lines = read_text(path, LARGEST_METRICS, "table of metrics").splitlines() or [""]
    names = header.split(",")
    for name in ("iteration", "train_loss", "test_error"):
        if name not in names:
            raise UserError(f"{path}: this is damaged: the column '{name}' is missing.")
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(_metrics_row(names, line.split(","), rows[-1]["iteration"] if rows else 0))
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{path}, line {number}: this is damaged ({first_line(error)})."
            ) from error
    return pandas.DataFrame(rows, columns=names)


def _metrics_row(names: Sequence[str], fields: Sequence[str], before: float) -> dict[str, float]:
    """One row of `metrics.csv`, by column.

    Raises:
        ValueError: the reason why it is impossible after a row of iteration `before`.
    """
    if len(fields) != len(names):
        raise ValueError(f"{len(fields)} fields, where the header has {len(names)}")
    row: dict[str, float] = {
        name: int(field) if name == "iteration" else float(field)
        for name, field in zip(names, fields, strict=True)
    }
    if not before < row["iteration"] < 10**12:
        raise ValueError(f"iteration {row['iteration']} follows {before}")
    if not math.isfinite(row["train_loss"]):
        raise ValueError(f"the training loss is {row['train_loss']}")
    if not 0 <= row["test_error"] <= 100:
        raise ValueError(f"the test error is {row['test_error']}, which is not a percentage")
    return row


def snapshot_path(folder: Path, iteration: int) -> Path:
    """The file of a run's weights after `iteration` updates."""
    return folder / SNAPSHOTS / f"iteration-{iteration:06d}.safetensors"


def snapshots(folder: Path) -> dict[int, Path]:
    """Iteration → file of the weights kept for `probe_at`, in ascending order."""
    found = {}
    for path in (folder / SNAPSHOTS).glob("iteration-*.safetensors"):
        number = path.stem.removeprefix("iteration-")
        if number.isdecimal():
            found[int(number)] = path
    return dict(sorted(found.items()))
