"""What a run writes to its directory while it trains: metrics, checkpoints, snapshots, progress."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

from resvar.export.description import Provenance
from resvar.export.safetensors_file import to_safetensors
from resvar.files import replacing
from resvar.rundir import METRICS, PROGRESS, snapshot_path, write_metrics, write_note
from resvar.training.checkpoint import save
from resvar.training.events import Events
from resvar.training.execution import Log
from resvar.training.trainer import Callback, Trainer
from resvar.training.wandb_log import WandbLog

NOTE_EVERY = 5.0
"""Seconds between two refreshes of `progress.json`."""


class Writer(Callback):
    """Writes the files of a run directory. A context manager.

    Args:
        log: called with the trackers' sentences for the user.
    """

    def __init__(self, folder: Path, trainer: Trainer, log: Log) -> None:
        self.folder, self.trainer, self._log = folder, trainer, log
        self._noted = time.monotonic()
        self._saving: float | None = None  # seconds of the newest checkpoint
        self._trackers: list[Events | WandbLog] = []

    def __enter__(self) -> Self:
        settings, rows = self.trainer.settings, self.trainer.rows
        if settings.tensorboard:
            self._trackers.append(Events(self.folder, rows, self.trainer.total_seconds()))
        if settings.wandb:
            self._trackers.append(WandbLog(self.folder, settings, rows, self._log))
        return self

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()

    def on_update(self, trainer: Trainer) -> None:
        del trainer
        self._renew_progress()

    def on_evaluation_batch(self, share: float) -> None:
        del share
        self._renew_progress()

    def on_evaluation(self, trainer: Trainer, row: dict[str, float]) -> None:
        write_metrics(self.folder / METRICS, trainer.rows)
        for tracker in self._trackers:
            tracker.add(row)

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Metrics first: the file never lacks a row of the checkpoint, and loses a row that the
        checkpoint lacks, since the resumed run computes it again."""
        begun = time.monotonic()
        write_metrics(self.folder / METRICS, trainer.rows)
        save(self.folder, trainer.state())
        self._saving = time.monotonic() - begun
        self._write_progress()

    def on_snapshot(self, trainer: Trainer) -> None:
        """The weights and BN's buffers alone, as `resvar.load_model` reads them."""
        path = snapshot_path(self.folder, trainer.iteration)
        path.parent.mkdir(exist_ok=True)
        provenance = Provenance(trainer.settings, trainer.iteration)
        with replacing(path) as file:
            file.write(to_safetensors(trainer.network, provenance))

    def _renew_progress(self) -> None:
        if time.monotonic() - self._noted > NOTE_EVERY:
            self._write_progress()

    def _write_progress(self) -> None:
        trainer, self._noted = self.trainer, time.monotonic()
        note = {
            "iteration": trainer.iteration,
            "iterations": trainer.settings.iterations,
            "seconds": trainer.total_seconds(),
            "seconds_left": trainer.seconds_left(),
            "images_per_second": trainer.pace.images_per_second,
            "test_images": len(trainer.splits.test.labels),
            "checkpoint_seconds": self._saving,
        }
        write_note(self.folder / PROGRESS, note, durable=False)
