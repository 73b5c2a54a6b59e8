"""Loaders of images in the device's memory: shuffled, augmented batches of uint8 pixels.

The whole dataset moves to the device once. Everything random in training batch `i` is a function of
(seed, i): each epoch has a table of order, crop offsets and flips, drawn by NumPy on the host so
that every device gets the same images. A batch is then an indexed read of pixels, means and
labels, and some arithmetic on all its images at once: no decoding, no copy to the host, no
synchronisation. `folder.py` has the loaders of other images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """One process's part of the images: number `index` of `count`."""

    index: int = 0
    count: int = 1

    def of_batch(self, size: int) -> slice:
        """The shard of a training batch: `size / count` consecutive images."""
        length = size // self.count
        return slice(self.index * length, (self.index + 1) * length)


UNSHARDED = Shard()
"""All images: the shard of a single process."""


@dataclass(frozen=True)
class Normalization:
    """Pixels in [0, 1] become `(pixels - mean) * scale`.

    Attributes:
        mean: float [H, W, 3]; one per pixel in the paper.
        scale: float [3]; the reciprocal standard deviation, or ones.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def measure(cls, images: Pixels, kind: str) -> Normalization:
        """Statistics of training images, uint8 [N, H, W, 3].

        Args:
            kind: `pixel-mean` (the paper) or `channel` (mean and standard deviation).
        """
        pixel_mean = images.sum(axis=0, dtype=np.int64) / (255.0 * len(images))
        if kind == "pixel-mean":
            return cls(torch.from_numpy(pixel_mean).float(), torch.ones(3))
        mean, std = channel_statistics(images)
        return cls(torch.from_numpy(np.broadcast_to(mean, pixel_mean.shape).copy()).float(),
                   torch.from_numpy(1.0 / std).float())  # fmt: skip

    def to(self, device: torch.device) -> Normalization:
        return Normalization(self.mean.to(device), self.scale.to(device))

    def padded(self, padding: int) -> Normalization:
        """The same for images with a border of `padding` zeros, which stay zero."""
        return Normalization(_pad(self.mean, padding), self.scale)

    def __call__(self, pixels: Tensor, mean: Tensor | None = None) -> Tensor:
        """uint8 [N, H, W, 3] → float [N, 3, H, W] (a channels_last view)."""
        values = pixels.float().div_(255.0).sub_(self.mean if mean is None else mean)
        return values.mul_(self.scale).permute(0, 3, 1, 2)


def draw_epoch(seed: int, epoch: int, images: int, padding: int, flip: bool) -> NDArray[np.int64]:
    """int64 [4, images]: order, offsets down and right, mirrored; a pure function."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    order = random.permutation(images)
    offsets = random.integers(0, 2 * padding, (2, images), endpoint=True)
    mirrored = random.integers(0, 2, images) if flip else np.zeros(images, np.int64)
    return np.stack([order, *offsets, mirrored]).astype(np.int64)


class MemoryTrainLoader:
    """Random access to the training batches of a run, by iteration.

    Every image occurs once per epoch; the last batch of an epoch is filled from the next epoch.
    With padding p each image is zero-padded, cropped at offsets 0 … 2p, and flipped with
    probability 1/2 (arXiv:1512.03385, section 4.2). Zero is the mean, since the mean is subtracted
    before padding.

    A `shard` restricts `batch` to a part of the same batch.
    """

    def __init__(
        self,
        images: Pixels,
        labels: Labels,
        normalization: Normalization,
        batch_size: int,
        seed: int,
        padding: int = 4,
        flip: bool = True,
        device: torch.device | str = "cpu",
        shard: Shard = UNSHARDED,
    ) -> None:
        device = torch.device(device)
        self.shard = shard
        self.size = images.shape[1]
        self.images = _pad(torch.from_numpy(images).to(device), padding)
        self.labels = torch.from_numpy(labels).to(device)
        self.normalization = normalization.padded(padding).to(device)
        self.batch_size, self.seed, self.padding, self.flip = batch_size, seed, padding, flip
        self._span = torch.arange(self.size, device=device)
        self._epochs: dict[int, Tensor] = {}

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images float [B, 3, H, W] in channels_last, labels int64 [B]; B images of the shard."""
        part = self.shard.of_batch(self.batch_size)
        index, down, right, mirrored = self.draws(iteration)[:, part]  # int64 [B] each
        rows = down[:, None] + self._span  # [B, H]
        columns = torch.where(mirrored[:, None] == 1, self._span.flip(0), self._span)
        columns = columns + right[:, None]  # [B, W]
        crop = rows[:, :, None], columns[:, None, :]
        pixels = self.images[(index[:, None, None], *crop)]
        return self.normalization(pixels, self.normalization.mean[crop]), self.labels[index]

    def draws(self, iteration: int) -> Tensor:
        """int64 [4, B]: index of each image, its crop offsets down and right, 1 where mirrored."""
        first, last = iteration * self.batch_size, (iteration + 1) * self.batch_size
        pieces = []
        while first < last:
            epoch, offset = divmod(first, len(self.labels))
            piece = self._epoch(epoch)[:, offset : offset + last - first]
            pieces.append(piece)
            first += piece.shape[1]
        return torch.cat(pieces, dim=1)

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # A batch may straddle two epochs: keep the previous one.
            self._epochs = {old: self._epochs[old] for old in self._epochs if old == epoch - 1}
            table = draw_epoch(self.seed, epoch, len(self.labels), self.padding, self.flip)
            self._epochs[epoch] = torch.from_numpy(table).to(self.images.device)
        return self._epochs[epoch]


class MemoryEvalLoader:
    """All images in order, neither shuffled nor augmented."""

    def __init__(
        self,
        images: Pixels,
        labels: Labels,
        normalization: Normalization,
        device: torch.device | str = "cpu",
        batch_size: int = 500,
    ) -> None:
        self.images = torch.from_numpy(images).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.normalization = normalization.to(torch.device(device))
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float [B, 3, H, W] in channels_last, labels int64 [B]."""
        return self.batches_of(UNSHARDED)

    def batches_of(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Every `count`-th of these batches, from number `index` on."""
        step = shard.count * self.batch_size
        for first in range(shard.index * self.batch_size, len(self.labels), step):
            batch = slice(first, first + self.batch_size)
            yield self.normalization(self.images[batch]), self.labels[batch]


def channel_statistics(images: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation [C] of uint8 [N, H, W, C], for pixels in [0, 1].

    Exact: computed from the histogram of the 256 values.
    """
    values = np.arange(256) / 255.0
    histograms = [
        np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[3])
    ]
    frequencies = np.stack(histograms) / (images.size / images.shape[3])
    mean = frequencies @ values
    return mean, np.sqrt(frequencies @ values**2 - mean**2)


def _pad(images: Tensor, padding: int) -> Tensor:
    """Zeros around height and width of [..., H, W, C]."""
    return torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
