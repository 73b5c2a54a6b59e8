"""Whose files are in a folder: what a new run may replace, and what `--fresh` may remove.

A folder can contain a `config.yaml` or `metrics.csv` that a person or another program wrote.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from resvar.config import Settings
from resvar.errors import UserError
from resvar.files import open_regular
from resvar.rundir import (
    CHECKPOINT,
    CONFIG,
    DIVERGED,
    ENVIRONMENT,
    EVENTS,
    FAILURE,
    METRICS,
    PROBE,
    PROGRESS,
    RESULT,
    RUN_FILES,
    snapshots,
    write_settings,
)

_RESOLVED = "".join(
    rf"(?=.*^{name}: )"
    for name in ("variant", "lead", "after_add", "depth", "protocol", "iterations", "lr", "seed")
).encode()
_NOTE = rb'\s*\{\s*"format": \d'

SIGNATURES = {
    CONFIG: rb"# The settings of a run of resvar; format |" + _RESOLVED,
    RESULT: rb'\s*\{.*"config_hash":',
    ENVIRONMENT: _NOTE + rb'|\s*\{.*"resvar":',
    METRICS: rb"iteration,epoch,lr,train_loss,train_error,test_loss,test_error,",
    PROGRESS: _NOTE,
    FAILURE: _NOTE,
    DIVERGED: _NOTE,
    PROBE: _NOTE,
    CHECKPOINT: rb"PK\x03\x04.*digest",
}
"""File → a pattern at its beginning.

A `config.yaml` of an older version lacks the first line. It has the settings of a network and of
its training, and nobody writes all of them by hand.
"""

SIGNATURE_BYTES = 65_536


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder where a run would replace or remove files that are not of this program.

    One file of a run proves that there is a run, and that all names of its files are its own.

    Raises:
        UserError: there is such a file, and no run; the sentence names the file.
    """
    there = [path for path in run_files(folder) if os.path.lexists(path)]
    if there and not any(_is_ours(path) for path in there):
        raise UserError(
            f"{folder}: there is a file {there[0].name} that no run has written, and a run here "
            "would replace it; choose another folder with --out, or move that file away."
        )


def start_over(folder: Path, settings: Settings) -> None:
    """Remove the files of a run and write `config.yaml` for the next.

    The result goes first: a half-removed run is not finished. A `config.yaml` is always there: the
    folder stays recognisable as a run's.
    """
    for path in (*run_files(folder), *folder.glob(EVENTS)):
        if path.name != CONFIG:
            path.unlink(missing_ok=True)
    write_settings(folder, settings)


def run_files(folder: Path) -> list[Path]:
    """The files that a run replaces, whether they are there or not."""
    return [*(folder / name for name in RUN_FILES), *snapshots(folder).values()]


def _is_ours(path: Path) -> bool:
    signature = SIGNATURES.get(path.name)
    if signature is None:
        return False
    try:
        with open_regular(path) as file:
            head = file.read(SIGNATURE_BYTES)
    except (OSError, UserError):
        return False
    return re.match(signature, head, re.DOTALL | re.MULTILINE) is not None
