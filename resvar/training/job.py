"""`resvar train`: one run from its settings to `result.json`, started or resumed.

Processes that torchrun started share one run (resvar/training/distributed.py): rank 0 has the lock,
reads and writes the run directory, and prints. `ranks.on_rank0(f)` calls f there and gives its
value to all, `ranks.on_all_ranks(f)` calls it on each, and an error on one rank is raised on all.
In a single process both are `f()`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from resvar import rundir
from resvar.condition import read_result, require_usable
from resvar.console import duration, percent
from resvar.data.cifar import Images
from resvar.data.folder import FolderImages
from resvar.data.splits import Splits, open_images
from resvar.errors import RunError, Stopped
from resvar.files import replacing, write_json
from resvar.models.network import count_parameters
from resvar.ownership import refuse_foreign, run_folder, start_over
from resvar.settings import IMAGES_OF, Settings
from resvar.training.checkpoint import load_newest, outlook
from resvar.training.distributed import Ranks
from resvar.training.environment import (
    describe_environment,
    record_environment,
    require_same_images,
)
from resvar.training.evaluate import Evaluation
from resvar.training.events import require_trackers
from resvar.training.execution import Execution, Log
from resvar.training.failures import record_failures
from resvar.training.joining import process_group
from resvar.training.memory import require_memory
from resvar.training.progress import Progress
from resvar.training.source import SourceVersion, source_version
from resvar.training.stop import (
    MESSAGE,
    StopRequest,
    continue_without_sweep,
    stop_request,
    sweep_process,
)
from resvar.training.trainer import Callback, Trainer
from resvar.training.writer import Writer


def run_training(
    settings: Settings,
    data: Path,
    console: Console,
    out: Path | None = None,
    device: str = "auto",
    fresh: bool = False,
) -> dict[str, Any]:
    """Train a run, resume it, or print that it is finished; returns its result on every rank.

    Args:
        data: the folder with the dataset.
        out: the run directory; default: the one that `run_folder` chooses below `runs`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        fresh: remove the run that is there and start over.

    Raises:
        UserError: wrong input; nothing was written.
        RunError: the run cannot be finished; everything saved is kept.
        Stopped: Ctrl-C or another signal; the message says what a rerun will do.
        PeerFailure: on all ranks but rank 0, which raises one of these.
    """
    continue_without_sweep()
    folder = out or run_folder(Path("runs"), settings)
    with _interruptible(folder, fresh), process_group() as ranks:
        source = source_version()
        console = console if ranks.first else Console(quiet=True)

        def log(text: str) -> None:
            console.print(text, soft_wrap=True, highlight=False)

        chosen = ranks.on_all_ranks(lambda: _choose_device(settings, device, ranks))
        result = ranks.on_rank0(lambda: check_folder(folder, settings, fresh, log))
        if result is not None:
            return result
        images = ranks.on_all_ranks(lambda: open_images(settings, data))
        plan = _resolve(with_classes(settings, images), chosen, ranks, folder, fresh, log)
        ranks.on_all_ranks(lambda: require_memory(plan))
        _agree(plan, images, fresh)
        with _claim(folder, plan, fresh, log) as run:
            if run.result is not None:
                return run.result
            trainer, origin = run.begin(images, source)
            together = ranks.size > 1
            message = MESSAGE if ranks.first else ""
            with (
                stop_request(message, together) as stop,
                run.observers(trainer, console) as callbacks,
            ):
                test = trainer.fit(callbacks, stop)
                result = run.summary(trainer, test, origin)
            with stop_request("", together) as stop:  # the result is written whole or not at all
                run.finish(result, test, stop)
            return result


@contextmanager
def _interruptible(folder: Path, fresh: bool) -> Iterator[None]:
    """Handle Ctrl-C outside the training loop, which handles it itself."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {outlook(folder, fresh)}.") from None


def _choose_device(settings: Settings, device: str, ranks: Ranks) -> torch.device:
    """The device of this rank, after the checks that cost nothing.

    Raises:
        UserError: the device or a package is missing, the batch cannot be divided, or the
            environment names an impossible sweep.
    """
    sweep_process()
    require_trackers(settings)
    ranks.check_divides(settings)
    return ranks.device(device)


