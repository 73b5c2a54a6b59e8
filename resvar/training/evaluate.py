"""Loss, error and predictions of a network over a set of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.data.splits import EvalLoader
from resvar.training.capture import Captured, Evaluated
from resvar.training.execution import Execution
from resvar.training.passes import uncompiled


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, error in percent, and the predicted class of each image, int64 [N]."""

    loss: float
    error: float
    predictions: Tensor


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loader: EvalLoader,
    plan: Execution,
    report: Callable[[float], None] | None = None,
    captured: Captured[Evaluated] | None = None,
) -> Evaluation:
    """Loss, error and predictions over all images, BN in evaluation mode.

    Several ranks share out the very batches that one process would take, and losses are added in
    their order: the same weights give the same figures, whatever the number of ranks.

    Args:
        report: called before each batch, or each round of batches, with the share that is done,
            0 to 1; in every rank equally often.
        captured: of this network's evaluations; default: each batch is launched kernel by kernel.
    """
    network.eval()

    def work(images: Tensor, labels: Tensor) -> Evaluated:
        with uncompiled(plan):
            logits = plan.forward(network, images)
        return F.cross_entropy(logits, labels, reduction="sum"), logits.argmax(dim=1)

    ranks, device = plan.ranks, loader.labels.device
    total, size = len(loader.labels), loader.batch_size
    losses = torch.zeros(-(-total // size), dtype=torch.float64, device=device)
    predicted = torch.zeros(total, dtype=torch.int64, device=device)
    batches = loader.batches_of(ranks.shard)
    for first in range(0, len(losses), ranks.size):
        if report is not None:
            report(first * size / total)
        number = first + ranks.rank
        if number < len(losses):
            batch = next(batches)
            loss, classes = work(*batch) if captured is None else captured(work, *batch)
            losses[number] = loss  # copied before the next replay of a graph overwrites it
            predicted[number * size : (number + 1) * size] = classes
    total_loss = sum(ranks.all_reduce(losses).tolist())
    wrong = int((ranks.all_reduce(predicted) != loader.labels).sum())
    return Evaluation(total_loss / total, 100.0 * wrong / total, predicted.cpu())
