"""How a run shows its progress: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from resvar.console import duration, moment, per_second, percent, pluralize
from resvar.table import Parts
from resvar.training.schedule import learning_rate
from resvar.training.trainer import Callback, Trainer

REFRESH = 0.3
"""Seconds between two reads of the loss: each waits for the device once."""

LOG_EVERY = 60.0
"""Seconds between two plain progress lines if the output is not a terminal."""

FIRST_ESTIMATE = 5.0
"""Seconds of training after which the run logs how long it will take."""


class Progress(Callback):
    """Shows a run on a console. A context manager."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        self.trainer, self.console = trainer, console
        self.total = trainer.settings.iterations
        self._resumed_at = trainer.iteration
        self._shown = self._logged = time.monotonic()
        self._estimated = False
        self._bar = Bar(
            TextColumn("[bold]{task.fields[doing]}"),
            BarColumn(bar_width=min(40, max(5, console.width // 2 - 22))),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Figures(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=self.total, completed=trainer.iteration, doing="training", figures=()
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def close(self) -> None:
        self._bar.stop()

    def on_update(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now - self._shown < REFRESH and trainer.iteration > self._resumed_at + 3:
            return
        self._shown = now
        loss = trainer.mean_loss()
        rate = learning_rate(trainer.iteration - 1, trainer.settings)
        self._show("training", (f"loss {loss:.4f}", f"lr {rate:.4g}"))
        if not self._estimated and trainer.pace.updates and trainer.pace.seconds > FIRST_ESTIMATE:
            self._log_estimate()

    def on_evaluation_batch(self, share: float) -> None:
        self._show(f"evaluating {percent(100 * share, 0):>5}")

    def _show(self, doing: str, more: Sequence[str] = ()) -> None:
        """Refresh the bar; if there is none, print a line now and then.

        Args:
            more: figures in addition to the time left and the speed, the most important first.
        """
        left, speed = self.trainer.seconds_left(), self.trainer.pace.images_per_second
        figures = [f"{duration(left)} left", *more[:1]] if left is not None else [*more[:1]]
        figures += [f"{per_second(speed)} images/s"] if speed else []
        figures += more[1:]
        done, now = self.trainer.iteration, time.monotonic()
        self._bar.update(self._task, completed=done, doing=doing, figures=figures)
        if not self.console.is_terminal and now - self._logged > LOG_EVERY:
            self._logged = now
            self.console.print(
                f"iteration {done:,} of {self.total:,}  {doing}  {'  '.join(figures)}"
            )

    def on_evaluation(self, trainer: Trainer, row: dict[str, float]) -> None:
        del trainer
        held_out = (
            f"  held-out error {percent(row['holdout_error'])}" if "holdout_error" in row else ""
        )
        self._log(
            f"iteration {row['iteration']:>6,.0f}  epoch {row['epoch']:6.2f}  lr {row['lr']:.4g}  "
            f"train loss {row['train_loss']:.4f} error {percent(row['train_error'])}  "
            f"test loss {row['test_loss']:.4f} error {percent(row['test_error'])}{held_out}  "
            f"{per_second(row['images_per_second'])} images/s  {duration(row['seconds'])}"
        )

    def _log_estimate(self) -> None:
        pace, left = self.trainer.pace, self.trainer.seconds_left()
        if left is not None:
            self._estimated = True
            self._log(
                f"About {duration(left)} left, until {moment(left)}, evaluations included; "
                f"{per_second(pace.images_per_second)} images/s over "
                f"{pluralize(pace.updates, 'iteration')}."
            )

    def _log(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


class _Figures(ProgressColumn):
    """The figures of a task, as many as fit on the line, the most important first."""

    def render(self, task: Task) -> Parts:
        return Parts(task.fields["figures"])
