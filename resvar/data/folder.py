"""A folder of images as people keep them: `DIR/train/<class>/*` and `DIR/val/<class>/*`.

Images are read, cropped and resized by torchvision in the workers of a DataLoader: a random crop of
8 to 100 % of the area and a random flip for training, the middle of the shorter side resized by
256/224 for evaluation (arXiv:1512.03385, section 3.4, in the form that torchvision's own references
use). As everywhere, what is random about a training image is a function of (seed, its position).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resvar.data.memory import WHOLE, Shard, draw_epoch
from resvar.errors import UserError

if TYPE_CHECKING:
    # At run time torchvision is loaded where it is used: its import takes a second.
    from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, as torchvision's models expect them."""

EVALUATION = ("val", "test")
"""Names that the folder of evaluation images may have, the first that is there counting."""


@dataclass(frozen=True)
class FolderImages:
    """The files of a folder: training and evaluation images, and the names of their classes.

    `checksum` is over the names and sizes of all files, not over their bytes.
    """

    training: ImageFolder
    evaluation: ImageFolder
    class_names: tuple[str, ...]
    checksum: str


def open_folder(folder: Path) -> FolderImages:
    """Find the images below `folder`; none is read yet.

    Raises:
        UserError: a part is missing or empty, or the two parts have different classes.
    """
    from torchvision.datasets import ImageFolder

    names = [name for name in EVALUATION if (folder / name).is_dir()]
    if not (folder / "train").is_dir() or not names:
        raise UserError(
            f"{folder}: a folder of images needs train/<class>/ and val/<class>/ below it; name it "
            "with --data DIR."
        )
    parts = []
    for name in ("train", names[0]):
        try:
            parts.append(ImageFolder(str(folder / name)))
        except (FileNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder / name}: no images by class ({reason}).") from error
    training, evaluation = parts
    if training.classes != evaluation.classes:
        differing = sorted(set(training.classes) ^ set(evaluation.classes))
        raise UserError(
            f"{folder}: train and {names[0]} have different classes, such as '{differing[0]}'."
        )
    sha = hashlib.sha256()
    for path, _ in training.samples + evaluation.samples:
        sha.update(f"{Path(path).relative_to(folder)} {Path(path).stat().st_size}\n".encode())
    return FolderImages(training, evaluation, tuple(training.classes), sha.hexdigest())


class FolderTrainLoader:
    """Batch `i` of a run, for any `i`; quick when asked for in order, since workers read ahead.

    With a `shard`, only that part of its images is read.
    """

    def __init__(
        self,
        images: ImageFolder,
        batch_size: int,
        seed: int,
        size: int,
        flip: bool,
        device: torch.device,
        workers: int | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        self.labels = torch.tensor(images.targets, device=device)
        self.batch_size, self.seed, self.device, self.shard = batch_size, seed, device, shard
        self.workers = default_workers() if workers is None else workers
        self._samples = _Samples(images, _training_transform(size, flip), seed)
        self._next = -1
        self._stream: Iterator[Any] = iter(())

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images float [B, 3, size, size], labels int64 [B]."""
        if iteration != self._next:
            self._next, self._stream = iteration, iter(self._loader(iteration))
        self._next += 1
        images, labels = next(self._stream)
        return images.to(self.device, non_blocking=True), labels.to(self.device)

    def _loader(self, iteration: int) -> DataLoader[Any]:
        return DataLoader(
            self._samples,
            batch_sampler=_Positions(
                iteration, self.batch_size, len(self.labels), self.seed, self.shard
            ),
            num_workers=self.workers,
            generator=torch.Generator(),  # else it would draw from torch's own
            pin_memory=self.device.type == "cuda",
        )


class FolderEvalLoader:
    """The evaluation images in the order of their paths."""

    def __init__(
        self,
        images: ImageFolder,
        size: int,
        device: torch.device,
        batch_size: int = 100,
        workers: int | None = None,
    ) -> None:
        self.labels = torch.tensor(images.targets, device=device)
        self.batch_size, self.device = batch_size, device
        self.workers = default_workers() if workers is None else workers
        self._samples = _Samples(images, _evaluation_transform(size), None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.shard(WHOLE)

    def shard(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the same batches those with the numbers `index`, `index + count`, …"""
        keys = [(index, 0) for index in range(len(self.labels))]
        first, step = shard.index * self.batch_size, shard.count * self.batch_size
        loader = DataLoader(
            self._samples,
            batch_sampler=[
                keys[number : number + self.batch_size] for number in range(first, len(keys), step)
            ],
            num_workers=self.workers,
            generator=torch.Generator(),  # else it would draw from torch's own
        )
        for images, labels in loader:
            yield images.to(self.device), labels.to(self.device)


def default_workers() -> int:
    """Processes that read images; the numbers do not depend on how many."""
    return min(8, os.cpu_count() or 1)


class _Samples(Dataset[tuple[Tensor, int]]):
    """Transformed images by (index, position); the position decides what is random about one."""

    def __init__(self, images: ImageFolder, transform: Any, seed: int | None) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, position = key
        path, label = self.images.samples[index]
        try:
            image = self.images.loader(path)
        except OSError as error:
            raise UserError(f"{path}: this image cannot be read ({error}).") from error
        if self.seed is None:
            return self.transform(image), label
        state = np.random.SeedSequence([self.seed, position]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state[0]) % 2**63)
            return self.transform(image), label


class _Positions:
    """From an iteration on, for ever: the (index, position) of each image of each batch."""

    def __init__(
        self, iteration: int, batch_size: int, images: int, seed: int, shard: Shard
    ) -> None:
        self.first, self.batch_size, self.images, self.seed = iteration, batch_size, images, seed
        self.shard = shard

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position, order, epoch = self.first * self.batch_size, np.empty(0, np.int64), -1
        while True:
            batch = []
            for _ in range(self.batch_size):
                if position // self.images != epoch:
                    epoch = position // self.images
                    order = draw_epoch(self.seed, epoch, self.images, 0, False)[0]
                batch.append((int(order[position % self.images]), position))
                position += 1
            yield batch[self.shard.of_batch(self.batch_size)]


def _training_transform(size: int, flip: bool) -> Any:
    from torchvision.transforms import v2

    flips = [v2.RandomHorizontalFlip()] if flip else []
    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), *flips, *_to_tensor()])


def _evaluation_transform(size: int) -> Any:
    from torchvision.transforms import v2

    shorter = round(size * 256 / 224)
    return v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(size), *_to_tensor()])


def _to_tensor() -> list[Any]:
    from torchvision.transforms import v2

    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
