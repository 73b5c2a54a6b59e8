"""The training of one network: iterations, evaluations and checkpoints, resumable at any moment.

`Trainer.run` is the loop. Its state is the network, the optimizer, the number of the iteration and
a few sums; everything random comes from (seed, iteration) through its `TrainLoader`. So a run that
was killed and started again computes what it would have computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.config import Settings
from resvar.data.memory import MemoryTrainLoader, Normalization
from resvar.data.splits import EvalLoader, Splits, TrainLoader, num_classes
from resvar.errors import RunError, Stopped
from resvar.models.network import ResidualNetwork, build_model
from resvar.training.capture import WARM_UPS, CapturedUpdates, captured_updates, choose_capture
from resvar.training.checkpoint import State
from resvar.training.compiling import (
    begin_micro_batch,
    compile_units,
    keeps_gradients,
    uncompiled,
)
from resvar.training.distributed import SINGLE_PROCESS, Pool, World
from resvar.training.fusing import fuse_operators
from resvar.training.machine import memory_format
from resvar.training.muon import Muon, filters
from resvar.training.recomputing import recompute_units
from resvar.training.schedule import learning_rate


class DivergedError(RunError):
    """A loss, or what the network computes it from, is no longer a finite number.

    Attributes:
        iteration: the first whose loss was not finite, or after which a weight was not.
        loss: the mean training loss there, or the loss on the test set.
    """

    def __init__(self, what: str, iteration: int, loss: float) -> None:
        super().__init__(
            f"{what} at iteration {iteration}: the run has diverged. The last good checkpoint is "
            "kept; a smaller lr may help."
        )
        self.iteration, self.loss = iteration, loss


MALFORMED_STATE = (
    LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError,
)  # fmt: skip
"""What taking up a state raises that somebody made up."""


class Watcher(Protocol):
    """What the loop tells the outside world; see `resvar.training.progress`."""

    def iteration(self, done: int, trainer: Trainer) -> None: ...
    def evaluating(self, share: float) -> None: ...
    def evaluated(self, row: dict[str, float]) -> None: ...
    def save(self, trainer: Trainer) -> None: ...
    def snapshot(self, trainer: Trainer) -> None: ...


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, error in percent, and the predicted class of each image, int64 [N]."""

    loss: float
    error: float
    predictions: Tensor


@dataclass
class Meters:
    """Over the training images since the last evaluation; the tensors stay on the device.

    `finite` counts the iterations whose loss left the sum finite: so the first that did not is
    known exactly, though nobody waits for the device to look at each.
    """

    loss: Tensor
    wrong: Tensor
    finite: Tensor
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def zero(cls, device: torch.device) -> Meters:
        return cls(
            loss=torch.zeros((), dtype=torch.float64, device=device),
            wrong=torch.zeros((), dtype=torch.int64, device=device),
            finite=torch.zeros((), dtype=torch.int64, device=device),
        )

    def clear(self) -> None:
        """Back to zero, where they lie: a captured update adds to them there."""
        for tensor in (self.loss, self.wrong, self.finite):
            tensor.zero_()
        self.images, self.seconds = 0, 0.0


