"""Loss, error and predictions of a network over a set of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.data.splits import EvalLoader
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
) -> Evaluation:
    """Loss, error and predictions over all images, BN in evaluation mode.

    Several ranks share out the very batches that one process would take, and losses are added in
    their order: the same weights give the same figures, whatever the number of ranks.

    Args:
        report: called before each batch, or each round of batches, with the share that is done,
            0 to 1; in every rank equally often.
    """
    network.eval()
    ranks, device = plan.ranks, loader.labels.device
    total, size = len(loader.labels), loader.batch_size
    losses = torch.zeros(-(-total // size), dtype=torch.float64, device=device)
    predicted = torch.zeros(total, dtype=torch.int64, device=device)
    batches = loader.shard(ranks.shard)
    for first in range(0, len(losses), ranks.size):
        if report is not None:
            report(first * size / total)
        number = first + ranks.rank
        if number < len(losses):
            images, labels = next(batches)
            with uncompiled(plan):
                logits = plan.forward(network, images)
            losses[number] = F.cross_entropy(logits, labels, reduction="sum")
            predicted[number * size : (number + 1) * size] = logits.argmax(dim=1)
    loss = sum(ranks.all_reduce(losses).tolist())
    wrong = int((ranks.all_reduce(predicted) != loader.labels).sum())
    return Evaluation(loss / total, 100.0 * wrong / total, predicted.cpu())
