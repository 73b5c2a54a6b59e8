"""Loaders for a folder of images: `DIR/train/<class>/*` and `DIR/val/<class>/*`.

The workers of a DataLoader read, crop and resize images with torchvision: for training a random
crop of 8 to 100 % of the area and a random flip, for evaluation a centre crop after a resize of the
shorter side by 256/224: both as in torchvision's reference scripts. (arXiv:1512.03385, section 3.4,
crops 224×224 from an image whose shorter side is 256 to 480, and changes colours too.) Everything
random in a training image is a function of (seed, its position).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from resvar.data.memory import UNSHARDED, Shard, draw_epoch
from resvar.data.photos import ImageFiles, UnreadableImageError, checksum_of, list_images
from resvar.data.workers import obey_parent_only
from resvar.errors import BrokenOffError, UserError, first_line
from resvar.limits import available_cores

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet's channels, as torchvision's models expect."""

CPU = torch.device("cpu")

SHARE = 0.25
"""Share of the free shared memory for one loader; a second one and other runs need some too."""

LEAST_SHARED = 1_000_000
"""Bytes. With less, there is no room for the semaphores of worker processes."""

EVALUATION = ("val", "test")
"""Names of the folder of evaluation images; the first that exists is used."""


@dataclass(frozen=True)
class FolderImages:
    """The files of a folder: training images, evaluation images, class names.

    Attributes:
        checksum: SHA-256 of the names and sizes of all files, not of their bytes.
        contents: SHA-256 of their bytes if the set is small, otherwise "".
    """

    training: ImageFiles
    evaluation: ImageFiles
    class_names: tuple[str, ...]
    checksum: str
    contents: str = ""


def open_folder(folder: Path) -> FolderImages:
    """List the images below `folder` without reading them.

    Raises:
        UserError: a part is missing or empty, or the two parts have different classes.
    """
    try:
        names = [name for name in EVALUATION if (folder / name).is_dir()]
        complete = (folder / "train").is_dir() and bool(names)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from error
    if not complete:
        raise UserError(
            f"{folder}: a folder of images must contain train/<class>/ and val/<class>/; name it "
            "with --data DIR."
        )
    training, evaluation = (list_images(folder / name) for name in ("train", names[0]))
    if training.classes != evaluation.classes:
        differing = sorted(set(training.classes) ^ set(evaluation.classes))
        raise UserError(
            f"{folder}: train and {names[0]} have different classes, such as '{differing[0]}'."
        )
    checksum = checksum_of([training, evaluation], folder)
    return FolderImages(training, evaluation, tuple(training.classes), checksum)


class FolderTrainLoader:
    """Random access to the training batches of a run; fast if in order, since workers read ahead.

    A `shard` restricts reading to a part of each batch.
    """

    def __init__(
        self,
        images: ImageFiles,
        batch_size: int,
        seed: int,
        size: int,
        flip: bool,
        device: torch.device,
        workers: int | None = None,
        shard: Shard = UNSHARDED,
    ) -> None:
        self.labels = torch.tensor(images.targets, device=device)
        self.batch_size, self.seed, self.device, self.shard = batch_size, seed, device, shard
        self.workers = default_workers() if workers is None else workers
        self._samples = _FolderSamples(images, _training_transform(size, flip), size, seed)
        self._next = -1
        self._stream: Iterator[Any] = iter(())

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images float [B, 3, size, size], labels int64 [B].

        Raises:
            UserError: an image cannot be read.
            RunError: a worker died.
        """
        if iteration != self._next:
            self._next, self._stream = iteration, _read(self._loader(iteration))
        self._next += 1
        images, labels = next(self._stream)
        return images.to(self.device, non_blocking=True), labels.to(self.device)

    def _loader(self, iteration: int) -> DataLoader[Any]:
        sampler = _TrainSampler(iteration, self.batch_size, len(self.labels), self.seed, self.shard)
        size = self.batch_size // self.shard.count * self._samples.bytes_of_image
        return _loader(self._samples, sampler, self.workers, size, self.device)


class FolderEvalLoader:
    """The evaluation images, in the order of their paths."""

    def __init__(
        self,
        images: ImageFiles,
        size: int,
        device: torch.device,
        batch_size: int = 100,
        workers: int | None = None,
    ) -> None:
        self.labels = torch.tensor(images.targets, device=device)
        self.batch_size, self.device = batch_size, device
        self.workers = default_workers() if workers is None else workers
        self._samples = _FolderSamples(images, _evaluation_transform(size), size, None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches_of(UNSHARDED)

    def batches_of(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Every `count`-th of these batches, from number `index` on.

        Raises:
            UserError: an image cannot be read.
            RunError: a worker died.
        """
        keys = [(index, 0) for index in range(len(self.labels))]
        first, step = shard.index * self.batch_size, shard.count * self.batch_size
        sampler = [
            keys[number : number + self.batch_size] for number in range(first, len(keys), step)
        ]
        size = self.batch_size * self._samples.bytes_of_image
        loader = _loader(self._samples, sampler, self.workers, size, CPU)
        for images, labels in _read(loader):
            yield images.to(self.device), labels.to(self.device)


