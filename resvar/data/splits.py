"""The images that a run trains and is measured on, whatever the dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from resvar.config import Settings
from resvar.data.cifar import DATASETS, Images, load_cifar
from resvar.data.folder import (
    FolderEvalLoader,
    FolderImages,
    FolderTrainLoader,
    open_folder,
)
from resvar.data.memory import WHOLE, MemoryEvalLoader, MemoryTrainLoader, Normalization, Shard
from resvar.errors import UserError


class TrainLoader(Protocol):
    """Batch `i` of a run, or this process's shard of it; `labels` of all images, int64 [N]."""

    labels: Tensor

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images float [B, 3, H, W], labels int64 [B]."""


class EvalLoader(Protocol):
    """All images once, in their order, as batches of `batch_size`."""

    labels: Tensor
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float [B, 3, H, W], labels int64 [B]."""

    def shard(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the same batches those with the numbers `index`, `index + count`, …"""


@dataclass(frozen=True)
class Splits:
    """The images of a run: for training, the test set, and those held out (None: none)."""

    training: TrainLoader
    test: EvalLoader
    holdout: EvalLoader | None

    @classmethod
    def prepare(
        cls,
        images: Images | FolderImages,
        settings: Settings,
        device: torch.device,
        shard: Shard = WHOLE,
    ) -> Splits:
        """Make batches of opened images; CIFAR moves to the device as a whole.

        Args:
            shard: what this process takes of each training batch.

        Raises:
            UserError: `holdout` leaves no training image.
        """
        if isinstance(images, FolderImages):
            size = settings.image_size
            training = FolderTrainLoader(
                images.training,
                settings.batch_size,
                settings.seed,
                size,
                settings.flip,
                device,
                shard=shard,
            )
            return cls(training, FolderEvalLoader(images.evaluation, size, device), None)
        return cls._of_cifar(images, settings, device, shard)

    @classmethod
    def _of_cifar(
        cls, images: Images, settings: Settings, device: torch.device, shard: Shard
    ) -> Splits:
        """The last `holdout` training images, in the official order, are kept aside."""
        kept = len(images.train_labels) - settings.holdout
        if kept < 1:
            raise UserError(
                f"'holdout' {settings.holdout} leaves none of the {len(images.train_labels)} "
                "training images."
            )
        pixels, labels = images.train_images[:kept], images.train_labels[:kept]
        normalization = Normalization.measure(pixels, settings.normalize)
        training = MemoryTrainLoader(
            pixels,
            labels,
            normalization,
            settings.batch_size,
            settings.seed,
            settings.crop_padding,
            settings.flip,
            device,
            shard,
        )
        aside = images.train_images[kept:], images.train_labels[kept:]
        return cls(
            training=training,
            test=MemoryEvalLoader(images.test_images, images.test_labels, normalization, device),
            holdout=MemoryEvalLoader(*aside, normalization, device) if settings.holdout else None,
        )


def open_images(settings: Settings, folder: Path) -> Images | FolderImages:
    """The dataset of a run: CIFAR verified and loaded, or the files of a folder found.

    Raises:
        UserError: it is missing, damaged, or not what the settings say.
    """
    if settings.dataset != "folder":
        return load_cifar(DATASETS[settings.dataset], folder)
    images = open_folder(folder)
    if settings.num_classes not in (None, len(images.class_names)):
        raise UserError(
            f"{folder}: there are {len(images.class_names)} classes, but 'num_classes' is "
            f"{settings.num_classes}."
        )
    return images


def num_classes(settings: Settings) -> int:
    """How many classes the network of a run tells apart."""
    if settings.dataset != "folder":
        return DATASETS[settings.dataset].classes
    if settings.num_classes is None:
        raise UserError("'num_classes' is missing: say --set num_classes=N for a folder of images.")
    return settings.num_classes
