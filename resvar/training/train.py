"""`resvar train`: one run from its settings to `result.json`, begun or gone on with.

Several processes that torchrun started share one run (`resvar.training.distributed`): the first
holds the lock, reads and writes the run directory and speaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from resvar import rundir
from resvar.config import Settings
from resvar.console import duration
from resvar.data.cifar import Images
from resvar.data.folder import FolderImages
from resvar.data.splits import Splits, open_images
from resvar.errors import RunError, Stopped, UserError
from resvar.files import replacing, write_json
from resvar.training.capture import choose_capture
from resvar.training.checkpoint import load_newest
from resvar.training.distributed import World, process_group
from resvar.training.events import require_tensorboard
from resvar.training.fusing import choose_kernels
from resvar.training.loop import DivergedError, Evaluation, Trainer, parameters
from resvar.training.machine import (
    choose_precision,
    environment,
    prepare,
    source_version,
)
from resvar.training.progress import NullCallback, Watch
from resvar.training.stop import MESSAGE, stop_request


@dataclass(frozen=True)
class Job:
    """A run with everything decided: settings, folder, device, and with whom it is shared.

    `devices` names the devices of all processes.
    """

    settings: Settings
    folder: Path
    device: torch.device
    console: Console
    world: World
    devices: str = ""


def train(
    settings: Settings,
    data: Path,
    console: Console,
    out: Path | None = None,
    device: str = "auto",
    fresh: bool = False,
) -> dict[str, Any]:
    """Train, or go on, or say that it is done; returns the result, in each process of torchrun.

    Args:
        data: the folder with the dataset.
        out: the run directory; default `runs/<protocol>/<variant>-<depth>/seed-<seed>`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        fresh: remove the run that is there and start over.

    Raises:
        UserError: wrong input; nothing was written.
        RunError: the run cannot be finished; what it has is kept.
        Stopped: asked to stop; a checkpoint was saved.
        PeerFailure: this is not the first process of several, and that one raised one of these.
    """
    with process_group() as world, ExitStack() as held:
        job = world.on_all_ranks(lambda: _decided(settings, console, out, device, world))
        job = replace(job, devices=world.describe(job.device))
        if not fresh and (done := world.on_rank0(lambda: _guarded(job))) is not None:
            return done
        job, images = world.on_all_ranks(lambda: _with_images(job, data))
        job = _with_kernels(job, fresh)  # after the images: building operators takes a while
        world.agree_on(
            {
                **job.settings.model_dump(),
                "--fresh": fresh,
                "--device": job.device.type,
                "dataset": images.checksum,
                "torch": torch.__version__,
            }
        )
        if (done := world.on_rank0(lambda: _entered(job, fresh, held))) is not None:
            return done
        with _failures_noted(job):
            return _work(job, images)


def _decided(
    settings: Settings, console: Console, out: Path | None, device: str, world: World
) -> Job:
    """The device, and what follows from it.

    Raises:
        UserError: something that the settings ask for is not there.
    """
    require_tensorboard(settings)
    world.check_divides(settings)
    chosen = world.device(device)
    precision = choose_precision(settings.precision, chosen)
    choose_capture(settings, chosen, world.size)  # refuses; the trainer decides for itself
    settings = settings.model_copy(update={"precision": precision})
    speaking = console if world.first else Console(quiet=True)
    folder = out or Path("runs") / settings.directory
    return Job(settings, folder, chosen, speaking, world)


def _with_images(job: Job, data: Path) -> tuple[Job, Images | FolderImages]:
    """The dataset, and the job with what only its images tell."""
    images = open_images(job.settings, data)
    if isinstance(images, FolderImages):
        found = {"num_classes": len(images.class_names)}
        job = replace(job, settings=job.settings.model_copy(update=found))
    return job, images


def _guarded(job: Job) -> dict[str, Any] | None:
    """The result of a run that has it; refuses the folder of another run."""
    rundir.guard(job.folder, job.settings)
    return _finished(job)


def _entered(job: Job, fresh: bool, held: ExitStack) -> dict[str, Any] | None:
    """Lock the run directory until `held` is closed, and look again who was there before."""
    held.enter_context(rundir.locked(job.folder))
    if fresh:
        rundir.remove_run(job.folder)
    return _guarded(job)


def _with_kernels(job: Job, fresh: bool) -> Job:
    """With `kernels` decided; a run that was begun goes on with those that it began with.

    Raises:
        UserError: they cannot be had here.
    """
    settings = job.settings
    if settings.kernels == "auto" and not fresh:
        begun = job.world.on_rank0(lambda: _begun_with(job.folder))
        settings = settings.model_copy(update={"kernels": begun})
    kernels = job.world.on_all_ranks(
        lambda: choose_kernels(settings, job.device, lambda text: _say(job, text))
    )
    return replace(job, settings=settings.model_copy(update={"kernels": kernels}))


def _begun_with(folder: Path) -> str:
    """The kernels of the run in a folder; `auto` where there is none yet."""
    return rundir.read_settings(folder).kernels if (folder / rundir.CONFIG).exists() else "auto"


def _finished(job: Job) -> dict[str, Any] | None:
    """The result of a run that has it.

    Raises:
        RunError: the run has diverged, and would do so again.
    """
    if not (job.folder / rundir.RESULT).exists():
        if (found := rundir.read_divergence(job.folder)) is not None:
            raise RunError(
                f"{job.folder}: this run diverged at iteration {found.iteration}, and the same "
                "settings would do so again; change one, such as lr, or start over with --fresh."
            )
        return None
    result = rundir.read_result(job.folder)
    job.console.print(
        f"{job.folder}: already finished, test error {result['test_error']:.2f} %. "
        "Start it over with --fresh.",
        soft_wrap=True,
        highlight=False,
    )
    return result


def _work(job: Job, images: Images | FolderImages) -> dict[str, Any]:
    """Everything between the lock and the result."""
    world = job.world
    if world.first:
        (job.folder / rundir.FAILURE).unlink(missing_ok=True)
    trainer = world.on_all_ranks(lambda: _trainer(job, images))
    state = world.on_rank0(
        lambda: load_newest(job.folder, warn=lambda problem: _say(job, f"Warning: {problem}"))
    )
    if state is not None:
        trainer.restore(state)
    if world.first:
        rundir.write_settings(job.folder, job.settings)
        _note_environment(job, images, trainer.iteration)
    _announce(job, trainer)
    silent = nullcontext(NullCallback())
    watching = Watch(job.folder, trainer, job.console) if world.first else silent
    message = MESSAGE if world.first else ""
    with stop_request(message, together=world.size > 1) as stop, watching as watch:
        test = trainer.run(watch, stop)
    result = _result(job, trainer, test)
    if world.first:
        _finish(job, result, test)
    return result


def _trainer(job: Job, images: Images | FolderImages) -> Trainer:
    """The run at its beginning, on this process's share of the images."""
    prepare(job.settings, job.device)
    sets = Splits.prepare(images, job.settings, job.device, job.world.share)
    return Trainer.start(job.settings, sets, job.device, job.world)


