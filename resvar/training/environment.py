"""`environment.json`: where a run was made, and what changed wherever it was resumed."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resvar import rundir
from resvar.data.cifar import Images
from resvar.data.folder import FolderImages
from resvar.errors import UserError
from resvar.files import write_json
from resvar.training.dispatch import onednn_level, variables_set
from resvar.training.execution import Execution, Log
from resvar.training.source import SourceVersion
from resvar.version import __version__

COMPUTING = ("kernels", "compile", "operators", "compiler", "onednn", "variables")
"""Keys that older versions did not write."""

CHANGES_BITS = (
    "torch", "device", "world_size", "threads", "cpu_capability", "commit", *COMPUTING,
)  # fmt: skip
"""Keys of which a change may make a resumed run round differently."""


def describe_environment(
    plan: Execution, devices: str, images: Images | FolderImages, source: SourceVersion
) -> dict[str, Any]:
    """The content of `environment.json` for a run that starts here.

    Args:
        devices: of all ranks, by name.
    """
    cpu = plan.device.type == "cpu"
    reason = {} if source.reason is None else {"commit_reason": source.reason}
    return {
        "format": rundir.NOTE_FORMAT,
        "resvar": __version__,
        "commit": source.commit,
        "dirty": source.dirty,
        **reason,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": devices,
        "device_type": plan.device.type,
        "cuda": None if cpu else torch.version.cuda,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": onednn_level() if cpu else None,
        "variables": variables_set(),
        "threads": torch.get_num_threads(),
        **_checksums(images),
        "world_size": plan.ranks.size,
        "execution": str(plan),
        **plan.facts(),
    }


def record_environment(
    folder: Path, plan: Execution, here: dict[str, Any], iteration: int, log: Log
) -> list[str | None]:
    """Write `environment.json`, or add what changed since to that of a resumed run, with a warning.

    Args:
        here: from `describe_environment`.
        iteration: at which the run starts or resumes.

    Returns:
        The commits that the run has worked with.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / rundir.ENVIRONMENT
    if not iteration or not path.exists():
        write_json(path, here)
        return [here["commit"]]
    begun, resumed = _read_environment(path)
    latest = {
        "world_size": 1,  # older versions knew no other,
        **{key: here[key] for key in ("execution", *COMPUTING) if key in here},  # recorded none,
        "kernels": plan.settings.kernels,  # and computed as the settings say
        "compile": plan.settings.compile,
        **begun,
        **{key: value for changes in resumed for key, value in changes},
    }
    commits = [begun.get("commit")]
    commits += [value for changes in resumed for key, value in changes if key == "commit"]
    changed = {key: value for key, value in here.items() if latest.get(key) != value}
    if not changed:
        return commits
    commits += [changed["commit"]] if "commit" in changed else []
    begun.setdefault("resumed", []).append({"iteration": iteration, "changed": changed})
    write_json(path, begun)
    if decisive := [key for key in CHANGES_BITS if key in changed]:
        log(
            f"Warning: {', '.join(decisive)} changed since this run was started; it resumes "
            "and its result is valid, but not bit for bit that of an undisturbed run."
        )
    return commits


def require_same_images(folder: Path, images: Images | FolderImages) -> None:
    """A run that has a checkpoint is resumed with its own images only.

    Raises:
        UserError: they differ from those that `environment.json` records.
    """
    checkpoints = (folder / rundir.CHECKPOINT, folder / rundir.PREVIOUS_CHECKPOINT)
    path = folder / rundir.ENVIRONMENT
    if not path.exists() or not any(checkpoint.exists() for checkpoint in checkpoints):
        return
    begun, resumed = _read_environment(path)
    latest = {**begun, **{key: value for changes in resumed for key, value in changes}}
    for key, checksum in _checksums(images).items():
        if latest.get(key, checksum) != checksum:  # older versions have recorded less
            raise UserError(
                f"{folder}: the images have changed since this run was started (some were added, "
                "removed, renamed or edited), so it cannot be resumed; restore them, or start over "
                "with --fresh."
            )


def _checksums(images: Images | FolderImages) -> dict[str, str]:
    """What `environment.json` records of the images."""
    checksums = {"dataset_checksum": images.checksum}
    if isinstance(images, FolderImages) and images.contents:
        checksums["dataset_contents"] = images.contents
    return checksums


def _read_environment(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The content of `environment.json`, and the items that changed at each resumption."""
    begun = rundir.read_json(path)
    try:
        return begun, [note["changed"].items() for note in begun.get("resumed", [])]
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path}: this is damaged: 'resumed' is not a list of changes; remove the file and "
            "rerun the command."
        ) from None
