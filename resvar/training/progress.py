"""What a person sees of a run: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from resvar.console import duration, moment
from resvar.export.description import Provenance
from resvar.export.safetensors_file import to_safetensors
from resvar.files import replacing, write_json
from resvar.rundir import METRICS, NOTE_FORMAT, PROGRESS, snapshot_path, write_metrics
from resvar.training.checkpoint import save
from resvar.training.events import Events
from resvar.training.loop import Trainer
from resvar.training.schedule import learning_rate

REFRESH = 0.3
"""Seconds between two looks at the loss: each waits for the device once."""

LOG_EVERY = 60.0
"""Seconds between two plain progress lines where the output is no terminal."""

NOTE_EVERY = 5.0
"""Seconds between two renewals of `progress.json`."""

FIRST_ESTIMATE = 10.0
"""Seconds of training after which the run says how long it will take (or three iterations)."""


class Watch:
    """Writes a run's metrics, checkpoints and progress, and shows them. A context manager."""

    def __init__(self, folder: Path, trainer: Trainer, console: Console) -> None:
        self.folder, self.trainer, self.console = folder, trainer, console
        self.total = trainer.settings.iterations
        self.begun_at = trainer.iteration
        self._warm: tuple[int, float] | None = None  # after the first iteration of this process
        self._shown = self._noted = self._logged = time.monotonic()
        self._estimated = False
        self._evaluations: list[float] = []  # seconds that each took
        self._evaluating_since: float | None = None
        self._events: Events | None = None
        self._bar = Progress(
            TextColumn("[bold]{task.fields[doing]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task(
            "", total=self.total, completed=trainer.iteration, doing="training", figures=""
        )

    def __enter__(self) -> Watch:
        self._bar.start()
        if self.trainer.settings.tensorboard:
            self._events = Events(self.folder, self.trainer.rows, self.trainer.total_seconds())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._events is not None:
            self._events.close()

    # --- told by the loop -----------------------------------------------------------------------

    def iteration(self, done: int, trainer: Trainer) -> None:
        now = time.monotonic()
        if self._warm is None:
            self._warm = done, now
        if now - self._shown < REFRESH and done > self.begun_at + 3:
            return
        self._shown = now
        loss = trainer.mean_loss()
        now = time.monotonic()
        left = self._seconds_left(trainer, now)
        rate = learning_rate(done - 1, trainer.settings)
        speed = f"{self._speed(trainer, now):,.0f} images/s" if left is not None else ""
        figures = f"loss {loss:.4f}  lr {rate:.4g}  {speed}  {duration(left)} left"
        self._bar.update(self._task, completed=done, doing="training", figures=figures)
        self._first_estimate(trainer, left, now)
        if not self.console.is_terminal and now - self._logged > LOG_EVERY:
            self._logged = now
            self.console.print(f"iteration {done:,} of {self.total:,}  {figures}")
        if now - self._noted > NOTE_EVERY:
            self._noted = now
            self._note(trainer, self._speed(trainer, now))

    def evaluating(self, share: float) -> None:
        if self._evaluating_since is None:
            self._evaluating_since = time.monotonic()
        self._bar.update(self._task, doing=f"evaluating {share:4.0%}")

    def evaluated(self, row: dict[str, float]) -> None:
        if self._evaluating_since is not None:
            self._evaluations.append(time.monotonic() - self._evaluating_since)
            self._evaluating_since = None
        write_metrics(self.folder / METRICS, self.trainer.rows)
        if self._events is not None:
            self._events.add(row)
        aside = f"  held-out error {row['holdout_error']:.2f} %" if "holdout_error" in row else ""
        self.console.print(
            f"iteration {row['iteration']:>6,.0f}  epoch {row['epoch']:6.2f}  lr {row['lr']:.4g}  "
            f"train loss {row['train_loss']:.4f} error {row['train_error']:.2f} %  "
            f"test loss {row['test_loss']:.4f} error {row['test_error']:.2f} %{aside}  "
            f"{row['images_per_second']:,.0f} images/s  {duration(row['seconds'])}",
            highlight=False,
            soft_wrap=True,
        )

    def save(self, trainer: Trainer) -> None:
        """Metrics first: a row that the checkpoint knows is never missing in the file, and a row
        that it does not know goes, since the run will come to it again."""
        trainer.check()  # never replace a good checkpoint by a diverged one
        write_metrics(self.folder / METRICS, trainer.rows)
        save(self.folder, trainer.state())
        self._note(trainer, trainer.images_per_second())

    def snapshot(self, trainer: Trainer) -> None:
        """The weights and BN's buffers alone, as `resvar.load_model` reads them."""
        path = snapshot_path(self.folder, trainer.iteration)
        path.parent.mkdir(exist_ok=True)
        provenance = Provenance(trainer.settings, trainer.iteration)
        with replacing(path) as file:
            file.write(to_safetensors(trainer.network, provenance))

    # --- figures --------------------------------------------------------------------------------

    def _speed(self, trainer: Trainer, now: float) -> float:
        """Training images per second of this process, checkpoints included, evaluations not."""
        assert self._warm is not None
        iterations, begun = self._warm
        seconds = max(now - begun - sum(self._evaluations), 1e-9)
        return (trainer.iteration - iterations) * trainer.settings.batch_size / seconds

    def _seconds_left(self, trainer: Trainer, now: float) -> float | None:
        """Of training and of evaluations: as long as those of this process took, if it made one."""
        if self._warm is None or trainer.iteration == self._warm[0]:
            return None
        speed = self._speed(trainer, now)
        images = (self.total - trainer.iteration) * trainer.settings.batch_size
        each = (
            sum(self._evaluations) / len(self._evaluations)
            if self._evaluations
            else evaluation_seconds(trainer, speed)
        )
        return images / speed + evaluations_to_come(trainer) * each

    def _first_estimate(self, trainer: Trainer, left: float | None, now: float) -> None:
        if self._estimated or left is None or self._warm is None:
            return
        done = trainer.iteration - self._warm[0]
        if done >= 3 or now - self._warm[1] > FIRST_ESTIMATE:
            self._estimated = True
            self.console.print(
                f"About {duration(left)} to go, until {moment(left)}, with evaluations; measured "
                f"on {done} iterations: {self._speed(trainer, now):,.0f} images/s.",
                highlight=False,
                soft_wrap=True,
            )

    def _note(self, trainer: Trainer, speed: float) -> None:
        note = {
            "format": NOTE_FORMAT,
            "iteration": trainer.iteration,
            "iterations": self.total,
            "seconds": trainer.total_seconds(),
            "images_per_second": speed,
        }
        write_json(self.folder / PROGRESS, note, durable=False)


class NullCallback:
    """In the place of `Watch` in the processes of a run that neither write nor speak."""

    def iteration(self, done: int, trainer: Trainer) -> None: ...
    def evaluating(self, share: float) -> None: ...
    def evaluated(self, row: dict[str, float]) -> None: ...
    def snapshot(self, trainer: Trainer) -> None: ...

    def save(self, trainer: Trainer) -> None:
        trainer.check()  # it ends here too if the run has diverged


def evaluations_to_come(trainer: Trainer) -> int:
    """How often the run will yet be evaluated, the evaluation that is due now included."""
    settings = trainer.settings
    last = int(trainer.rows[-1]["iteration"]) if trainer.rows else 0
    due = settings.iterations // settings.eval_every - last // settings.eval_every
    between = settings.iterations % settings.eval_every != 0 and last < settings.iterations
    return due + between


def evaluation_seconds(trainer: Trainer, speed: float) -> float:
    """What an evaluation takes, if a forward pass is a third of the work of training."""
    images = len(trainer.sets.test.labels) + trainer.settings.holdout
    return images / (3 * speed)