def with_classes(settings: Settings, images: Images | FolderImages) -> Settings:
    """The settings with the number of classes, which a folder of images has once it is open."""
    if not isinstance(images, FolderImages):
        return settings
    return settings.model_copy(update={"num_classes": len(images.class_names)})


def _resolve(
    settings: Settings, device: torch.device, ranks: Ranks, folder: Path, fresh: bool, log: Log
) -> Execution:
    """How the run is carried out; a resumed one as it was started, if that is possible here."""

    def recorded() -> Settings | None:
        there = (folder / rundir.CONFIG).exists() and not fresh
        return rundir.read_settings(folder) if there else None

    begun = ranks.on_rank0(recorded)
    return ranks.on_all_ranks(lambda: Execution.resolve(settings, device, ranks, begun, log))


def _agree(plan: Execution, images: Images | FolderImages, fresh: bool) -> None:
    """Require that all ranks were started with the same settings."""
    plan.ranks.agree_on(
        {
            **plan.settings.model_dump(),
            "execution": str(plan),
            "--fresh": fresh,
            "--device": plan.device.type,
            "dataset": images.checksum,
            "torch": torch.__version__,
        }
    )


def check_folder(folder: Path, settings: Settings, fresh: bool, log: Log) -> dict[str, Any] | None:
    """The result of a finished run, unless it starts over.

    Raises:
        UserError: the folder cannot be used, or contains files of others or another run.
        RunError: the run has diverged, and would do so again.
    """
    require_usable(folder)
    refuse_foreign(folder)
    return None if fresh else _finished(folder, settings, log)


def _finished(folder: Path, settings: Settings, log: Log) -> dict[str, Any] | None:
    """The result of a finished run; None if it is not finished.

    Raises:
        UserError: the folder contains a run with other settings.
        RunError: the run has diverged, and would do so again.
    """
    rundir.guard(folder, settings)
    if (result := read_result(folder)) is None:
        if (divergence := rundir.read_divergence(folder)) is not None:
            raise RunError(
                f"{folder}: this run diverged at iteration {divergence.iteration}, and the same "
                "settings would do so again; change one, such as lr, or start over with --fresh."
            )
        return None
    log(
        f"{folder}: already finished, test error {percent(result['test_error'])}. "
        "Start it over with --fresh."
    )
    return result


# --- a run directory that belongs to this process -------------------------------------------------


@contextmanager
def _claim(folder: Path, plan: Execution, fresh: bool, log: Log) -> Iterator[ClaimedRun]:
    """Lock the run directory on rank 0; with `fresh`, remove the run that is there."""
    with ExitStack() as held:

        def enter() -> dict[str, Any] | None:
            held.enter_context(rundir.locked(folder))
            if fresh:
                start_over(folder, plan.settings)
            return _finished(folder, plan.settings, log)  # meanwhile, by another process

        run = ClaimedRun(folder, plan, log, plan.ranks.on_rank0(enter))
        with record_failures(folder, fresh) if plan.ranks.first else nullcontext():
            yield run