@dataclass(frozen=True)
class Means:
    """How the updates of one network are carried out, beside the network itself.

    Attributes:
        pool: where several processes share a run; each is given its own images alone.
        captured: on a GPU, a graph that does what an update does.
    """

    pool: Pool | None = None
    captured: CapturedUpdates | None = None

    @classmethod
    def of(cls, network: nn.Module, settings: Settings, world: World = SINGLE_PROCESS) -> Means:
        """As the settings say, what is `auto` in them decided already."""
        pool = None
        if world.size > 1:
            images = settings.batch_size // world.size
            pool = Pool(network, world, images // settings.bn_batch_size)
        return cls(pool, captured_updates(settings))


@dataclass
class Trainer:
    """One run in memory.

    Attributes:
        settings: with `precision` already `fp32` or `bf16`.
        decided: the same with `capture` decided too. No record holds that: another device may go on
            with the run, and decides anew.
        iteration: updates done so far.
        rows: one per evaluation, as in `metrics.csv`.
        world: the processes that share this run; each has a trainer, in the same state.
        seconds: spent on this run up to the start of this process, evaluations included.
        train_seconds: of these, on updates.
    """

    settings: Settings
    sets: Splits
    device: torch.device
    network: ResidualNetwork
    optimizer: torch.optim.Optimizer
    world: World = SINGLE_PROCESS
    iteration: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    train_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    last_test: Evaluation | None = None
    saved_at: int = 0

    def __post_init__(self) -> None:
        self.sums = Meters.zero(self.device)
        self.decided = _decided(self.settings, self.device, self.world)
        self.means = Means.of(self.network, self.decided, self.world)

    @classmethod
    def start(
        cls, settings: Settings, sets: Splits, device: torch.device, world: World = SINGLE_PROCESS
    ) -> Trainer:
        """A run at iteration 0; the weights are drawn from the seed, on the host."""
        network = trainable(_decided(settings, device, world), device)
        return cls(settings, sets, device, network, build_optimizer(network, settings), world)

    def run(self, watcher: Watcher, stop: object) -> Evaluation:
        """Train to the last iteration; returns the evaluation there.

        Args:
            watcher: told of every iteration and evaluation; saves checkpoints.
            stop: true as soon as somebody asked the run to stop.

        Raises:
            Stopped: `stop` became true; a checkpoint was saved.
            DivergedError: the loss became NaN or infinite; the last good checkpoint is kept.
        """
        settings = self.settings
        while True:
            # Before anything that may write a checkpoint of this iteration: a run that goes on
            # from there need not come by here again.
            if self.iteration in settings.probe_at:
                watcher.snapshot(self)
            if self._evaluation_due():
                self._record(watcher, stop)
            if self.iteration == settings.iterations:
                self._save(watcher)
                return self.last_test or self._evaluate(self.sets.test, watcher, stop)
            if self.iteration % settings.checkpoint_every == 0 and self.iteration != self.saved_at:
                self._save(watcher)
            if self.world.any(bool(stop)):
                self._save_and_stop(watcher)
            self.step(watcher)

    def step(self, watcher: Watcher) -> None:
        """One iteration: an update, and word of it."""
        begun = time.monotonic()
        train_step(
            self.network,
            self.optimizer,
            self.sets.training,
            self.iteration,
            self.decided,
            self.sums,
            self.means,
        )
        self.iteration += 1
        self.sums.images += self.settings.batch_size
        watcher.iteration(self.iteration, self)  # inside the time: it may wait for the device
        self.sums.seconds += time.monotonic() - begun

    def mean_loss(self) -> float:
        """Of the training images since the last evaluation. Waits for the device.

        Raises:
            DivergedError: it is not finite.
        """
        loss = float(self.sums.loss) / max(1, self.sums.images)
        if not math.isfinite(loss):
            summed = self.sums.images // self.settings.batch_size
            first = self.iteration - summed + int(self.sums.finite) + 1
            raise DivergedError(f"the training loss became {loss}", first, loss)
        return loss

    def check(self) -> float:
        """The mean loss; refuses to keep what has exploded. Waits for the device.

        Raises:
            DivergedError: the loss, a weight, a momentum or a BN statistic is not finite.
        """
        loss = self.mean_loss()
        held = [*self.network.state_dict().values()]
        for momenta in self.optimizer.state.values():
            held += [value for value in momenta.values() if isinstance(value, Tensor)]
        if not torch.stack([value.isfinite().all() for value in held]).all():
            raise DivergedError("weights are no longer finite", self.iteration, loss)
        return loss

    def total_seconds(self) -> float:
        """Spent on this run in all its processes."""
        return self.seconds + time.monotonic() - self.started

    def state(self) -> State:
        """Everything that `restore` needs. Waits for the device."""
        return {
            "config_hash": self.settings.hash,
            "iteration": self.iteration,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": [
                float(self.sums.loss),
                int(self.sums.wrong),
                self.sums.images,
                self.sums.seconds,
            ],
            "rows": [dict(row) for row in self.rows],
            "seconds": self.total_seconds(),
            "train_seconds": self.train_seconds,
        }

    def restore(self, state: State) -> None:
        """Go on from a `state`.

        Raises:
            RunError: it belongs to a run with other settings, or is no state of a run.
        """
        try:
            if state["config_hash"] != self.settings.hash:
                raise RunError("the checkpoint belongs to a run with other settings; use --fresh.")
            self._take(state)
        except MALFORMED_STATE as error:
            reason = (str(error).splitlines() or [""])[0][:120]
            raise RunError(
                "the checkpoint is whole, but does not hold the state of this run "
                f"({type(error).__name__}: {reason}); use --fresh."
            ) from error

    def _take(self, state: State) -> None:
        if not 0 <= state["iteration"] <= self.settings.iterations:
            raise ValueError(f"iteration {state['iteration']}")
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for weights, held in self.optimizer.state.items():
            momentum = held.get("momentum_buffer")  # none where momentum is 0
            if momentum is not None and momentum.shape != weights.shape:
                raise ValueError("a momentum of another shape than its weights")
        self.iteration = int(state["iteration"])
        self.rows = [{str(key): value + 0 for key, value in row.items()} for row in state["rows"]]
        loss, wrong, images, seconds = state["sums"]
        self.sums.loss.fill_(loss)
        self.sums.wrong.fill_(wrong)
        self.sums.images, self.sums.seconds = int(images), float(seconds)
        self.sums.finite.fill_(self.sums.images // self.settings.batch_size)
        self.seconds, self.train_seconds = float(state["seconds"]), float(state["train_seconds"])
        self.saved_at = self.iteration

    def images_per_second(self) -> float:
        """Training images per second of training, over the whole run (resumed or not)."""
        seconds = self.train_seconds + self.sums.seconds
        return self.iteration * self.settings.batch_size / seconds if seconds else 0.0

    # --- inside -------------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        """At each multiple of `eval_every` and at the end, unless its row is there already."""
        due = self.iteration % self.settings.eval_every == 0 and self.iteration > 0
        last = self.rows[-1]["iteration"] if self.rows else -1
        return (due or self.iteration == self.settings.iterations) and last != self.iteration

    def _record(self, watcher: Watcher, stop: object) -> None:
        """Evaluate, and add a row to the metrics."""
        begun = time.monotonic()
        loss = self.check()  # waits for the device, and so belongs to the training time
        error = 100.0 * int(self.sums.wrong) / self.sums.images
        seconds = self.sums.seconds + time.monotonic() - begun
        test = self._measured(self.sets.test, "test", watcher, stop)
        row = {
            "iteration": self.iteration,
            "epoch": self.iteration * self.settings.batch_size / len(self.sets.training.labels),
            "lr": learning_rate(self.iteration - 1, self.settings),
            "train_loss": loss,
            "train_error": error,
            "test_loss": test.loss,
            "test_error": test.error,
            "images_per_second": self.sums.images / seconds if seconds else 0.0,
            "seconds": 0.0,
        }
        if self.sets.holdout is not None:
            aside = self._measured(self.sets.holdout, "held-out", watcher, stop)
            row |= {"holdout_loss": aside.loss, "holdout_error": aside.error}
        row["seconds"] = self.total_seconds()
        self.train_seconds += seconds
        self.sums.clear()
        self.rows.append(row)
        self.last_test = test
        watcher.evaluated(row)

    def _measured(
        self, batches: EvalLoader, which: str, watcher: Watcher, stop: object
    ) -> Evaluation:
        found = self._evaluate(batches, watcher, stop)
        if not math.isfinite(found.loss):
            raise DivergedError(f"the {which} loss became {found.loss}", self.iteration, found.loss)
        return found

    def _evaluate(self, batches: EvalLoader, watcher: Watcher, stop: object) -> Evaluation:
        """Obeys a stop meanwhile: the evaluation is then done again when the run goes on."""

        def report(share: float) -> None:
            if self.world.any(bool(stop)):
                self._save_and_stop(watcher)
            watcher.evaluating(share)

        return evaluate(self.network, batches, self.settings, report, self.world)

    def _save(self, watcher: Watcher) -> None:
        watcher.save(self)
        self.saved_at = self.iteration

    def _save_and_stop(self, watcher: Watcher) -> None:
        self._save(watcher)
        raise Stopped(f"stopped after iteration {self.iteration}; a checkpoint is saved.")


def _decided(settings: Settings, device: torch.device, world: World) -> Settings:
    capture = choose_capture(settings, device, world.size)
    return settings.model_copy(update={"capture": capture})


# --- the parts, usable alone ----------------------------------------------------------------------


def build_network(settings: Settings) -> ResidualNetwork:
    """The network of a run, on the host, with the initial weights of its seed."""
    return build_model(
        settings.ordering,
        settings.depth,
        settings.family,
        num_classes(settings),
        settings.cardinality,
        settings.base_width,
        settings.stem,
        settings.shortcut,
        settings.unit,
        settings.stride_on,
        seed=settings.seed,
    )


def trainable(settings: Settings, device: torch.device) -> ResidualNetwork:
    """The network of a run where it will be trained, fused or compiled where that is asked for."""
    network = place(build_network(settings), settings, device)
    network = recompute_units(fuse_operators(network, settings, device), settings)
    return compile_units(network, settings, device)


def build_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with momentum, or Muon for the filters; weight decay on what `weight_decay_on` says.

    `weights` are those of the convolutions and the linear layer: all parameters with more than one
    dimension. BN's scales and shifts and the linear layer's bias have one.
    """
    everywhere = settings.weight_decay_on == "all"
    orthogonal = filters(network) if settings.optimizer == "muon" else []
    rest = [p for p in network.parameters() if all(p is not w for w in orthogonal)]
    groups: list[dict[str, Any]] = [
        {
            "params": orthogonal,
            "weight_decay": settings.muon_decay,
            "orthogonal": True,
            "rate": settings.muon_lr / settings.lr,
        },
        {
            "params": [p for p in rest if p.ndim > 1 or everywhere],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in rest if p.ndim <= 1 and not everywhere], "weight_decay": 0.0},
    ]
    kind = Muon if orthogonal else torch.optim.SGD
    return kind(
        [group for group in groups if group["params"]],
        lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True,
    )  # fmt: skip


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: TrainLoader,
    iteration: int,
    settings: Settings,
    sums: Meters,
    means: Means | None = None,
) -> None:
    """One update. The gradients of micro-batches of `bn_batch_size` add up to that of the batch.

    Waits for nothing: on a GPU it only queues work.

    Args:
        means: always the same with the same network and sums.
    """
    images, labels = batches.batch(iteration)
    network.train()
    for group in optimizer.param_groups:
        rate = learning_rate(iteration, settings) * group.get("rate", 1.0)
        # A captured update reads it from a tensor in fp32, and each on a GPU shall be as that.
        group["lr"] = float(np.float32(rate)) if images.device.type == "cuda" else rate
    means = means or Means()
    work = partial(_update, network, optimizer, settings, sums, means)
    if means.captured is None:
        work(images, labels)
    else:
        means.captured(work, optimizer, images, labels)


def _update(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    sums: Meters,
    means: Means,
    images: Tensor,
    labels: Tensor,
) -> None:
    """What of an update is captured: the device's part, from the batch to the new weights."""
    own, pool = sums, means.pool
    if pool is not None:
        pool.begin()
        own = Meters.zero(images.device)
    _add_gradients(network, settings, own, images, labels)
    if pool is not None:
        loss, wrong = pool.add_up(own.loss, own.wrong)
        sums.loss += loss
        sums.wrong += wrong
    sums.finite += sums.loss.isfinite()
    optimizer.step()
    if pool is None:
        optimizer.zero_grad(set_to_none=not keeps_gradients(settings))


def _add_gradients(
    network: nn.Module, settings: Settings, sums: Meters, images: Tensor, labels: Tensor
) -> None:
    """Those of the mean loss over all images, one micro-batch after the other."""
    for first in range(0, len(labels), settings.bn_batch_size):
        micro = slice(first, first + settings.bn_batch_size)
        begin_micro_batch(settings)
        logits = forward(network, images[micro], settings)
        loss = F.cross_entropy(logits, labels[micro], reduction="sum")
        (loss / settings.batch_size).backward()  # type: ignore[no-untyped-call]
        sums.loss += loss.detach()
        sums.wrong += (logits.detach().argmax(dim=1) != labels[micro]).sum()


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: EvalLoader,
    settings: Settings,
    report: Callable[[float], None] | None = None,
    world: World = SINGLE_PROCESS,
) -> Evaluation:
    """Loss, error and predictions over all images, BN in evaluation mode.

    Several processes deal out the very batches that one would take, and losses are added in their
    order: so the same weights give the same figures, however many processes there are.

    Args:
        report: called before each batch, or each round of batches, with the share that is done,
            0 to 1; in every process equally often.
    """
    network.eval()
    total, size, device = len(batches.labels), batches.batch_size, batches.labels.device
    losses = torch.zeros(-(-total // size), dtype=torch.float64, device=device)
    predicted = torch.zeros(total, dtype=torch.int64, device=device)
    shard = batches.shard(world.share)
    for begun in range(0, len(losses), world.size):
        if report is not None:
            report(begun * size / total)
        number = begun + world.rank
        if number < len(losses):
            images, labels = next(shard)
            with uncompiled(settings):
                logits = forward(network, images, settings)
            losses[number] = F.cross_entropy(logits, labels, reduction="sum")
            predicted[number * size : (number + 1) * size] = logits.argmax(dim=1)
    loss = sum(world.total(losses).tolist())
    wrong = int((world.total(predicted) != batches.labels).sum())
    return Evaluation(loss / total, 100.0 * wrong / total, predicted.cpu())


def forward(network: nn.Module, images: Tensor, settings: Settings) -> Tensor:
    """Logits in fp32 at the settings' precision."""
    images = images.contiguous(memory_format=memory_format(settings))
    with autocast(images.device, settings):
        logits: Tensor = network(images)
    return logits.float()


def autocast(device: torch.device, settings: Settings) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")


def place(network: ResidualNetwork, settings: Settings, device: torch.device) -> ResidualNetwork:
    """The network on the device, in the settings' memory format."""
    moved: ResidualNetwork = network.to(device).to(memory_format=memory_format(settings))
    return moved


def measure_throughput(settings: Settings, device: torch.device, seconds: float = 4.0) -> float:
    """Training images per second of this network here, on made-up images.

    A few updates to warm up, then as many as fit in `seconds` (at least two).
    """
    count = settings.batch_size
    side = settings.image_size if settings.dataset == "folder" else 32
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8).numpy()
    labels = torch.randint(0, 10, (count,)).numpy()
    normalization = Normalization.measure(pixels, settings.normalize)
    batches = MemoryTrainLoader(pixels, labels, normalization, count, 0, device=device)
    network = trainable(settings, device)
    optimizer, sums = build_optimizer(network, settings), Meters.zero(device)
    means, first = Means.of(network, settings), 2
    if means.captured is not None:
        first += WARM_UPS
    times: list[float] = []
    while len(times) < first + 2 or sum(times[first:]) < seconds:
        begun = time.monotonic()
        train_step(network, optimizer, batches, len(times), settings, sums, means)
        float(sums.loss)  # wait for the device
        times.append(time.monotonic() - begun)
    return count * len(times[first:]) / sum(times[first:])


def parameters(network: nn.Module) -> int:
    """Numbers that training sets."""
    return sum(weights.numel() for weights in network.parameters())
