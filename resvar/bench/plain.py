"""The baseline: the training step of `examples/plain.py`, with resvar's network.

fp32, contiguous tensors, the whole batch through BN at once, a DataLoader with two workers and
torchvision's transforms, `torch.optim.SGD`, `loss.item()` in every iteration.
"""

from __future__ import annotations

import importlib
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from resvar.files import examples


class PlainTraining:
    """A network, its loader and its optimizer.

    Args:
        pixels: uint8 [N, 32, 32, 3].
        labels: int64 [N].
    """

    def __init__(
        self,
        network: nn.Module,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        batch_size: int,
        device: torch.device,
    ) -> None:
        if (folder := str(examples())) not in sys.path:  # on the path, so that workers find it too
            sys.path.append(folder)
        self.plain = importlib.import_module("plain")
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        mean = images.double().mean(dim=0).div(255).float()
        dataset = self.plain.Cifar10(images, torch.from_numpy(labels), mean, augment=True)
        self.batches = self.plain.endless_batches(dataset, batch_size)
        self.network, self.device = network.to(device).train(), device
        self.optimizer = self.plain.build_optimizer(network)

    def step(self) -> None:
        """One update."""
        with torch.profiler.record_function("bench::data"):
            images, labels = next(self.batches)
            images, labels = images.to(self.device), labels.to(self.device)
        self.plain.train_step(self.network, self.optimizer, images, labels, bn=len(labels))
