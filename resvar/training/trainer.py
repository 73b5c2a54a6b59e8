"""The training of one network: updates, evaluations and checkpoints, resumable at any moment.

`Trainer.fit` is the loop. Its state is the network, the optimizer, the number of updates and the
meters; everything random is a function of (seed, iteration) through the train loader. So a run that
was killed and resumed computes what it would have computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from resvar.data.splits import EvalLoader, Splits
from resvar.errors import RunError, Stopped, is_out_of_memory
from resvar.models.network import ResidualNetwork
from resvar.settings import Settings
from resvar.training.capture import Captured, Evaluated
from resvar.training.checkpoint import State
from resvar.training.evaluate import Evaluation, evaluate
from resvar.training.execution import Execution
from resvar.training.pace import Pace
from resvar.training.schedule import learning_rate
from resvar.training.step import Updater

CHECKPOINT_PAUSE = 30.0
"""Seconds after a checkpoint in which no periodic one is saved. On a GPU an epoch may take little
longer than a checkpoint."""


class DivergedError(RunError):
    """A loss, a weight or a statistic is no longer a finite number.

    Attributes:
        iteration: the first whose loss was not finite, or after which a weight was not.
        loss: the mean training loss there, or the loss on the test set.
    """

    def __init__(self, what: str, iteration: int, loss: float) -> None:
        super().__init__(
            f"{what} at iteration {iteration}: the run has diverged; a smaller lr may help."
        )
        self.iteration, self.loss = iteration, loss


MALFORMED_STATE = (
    LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError,
)  # fmt: skip
"""What restoring an invalid state raises; a lack of memory is handled separately."""


class Callback:
    """Observes a trainer; each method does nothing unless it is overridden. A context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """At the end, however the run ended."""

    def on_update(self, trainer: Trainer) -> None:
        """After each update, inside its time: it may wait for the device."""

    def on_evaluation_batch(self, share: float) -> None:
        """Before each batch of an evaluation, of which `share` is done."""

    def on_evaluation(self, trainer: Trainer, row: dict[str, float]) -> None:
        """After an evaluation; `row` is the new row of the metrics."""

    def on_checkpoint(self, trainer: Trainer) -> None:
        """A checkpoint is due; the state is sound."""

    def on_snapshot(self, trainer: Trainer) -> None:
        """An iteration of `probe_at`, before its update."""


