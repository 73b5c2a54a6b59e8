"""Which folder a run has, and whose files are in a folder: what a new run may replace or remove.

A folder can contain a `config.yaml` or `metrics.csv` that a person or another program wrote.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

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
    read_settings,
    snapshots,
    write_settings,
)
from resvar.settings import RESOLVED, Settings, differences

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
its training, which is unlikely to be written by hand.
"""

SIGNATURE_BYTES = 65_536


def run_folder(root: Path, settings: Settings) -> Path:
    """The folder of a run below `root`: where it already is, or else `settings.directory`.

    Older versions put every run into `<variant>-<depth>/seed-<seed>`, whatever its other settings.
    Settings from the `config.yaml` of a run also find a run that was started with a setting open
    (such as `precision: auto`) or under a protocol whose file is elsewhere.
    """
    usual = root / settings.directory
    if _contains(usual, settings):
        return usual
    cell = root / settings.protocol / f"{settings.variant}-{settings.depth}"
    older = cell / usual.name
    if older != usual and _contains(older, settings):
        return older
    if all(getattr(settings, name) == Settings.model_fields[name].default for name in RESOLVED):
        return usual
    for folder in sorted(cell.glob(f"*/{usual.name}")):
        if _contains(folder, settings, exactly=True):
            return folder
    if (usual / CONFIG).exists():  # the values that a record has resolved distinguish the two
        return root / settings.counting(RESOLVED).directory
    return usual


def _contains(folder: Path, settings: Settings, exactly: bool = False) -> bool:
    """Whether the run in a folder has these settings.

    Args:
        exactly: a setting that is open does not match one that the run has resolved.
    """
    if not (folder / CONFIG).exists():
        return False
    try:
        there = read_settings(folder)
    except UserError:
        return False
    both_ways = exactly and differences(there, settings)
    return not differences(settings, there) and not both_ways


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
