"""The baseline: training a network of CIFAR as people write it with PyTorch.

fp32, contiguous tensors, one pass over the whole batch, a DataLoader with two workers and
torchvision's transforms, `torch.optim.SGD` as it comes, `loss.item()` for the log. The network is
resvar's own, of torch's modules; nothing else here is shared with resvar's training.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

WORKERS = 2
"""As in kuangliu/pytorch-cifar."""


class PlainImages(Dataset[tuple[Tensor, int]]):
    """As `torchvision.datasets.CIFAR10` does it: a PIL image at a time through the transforms."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        from torchvision import transforms

        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


class PlainTraining:
    """The network, its loader and its optimizer; `step` is the body of everybody's loop."""

    def __init__(
        self,
        network: nn.Module,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.network, self.device = network.to(device).train(), device
        self.loader = DataLoader(
            PlainImages(pixels, labels),
            batch_size,
            shuffle=True,
            num_workers=WORKERS,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
        )
        self._batches = self._endless()

    def step(self) -> None:
        """One update."""
        with torch.profiler.record_function("bench::data"):
            images, labels = next(self._batches)
        output = self.network(images)
        loss = self.criterion(output, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for images, labels in self.loader:
                yield (
                    images.to(self.device, non_blocking=True),
                    labels.to(self.device, non_blocking=True),
                )
