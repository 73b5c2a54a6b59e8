"""One update: the gradients of a batch in micro-batches, the optimizer's step, the meters.

The gradients of micro-batches of `bn_batch_size` images add up to the gradient of the batch, as on
the paper's two GPUs with 64 images each (arXiv:1603.05027, appendix). With fused BN on a GPU, one
pass takes the whole batch, and BN normalises groups of that size (`Execution.images_at_once`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from resvar.data.splits import num_classes
from resvar.models.network import ResidualNetwork, seeded_network
from resvar.settings import Settings
from resvar.training.capture import CapturedUpdates, CudaGraph
from resvar.training.distributed import AllReduceBuffer
from resvar.training.execution import Execution
from resvar.training.multi_tensor import CastWeights, batch_counters
from resvar.training.optim import build_optimizer
from resvar.training.passes import prepare_network
from resvar.training.schedule import learning_rate


@dataclass
class Meters:
    """Sums over the training images since the last evaluation; the tensors stay on the device.

    `finite` counts the iterations whose loss left the sum finite. So the first iteration that did
    not is known exactly, although nothing waits for the device in each iteration.
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
        """Back to zero in place: a captured update adds to these very tensors."""
        for tensor in (self.loss, self.wrong, self.finite):
            tensor.zero_()
        self.images, self.seconds = 0, 0.0


class Updater:
    """Everything that one update needs: network, optimizer, meters, and on a GPU its graph.

    Attributes:
        iteration: updates done so far; decides the learning rate of the next one.
    """

    def __init__(self, plan: Execution, network: ResidualNetwork | None = None) -> None:
        """
        Args:
            network: on the host; default: that of the settings, its weights drawn from the seed.
        """
        settings = plan.settings
        self.plan = plan
        self.network = prepare_network(network or build_network(settings), plan)
        self.optimizer = build_optimizer(self.network, settings)
        self.meters = Meters.zero(plan.device)
        self.iteration = 0
        self.shared: AllReduceBuffer | None = None
        if plan.ranks.size > 1:
            micro_batches = settings.batch_size // plan.ranks.size // settings.bn_batch_size
            self.shared = AllReduceBuffer(self.network, plan.ranks, micro_batches)
        self.counters = batch_counters(self.network) if plan.multi_tensor else []
        self.cast_weights: CastWeights | None = None
        if plan.casts_weights:
            self.cast_weights = CastWeights(self.network, torch.bfloat16)
        self.captured = CapturedUpdates(CudaGraph()) if plan.captures else None

    def __call__(self, images: Tensor, labels: Tensor, replay: bool = True) -> None:
        """One update with images float [B, 3, H, W] and labels int64 [B], this rank's own.

        Waits for nothing: on a GPU it only queues work.

        Args:
            replay: use the captured graph where there is one; only benchmarks do not.
        """
        if not self.network.training:  # train() walks hundreds of modules: 1 ms at depth 110
            self.network.train()
        for group in self.optimizer.param_groups:
            factor = group.get("rate", 1.0)  # of Muon
            rate = learning_rate(self.iteration, self.plan.settings) * factor
            # A captured update reads the rate from an fp32 tensor; without capture it is the same.
            group["lr"] = float(np.float32(rate)) if images.device.type == "cuda" else rate
        if self.captured is not None and replay:
            self.captured(self._update, self.optimizer, images, labels)
        else:
            self._update(images, labels)
        self.iteration += 1
        self.meters.images += self.plan.settings.batch_size

    def _update(self, images: Tensor, labels: Tensor) -> None:
        """The part of an update that is captured: from the batch to the new weights."""
        own = self.meters
        if self.shared is not None:
            self.shared.zero()
            own = Meters.zero(images.device)
        self._add_gradients(own, images, labels)
        if self.shared is not None:
            loss, wrong = self.shared.all_reduce(own.loss, own.wrong)
            self.meters.loss += loss
            self.meters.wrong += wrong
        self.meters.finite += self.meters.loss.isfinite()
        self.optimizer.step()
        if self.shared is None:  # else the gradients are views of the shared buffer
            self.optimizer.zero_grad()

    def _add_gradients(self, meters: Meters, images: Tensor, labels: Tensor) -> None:
        """Those of the mean loss over the batch, one micro-batch after the other."""
        settings, at_once = self.plan.settings, self.plan.images_at_once
        network: Callable[[Tensor], Tensor] = self.network
        if self.cast_weights is not None:
            network = partial(functional_call, self.network, self.cast_weights())
        for first in range(0, len(labels), at_once):
            micro = slice(first, first + at_once)
            logits = self.plan.forward(network, images[micro])
            loss = F.cross_entropy(logits, labels[micro], reduction="sum")
            (loss / settings.batch_size).backward()  # type: ignore[no-untyped-call]
            meters.loss += loss.detach()
            meters.wrong += (logits.detach().argmax(dim=1) != labels[micro]).sum()
        if self.counters:
            torch._foreach_add_(self.counters, len(labels) // settings.bn_batch_size)


def build_network(settings: Settings) -> ResidualNetwork:
    """The network of a run, on the host, with the initial weights of its seed."""
    classes = num_classes(settings)
    return seeded_network(settings.ordering, settings.architecture, classes, settings.seed)