def _announce(job: Job, trainer: Trainer) -> None:
    """What will be done, before it is done."""
    s = job.settings
    micro = f", in micro-batches of {s.bn_batch_size}" if s.bn_batch_size != s.batch_size else ""
    begin = f", going on from iteration {trainer.iteration:,}" if trainer.iteration else ""
    _say(
        job,
        f"{s.variant}-{s.depth}, protocol {s.protocol}, seed {s.seed}: "
        f"{parameters(trainer.network):,} parameters, {s.iterations:,} iterations of "
        f"{s.batch_size} images of {s.dataset}{micro}{begin}.",
    )
    how = f"{s.precision}, {s.kernels} kernels" if s.kernels != "plain" else s.precision
    _say(job, f"On {job.devices} in {how}; everything goes to {job.folder}")


def _note_environment(job: Job, images: Images | FolderImages, iteration: int) -> None:
    """Where the run was begun; where it goes on elsewhere, that too, and a warning."""
    path = job.folder / rundir.ENVIRONMENT
    here = environment(job.device, images.checksum)
    here |= {"device": job.devices, "world_size": job.world.size}
    if not iteration or not path.exists():
        write_json(path, here)
        return
    begun = rundir.read_json(path)
    try:
        resumed = [note["changed"].items() for note in begun.get("resumed", [])]
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path}: this is damaged: 'resumed' is no list of changes; take the file away and the "
            "same command goes on, and notes where it does."
        ) from None
    latest = {
        "world_size": 1,  # older versions knew no other
        **begun,
        **{key: value for changes in resumed for key, value in changes},
    }
    changed = {key: value for key, value in here.items() if latest.get(key) != value}
    if not changed:
        return
    begun.setdefault("resumed", []).append({"iteration": iteration, "changed": changed})
    write_json(path, begun)
    bits = ("torch", "device", "world_size", "threads", "cpu_capability", "commit")
    decisive = [key for key in bits if key in changed]
    if decisive:
        _say(
            job,
            f"Warning: {', '.join(decisive)} changed since this run was begun; it goes on and its "
            "result is valid, but not bit for bit the one of an undisturbed run.",
        )


