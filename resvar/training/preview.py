"""`resvar train --dry-run`: what the same command would do, without writing anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from resvar import rundir
from resvar.console import deliver_drawn, duration, per_second
from resvar.data.folder import FolderImages
from resvar.data.splits import open_images
from resvar.errors import UserError
from resvar.models.architecture import CLASSES
from resvar.ownership import run_folder
from resvar.settings import CIFAR_TEST_IMAGES, Settings
from resvar.table import Table, draw_parts, filled, left
from resvar.training.checkpoint import outlook
from resvar.training.execution import Execution
from resvar.training.job import check_folder, with_classes
from resvar.training.machine import choose_device, device_name
from resvar.training.memory import require_memory
from resvar.training.throughput import measure_throughput

SECONDS = 2.0
"""How long the speed is measured, after the first updates."""


def preview_run(settings: Settings, data: Path, out: Path | None, device: str, fresh: bool) -> None:
    """Print the settings, run directory, device and time of a run, with a speed measured here.

    Raises:
        UserError: `run_training` would refuse the run. Missing data is only reported.
        RunError: the run has diverged.
    """
    folder = out or run_folder(Path("runs"), settings)
    finished = check_folder(folder, settings, fresh, lambda _: None)
    begun, state = None, "new"
    if (folder / rundir.CONFIG).exists():
        begun = None if fresh else rundir.read_settings(folder)
        state = "the run here is removed and started over" if fresh else outlook(folder)
    try:
        images = open_images(settings, data)
        dataset, settings = "is complete", with_classes(settings, images)
        test = len(
            images.evaluation.samples if isinstance(images, FolderImages) else images.test_labels
        )
    except UserError as error:
        dataset, test = f"is not usable yet: {error}", CIFAR_TEST_IMAGES
    plan = Execution.resolve(_measurable(settings), choose_device(device), begun=begun)
    require_memory(plan)
    plan.prepare_process()
    lines = [
        f"Run directory: {folder} ({state})",
        f"Dataset: {settings.dataset} {dataset}",
        f"Device: {device_name(plan.device)}; {plan}",
    ]
    resolved = plan.settings.model_copy(update={"num_classes": settings.num_classes})
    if not finished:
        lines.append(_time(plan, 0 if begun is None else _done(folder), test))
    deliver_drawn(
        lambda console: draw_parts([*lines, *_settings(settings, resolved)], console), None
    )


def _measurable(settings: Settings) -> Settings:
    """With a number of classes for the network, which a missing folder of images does not give."""
    if settings.dataset == "folder" and settings.num_classes is None:
        return settings.model_copy(update={"num_classes": CLASSES["imagenet"]})
    return settings


def _time(plan: Execution, done: int, test_images: int) -> str:
    """How long the rest of a run takes, from a speed that is measured now."""
    speed = measure_throughput(plan, SECONDS)
    left = plan.settings.work(test_images, done) / speed
    updates = plan.settings.iterations - done
    return (
        f"Time: about {duration(left)} for {updates:,} iterations and their evaluations, at the "
        f"{per_second(speed)} images/s measured just now."
    )


def _done(folder: Path) -> int:
    progress = rundir.read_progress(folder)
    return 0 if progress is None else progress.iteration


def _settings(asked: Settings, resolved: Settings) -> Iterator[str | Table]:
    """What the run changes, then every setting as `config.yaml` contains it."""
    if asked.changes:
        title = f"Changed from the protocol '{asked.protocol}' or the usual network"
        columns = (left("setting", lambda row: row[0]), left("value", lambda row: str(row[1])))
        yield ""
        yield filled(title, columns, asked.changes.items())
    yield ""
    yield "All settings:"
    for line in resolved.to_yaml().splitlines():
        yield f"  {line}"
    yield ""
    yield "Nothing was trained or written. `resvar settings NAME` explains a setting."
