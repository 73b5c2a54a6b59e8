"""TensorBoard event files for runs with `tensorboard: true`: the rows of `metrics.csv`.

Needs the optional extra `resvar[tensorboard]`. A process that resumes a run removes the event files
of the process before it and writes the kept rows again, so that no point appears twice and none
that the run has discarded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from resvar.errors import UserError
from resvar.rundir import EVENTS
from resvar.settings import Settings

SUFFIX = Path(EVENTS).suffix

TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "holdout_loss": "loss/holdout",
    "train_error": "error/train",
    "test_error": "error/test",
    "holdout_error": "error/holdout",
    "lr": "lr",
    "images_per_second": "images_per_second",
}
"""Column of `metrics.csv` → tag; the step is the iteration."""


def scalars(row: Mapping[str, float]) -> dict[str, float]:
    """The scalars of an evaluation by tag."""
    return {tag: row[column] for column, tag in TAGS.items() if column in row}


def require_trackers(settings: Settings) -> None:
    """Refuse before anything is written.

    Raises:
        UserError: the run uses TensorBoard or Weights & Biases, and the package is missing.
    """
    for name in ("tensorboard", "wandb"):
        if getattr(settings, name) and not _is_installed(name):
            raise UserError(
                f"{name}=true needs the package {name}, which is not installed: "
                f"pip install 'resvar[{name}]', or leave that setting out."
            )


def _is_installed(package: str) -> bool:
    """A mere folder of that name, such as the `wandb` that runs create, does not count."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def _remove_events(folder: Path) -> None:
    """Remove the event files of a run; files of other programs stay."""
    for path in folder.glob(EVENTS):
        path.unlink(missing_ok=True)


class Events:
    """The event file of one process.

    Args:
        folder: the run directory.
        rows: the evaluations of the run so far, as in `metrics.csv`.
        seconds: spent on the run so far; relative times are then those of the run.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, float]], seconds: float) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _remove_events(folder)
        self._begun = time.time() - seconds
        self._writer = SummaryWriter(str(folder), filename_suffix=SUFFIX)
        for row in rows:
            self._add(row)
        self._writer.flush()

    def add(self, row: Mapping[str, float]) -> None:
        """One evaluation; it is in the file when this returns."""
        self._add(row)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, row: Mapping[str, float]) -> None:
        for tag, value in scalars(row).items():
            self._writer.add_scalar(
                tag, value, int(row["iteration"]), walltime=self._begun + row["seconds"]
            )