def _result(job: Job, trainer: Trainer, test: Evaluation) -> dict[str, Any]:
    """What `result.json` holds."""
    settings, last = job.settings, trainer.rows[-1]
    result = {
        "format": rundir.NOTE_FORMAT,
        "variant": settings.variant,
        "depth": settings.depth,
        "seed": settings.seed,
        "protocol": settings.protocol,
        "dataset": settings.dataset,
        "iterations": settings.iterations,
        "parameters": parameters(trainer.network),
        "test_error": test.error,
        "best_test_error": min(row["test_error"] for row in trainer.rows),
        "best_test_error_note": "optimistic: the evaluation was chosen by looking at the test set",
        "train_loss": last["train_loss"],
        "train_error": last["train_error"],
        "seconds": trainer.total_seconds(),
        "images_per_second": trainer.images_per_second(),
        "device": job.devices,
        "precision": settings.precision,
        "kernels": settings.kernels,
        "config_hash": settings.hash,
        "commit": source_version()[0],
    }
    if "holdout_error" in last:
        result["holdout_error"] = last["holdout_error"]
    return result


def _finish(job: Job, result: dict[str, Any], test: Evaluation) -> None:
    """Predictions, then the result: its presence says that the run is finished."""
    with replacing(job.folder / rundir.PREDICTIONS) as file:
        np.save(file, test.predictions.numpy().astype(np.int64))
    write_json(job.folder / rundir.RESULT, result)
    (job.folder / rundir.PREVIOUS_CHECKPOINT).unlink(missing_ok=True)
    _say(
        job,
        f"Finished {result['variant']}-{result['depth']}, seed {result['seed']}: test error "
        f"{test.error:.2f} % after {duration(result['seconds'])}.",
    )


@contextmanager
def _failures_noted(job: Job) -> Iterator[None]:
    """Leave word in the run directory when the work fails; not when it is stopped or refused."""
    if not job.world.first:
        yield
        return
    try:
        yield
    except DivergedError as error:
        loss = error.loss if math.isfinite(error.loss) else str(error.loss)  # JSON has no NaN
        note = {
            "format": rundir.NOTE_FORMAT,
            "iteration": error.iteration,
            "loss": loss,
            "message": str(error),
        }
        write_json(job.folder / rundir.DIVERGED, note)
        raise
    except OSError as error:
        reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        message = f"{job.folder}: {reason}; what was saved is kept, and the same command goes on."
        _note_failure(job, message)
        raise RunError(message) from error
    except Exception as error:
        if not isinstance(error, UserError | Stopped):
            _note_failure(job, str(error) or type(error).__name__)
        raise


def _note_failure(job: Job, message: str) -> None:
    with suppress(OSError):  # the disk that failed may be the one to write to
        write_json(job.folder / rundir.FAILURE, {"format": rundir.NOTE_FORMAT, "message": message})


def _say(job: Job, text: str) -> None:
    job.console.print(text, soft_wrap=True, highlight=False)