@dataclass(frozen=True)
class ClaimedRun:
    """A locked run directory and the run in it.

    Attributes:
        result: of a run that is finished already.
    """

    folder: Path
    plan: Execution
    log: Log
    result: dict[str, Any] | None

    def begin(
        self, images: Images | FolderImages, source: SourceVersion
    ) -> tuple[Trainer, dict[str, Any]]:
        """Prepare to train; settings and environment are written.

        Returns:
            A trainer in the state of the newest checkpoint, and what `result.json` will tell of the
            machine and the source code.
        """
        ranks = self.plan.ranks
        ranks.on_rank0(lambda: require_same_images(self.folder, images))
        if ranks.first:
            (self.folder / rundir.FAILURE).unlink(missing_ok=True)
        trainer = ranks.on_all_ranks(lambda: self._trainer(images))
        state = ranks.on_rank0(
            lambda: load_newest(self.folder, warn=lambda problem: self.log(f"Warning: {problem}"))
        )
        if state is not None:
            trainer.restore(state)
        devices = ranks.describe(self.plan.device)
        origin: dict[str, Any] = {"device": devices, "commit": source.commit}
        if ranks.first:
            rundir.write_settings(self.folder, self.plan.settings)
            here = describe_environment(self.plan, devices, images, source)
            commits = record_environment(self.folder, self.plan, here, trainer.iteration, self.log)
            origin |= {"commits": commits} if len(commits) > 1 else {}
        self._announce(trainer, devices)
        return trainer, origin

    @contextmanager
    def observers(self, trainer: Trainer, console: Console) -> Iterator[list[Callback]]:
        """Rank 0 writes and shows the run; the other ranks do neither."""
        if not self.plan.ranks.first:
            yield []
            return
        writer = Writer(self.folder, trainer, self.log)
        with writer, Progress(trainer, console) as progress:
            yield [writer, progress]

    def summary(self, trainer: Trainer, test: Evaluation, origin: dict[str, Any]) -> dict[str, Any]:
        """The content of `result.json`.

        Args:
            origin: from `begin`.
        """
        settings, last = self.plan.settings, trainer.rows[-1]
        names = ("variant", "depth", "seed", "protocol", "dataset", "iterations")
        result = {
            "format": rundir.NOTE_FORMAT,
            **{name: getattr(settings, name) for name in names},
            "parameters": count_parameters(trainer.network),
            "test_error": test.error,
            "best_test_error": min(row["test_error"] for row in trainer.rows),
            "best_test_error_note": "optimistic: the evaluation was chosen by looking at the test "
            "set",
            "train_loss": last["train_loss"],
            "train_error": last["train_error"],
            "seconds": trainer.total_seconds(),
            "images_per_second": trainer.images_per_second(),
            "precision": settings.precision,
            "kernels": self.plan.kernels,
            "config_hash": settings.hash,
            **origin,
        }
        if "holdout_error" in last:
            result["holdout_error"] = last["holdout_error"]
        return result

    def finish(self, result: dict[str, Any], test: Evaluation, stop: StopRequest) -> None:
        """Write the predictions, then the result: its presence marks the run as finished.

        Raises:
            Stopped: a signal came before the result was written.
        """
        if self.plan.ranks.first:
            _write_result(self.folder, result, test, stop)
            self.log(
                f"Finished {result['variant']}-{result['depth']}, seed {result['seed']}: test "
                f"error {percent(test.error)} after {duration(result['seconds'])}."
            )

    def _trainer(self, images: Images | FolderImages) -> Trainer:
        """The run at its beginning, on this rank's shard of the images."""
        plan = self.plan
        plan.prepare_process()
        splits = Splits.prepare(images, plan.settings, plan.device, plan.ranks.shard)
        return Trainer(plan, splits)

    def _announce(self, trainer: Trainer, devices: str) -> None:
        """Log the work before it starts."""
        s = self.plan.settings
        whole = s.bn_batch_size == s.batch_size
        micro = "" if whole else f", in micro-batches of {s.bn_batch_size}"
        start = f", resuming from iteration {trainer.iteration:,}" if trainer.iteration else ""
        self.log(
            f"{s.variant}-{s.depth}, protocol {s.protocol}, seed {s.seed}: "
            f"{count_parameters(trainer.network):,} parameters, {s.iterations:,} iterations of "
            f"{s.batch_size} images of {IMAGES_OF[s.dataset]}{micro}{start}."
        )
        self.log(f"On {devices} in {self.plan}; everything goes to {self.folder}")
        if s.tensorboard:
            self.log(f"To watch it: tensorboard --logdir {shlex.quote(str(self.folder))}")


def _write_result(
    folder: Path, result: dict[str, Any], test: Evaluation, stop: StopRequest
) -> None:
    with replacing(folder / rundir.PREDICTIONS) as file:
        np.save(file, test.predictions.numpy().astype(np.int64))
    if stop:  # after this the run is finished, and exit code 130 would be untrue
        raise Stopped("stopped after the last iteration")
    write_json(folder / rundir.RESULT, result)
    (folder / rundir.PREVIOUS_CHECKPOINT).unlink(missing_ok=True)