class Trainer:
    """One run in memory.

    Attributes:
        plan: how the run is carried out; each rank has a trainer, all in the same state.
        splits: this rank's images.
        rows: one per evaluation, as in `metrics.csv`.
        seconds: spent on this run before this process, evaluations included.
        train_seconds: of these, on updates.
        pace: of this process.
        evaluation_graph: on a GPU, of a batch of an evaluation.
    """

    def __init__(self, plan: Execution, splits: Splits) -> None:
        self.plan, self.splits = plan, splits
        self.updater = Updater(plan)
        self.evaluation_graph: Captured[Evaluated] | None = None
        if (updates := self.updater.captured) is not None:
            self.evaluation_graph = updates.calls.beside()
        self.rows: list[dict[str, float]] = []
        self.seconds = self.train_seconds = 0.0
        self.pace = Pace(plan.settings, len(splits.test.labels))
        self._started = time.monotonic()
        self._last_test: Evaluation | None = None
        self._saved_at, self._saved = 0, -math.inf  # iteration, and the time in this process

    @property
    def settings(self) -> Settings:
        return self.plan.settings

    @property
    def network(self) -> ResidualNetwork:
        return self.updater.network

    @property
    def iteration(self) -> int:
        """Updates done so far."""
        return self.updater.iteration

    @property
    def last_evaluation(self) -> int:
        """The iteration of the newest row; 0 before the first evaluation."""
        return int(self.rows[-1]["iteration"]) if self.rows else 0

    def fit(self, callbacks: Sequence[Callback], stop: object) -> Evaluation:
        """Train to the last iteration; returns the evaluation there.

        Args:
            callbacks: called in their order.
            stop: true as soon as the run is asked to stop.

        Raises:
            Stopped: `stop` became true, and the callbacks saved a checkpoint.
            DivergedError: the loss became NaN or infinite; no checkpoint of that state is saved.
        """
        settings, ranks = self.settings, self.plan.ranks
        while True:
            # Before anything that may save a checkpoint of this iteration: a run resumed from
            # there does not come by here again.
            if self.iteration in settings.probe_at:
                for callback in callbacks:
                    callback.on_snapshot(self)
            if self._evaluation_due():
                self._add_row(callbacks, stop)
            if self.iteration == settings.iterations:
                self._save(callbacks)
                # A run that was resumed here has the row, but not the predictions.
                return self._last_test or self._evaluate(self.splits.test, callbacks, stop)
            if self.iteration % settings.checkpoint_every == 0 and self.iteration != self._saved_at:
                self._save(callbacks, periodic=True)
            if ranks.any(bool(stop)):
                self._save_and_stop(callbacks)
            self.step(callbacks)

    def step(self, callbacks: Sequence[Callback] = ()) -> None:
        """One iteration: an update with its batch, and the callbacks."""
        begun = time.monotonic()
        self.updater(*self.splits.training.batch(self.iteration))
        self.pace.updated()
        for callback in callbacks:
            callback.on_update(self)
        self.updater.meters.seconds += time.monotonic() - begun

    def mean_loss(self) -> float:
        """Of the training images since the last evaluation. Waits for the device.

        Raises:
            DivergedError: it is not finite.
        """
        meters = self.updater.meters
        loss = float(meters.loss) / max(1, meters.images)
        if not math.isfinite(loss):
            summed = meters.images // self.settings.batch_size
            first = self.iteration - summed + int(meters.finite) + 1
            raise DivergedError(f"the training loss became {loss}", first, loss)
        return loss

    def check(self) -> float:
        """The mean loss, if every number of the state is finite. Waits for the device.

        Raises:
            DivergedError: the loss, a weight, a momentum or a BN statistic is not finite.
        """
        loss = self.mean_loss()
        tensors = [*self.network.state_dict().values()]
        for momenta in self.updater.optimizer.state.values():
            tensors += [value for value in momenta.values() if isinstance(value, Tensor)]
        if not all_finite(tensors):
            raise DivergedError("weights are no longer finite", self.iteration, loss)
        return loss

    def total_seconds(self) -> float:
        """Spent on this run in all its processes."""
        return self.seconds + time.monotonic() - self._started

    def state(self) -> State:
        """Everything that `restore` needs. Waits for the device."""
        meters = self.updater.meters
        return {
            "config_hash": self.settings.hash,
            "iteration": self.iteration,
            "model": self.network.state_dict(),
            "optimizer": self.updater.optimizer.state_dict(),
            "sums": [float(meters.loss), int(meters.wrong), meters.images, meters.seconds],
            "rows": [dict(row) for row in self.rows],
            "seconds": self.total_seconds(),
            "train_seconds": self.train_seconds,
        }

    def restore(self, state: State) -> None:
        """Resume from a `state`.

        Raises:
            RunError: it belongs to a run with other settings, or is not the state of a run.
            RuntimeError: the memory is too small; nothing is wrong with the state.
        """
        try:
            if state["config_hash"] != self.settings.hash:
                raise RunError("the checkpoint belongs to a run with other settings; use --fresh.")
            self._load(state)
        except MALFORMED_STATE as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [""])[0][:120]
            raise RunError(
                "the checkpoint is intact, but does not contain the state of this run "
                f"({type(error).__name__}: {reason}); use --fresh."
            ) from error

    def _load(self, state: State) -> None:
        updater, meters = self.updater, self.updater.meters
        if not 0 <= state["iteration"] <= self.settings.iterations:
            raise ValueError(f"iteration {state['iteration']}")
        self.network.load_state_dict(state["model"])
        updater.optimizer.load_state_dict(state["optimizer"])
        if updater.captured is not None:
            updater.captured.calls.restart()  # the momenta are new tensors; the weights are not
        for weights, buffers in updater.optimizer.state.items():
            momentum = buffers.get("momentum_buffer")  # none where momentum is 0
            if momentum is not None and momentum.shape != weights.shape:
                raise ValueError("a momentum of another shape than its weights")
        updater.iteration = self._saved_at = int(state["iteration"])
        # `+ 0` raises where a value is not a number.
        self.rows = [{str(key): value + 0 for key, value in row.items()} for row in state["rows"]]
        loss, wrong, images, seconds = state["sums"]
        meters.loss.fill_(loss)
        meters.wrong.fill_(wrong)
        meters.images, meters.seconds = int(images), float(seconds)
        meters.finite.fill_(meters.images // self.settings.batch_size)
        self.seconds, self.train_seconds = float(state["seconds"]), float(state["train_seconds"])
        self.pace.earlier = self.images_per_second()

    def seconds_left(self) -> float | None:
        """Until the last iteration and its evaluation; None while the speed is unknown."""
        return self.pace.seconds_left(self.iteration, self.last_evaluation)

    def images_per_second(self) -> float:
        """Training images per second of training, over the whole run (resumed or not)."""
        seconds = self.train_seconds + self.updater.meters.seconds
        return self.iteration * self.settings.batch_size / seconds if seconds else 0.0

    # --- inside -------------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        """At each multiple of `eval_every` and at the end, unless its row is there already."""
        due = self.iteration % self.settings.eval_every == 0 and self.iteration > 0
        due = due or self.iteration == self.settings.iterations
        return due and self.last_evaluation != self.iteration

    def _add_row(self, callbacks: Sequence[Callback], stop: object) -> None:
        """Evaluate, and add a row to the metrics."""
        meters = self.updater.meters
        loss = self._check_timed()
        error = 100.0 * int(meters.wrong) / meters.images
        seconds = meters.seconds
        test = self._finite_evaluation(self.splits.test, "test", callbacks, stop)
        row = {
            "iteration": self.iteration,
            "epoch": self.iteration * self.settings.batch_size / len(self.splits.training.labels),
            "lr": learning_rate(self.iteration - 1, self.settings),
            "train_loss": loss,
            "train_error": error,
            "test_loss": test.loss,
            "test_error": test.error,
            "images_per_second": meters.images / seconds if seconds else 0.0,
            "seconds": 0.0,
        }
        if self.splits.holdout is not None:
            before = len(self.splits.test.labels)
            holdout = self._finite_evaluation(
                self.splits.holdout, "held-out", callbacks, stop, before
            )
            row |= {"holdout_loss": holdout.loss, "holdout_error": holdout.error}
        row["seconds"] = self.total_seconds()
        self.pace.evaluated()
        self.train_seconds += seconds
        meters.clear()
        self.rows.append(row)
        self._last_test = test
        for callback in callbacks:
            callback.on_evaluation(self, row)

    def _finite_evaluation(
        self,
        loader: EvalLoader,
        which: str,
        callbacks: Sequence[Callback],
        stop: object,
        before: int = 0,
    ) -> Evaluation:
        """An evaluation whose loss is finite."""
        found = self._evaluate(loader, callbacks, stop, before)
        if not math.isfinite(found.loss):
            raise DivergedError(f"the {which} loss became {found.loss}", self.iteration, found.loss)
        return found

    def _evaluate(
        self, loader: EvalLoader, callbacks: Sequence[Callback], stop: object, before: int = 0
    ) -> Evaluation:
        """Obeys a stop during the evaluation, which the resumed run repeats.

        Args:
            before: images that the evaluation has had before those of `loader`.
        """
        images = len(loader.labels)
        total = len(self.splits.test.labels) + self.settings.holdout

        def report(share: float) -> None:
            if self.plan.ranks.any(bool(stop)):
                self._save_and_stop(callbacks)
            share = (before + share * images) / total
            self.pace.evaluating(share)
            for callback in callbacks:
                callback.on_evaluation_batch(share)

        return evaluate(self.network, loader, self.plan, report, self.evaluation_graph)

    def _check_timed(self) -> float:
        """`check`; the time in which the device completes its updates is training time."""
        begun = time.monotonic()
        loss = self.check()
        self.updater.meters.seconds += time.monotonic() - begun
        return loss

    def _save(self, callbacks: Sequence[Callback], periodic: bool = False) -> None:
        """Save a checkpoint; a periodic one not within CHECKPOINT_PAUSE of this process's last."""
        self._check_timed()  # never replace a good checkpoint by a diverged one
        ranks, recent = self.plan.ranks, time.monotonic() - self._saved < CHECKPOINT_PAUSE
        if periodic and ranks.any(ranks.first and recent):  # rank 0's clock decides for all
            return
        for callback in callbacks:
            callback.on_checkpoint(self)
        self._saved_at, self._saved = self.iteration, time.monotonic()

    def _save_and_stop(self, callbacks: Sequence[Callback]) -> None:
        self._save(callbacks)
        raise Stopped(f"stopped after iteration {self.iteration}")


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every number is finite. Waits for the device.

    A sum of absolute values is finite only if each of them is, and a few kernels add up those of
    hundreds of tensors. Where a sum is not finite, finite numbers may have overflowed it, so a
    look at each tensor decides.
    """
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    if bool(torch.stack(torch._foreach_norm(floats, 1)).isfinite().all()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in floats)