def default_workers() -> int:
    """Processes that read images; their number does not change the images."""
    return min(8, available_cores())


@dataclass(frozen=True)
class _UnreadableImage:
    """Replaces an image: an exception would leave the worker as a string with a traceback."""

    message: str


class _FolderSamples(Dataset[tuple[Tensor, int] | _UnreadableImage]):
    """Transformed images by (index, position); the position seeds the random transforms."""

    def __init__(self, images: ImageFiles, transform: Any, size: int, seed: int | None) -> None:
        self.images, self.transform, self.seed = images, transform, seed
        self.bytes_of_image = 3 * size * size * 4

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | _UnreadableImage:
        index, position = key
        path, label = self.images.samples[index]
        try:
            image = self.images.loader(path)
        except UnreadableImageError as error:
            return _UnreadableImage(str(error))
        if self.seed is None:
            return self.transform(image), label
        state = np.random.SeedSequence([self.seed, position]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state[0]) % 2**63)
            return self.transform(image), label


def _loader(
    samples: _FolderSamples, sampler: Any, workers: int, size: int, device: torch.device
) -> DataLoader[Any]:
    """Batches of `size` bytes, read by processes that keep two batches ahead each."""
    free = free_shared_memory()
    workers = workers if free >= LEAST_SHARED else 0
    shared = workers * (2 * size) <= SHARE * free
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate if shared else _collate_for_pipe,
        worker_init_fn=obey_parent_only,
        generator=torch.Generator(),  # not torch's global one, which belongs to the caller
        pin_memory=device.type == "cuda",
    )


def free_shared_memory(folder: str = "/dev/shm") -> float:
    """Bytes left for tensors that processes share; infinite if no limit is known.

    A container often has 64 MB.
    """
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):
        return math.inf
    return status.f_bavail * status.f_frsize


def _collate(samples: list[Any]) -> Any:
    """A batch of samples, or the first unreadable image among them."""
    return _first_unreadable(samples) or default_collate(samples)


def _collate_for_pipe(samples: list[Any]) -> Any:
    """The same as arrays, which pass through a pipe instead of shared memory."""
    if unreadable := _first_unreadable(samples):
        return unreadable
    images, labels = zip(*samples, strict=True)
    return np.stack([image.numpy() for image in images]), np.array(labels)


def _first_unreadable(samples: list[Any]) -> _UnreadableImage | None:
    return next((sample for sample in samples if isinstance(sample, _UnreadableImage)), None)


def _read(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader; failures of its workers are raised here."""
    batches: Iterator[Any] | None = None
    while True:
        try:
            batches = iter(loader) if batches is None else batches
            batch = next(batches, None)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, MemoryError, OSError, EOFError) as error:
            # Killed, probably for its memory use; or a traceback, with the reason at its end.
            text = str(error)
            last = text.rstrip().rpartition("\n")[2]
            reason = first_line(Exception(last if text.startswith("Caught ") else text))
            raise BrokenOffError(f"a process that reads images died ({reason}).") from error
        if batch is None:
            return
        if isinstance(batch, _UnreadableImage):
            raise UserError(batch.message)
        images, labels = map(torch.as_tensor, batch)
        yield images, labels


class _TrainSampler:
    """The (index, position) of each image of each batch, endlessly from an iteration on."""

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
