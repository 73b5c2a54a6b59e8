"""The images of a run for any dataset: a loader each for training, test and held-out images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from resvar.data.cifar import DATASETS, Images, load_cifar
from resvar.data.folder import FolderEvalLoader, FolderImages, FolderTrainLoader, open_folder
from resvar.data.memory import (
    UNSHARDED,
    MemoryEvalLoader,
    MemoryTrainLoader,
    Normalization,
    Shard,
)
from resvar.data.photos import check_images
from resvar.data.sample import load_sample
from resvar.errors import UserError
from resvar.settings import Settings


class TrainLoader(Protocol):
    """Random access to the training batches of a run; `labels` of all images, int64 [N]."""

    labels: Tensor

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images float [B, 3, H, W], labels int64 [B]; B images of this process's shard."""


class EvalLoader(Protocol):
    """All images once, in order, in batches of `batch_size`; `labels` int64 [N]."""

    labels: Tensor
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float [B, 3, H, W], labels int64 [B]."""

    def batches_of(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Every `count`-th of these batches, from number `index` on."""


@dataclass(frozen=True)
class Splits:
    """The loaders of a run; `holdout` is None if no training images are held out."""

    training: TrainLoader
    test: EvalLoader
    holdout: EvalLoader | None

    @classmethod
    def prepare(
        cls,
        images: Images | FolderImages,
        settings: Settings,
        device: torch.device,
        shard: Shard = UNSHARDED,
    ) -> Splits:
        """The loaders for an opened dataset; CIFAR moves to the device as a whole.

        Args:
            shard: this process's part of each training batch.

        Raises:
            UserError: `holdout` leaves no training image.
        """
        if isinstance(images, FolderImages):
            return _split_folder(images, settings, device, shard)
        return _split_memory(images, settings, device, shard)


def open_images(settings: Settings, folder: Path) -> Images | FolderImages:
    """The dataset of a run: CIFAR loaded and verified, or the files of a folder listed and checked.

    The sample needs no folder: the package carries it.

    Raises:
        UserError: it is missing or damaged, contains an unreadable image, or its number of classes
            is not `num_classes`.
    """
    if settings.dataset == "sample":
        return load_sample()
    if settings.dataset != "folder":
        return load_cifar(DATASETS[settings.dataset], folder)
    images = open_folder(folder)
    if settings.num_classes not in (None, len(images.class_names)):
        raise UserError(
            f"{folder}: there are {len(images.class_names)} classes, but 'num_classes' is "
            f"{settings.num_classes}."
        )
    return replace(images, contents=check_images([images.training, images.evaluation]))


def num_classes(settings: Settings) -> int:
    """The width of the logits of a run's network.

    Raises:
        UserError: the dataset is a folder of images, and the setting is missing.
    """
    if settings.dataset != "folder":
        return DATASETS["cifar10" if settings.dataset == "sample" else settings.dataset].classes
    if settings.num_classes is None:
        raise UserError("'num_classes' is missing: add --set num_classes=N for a folder of images.")
    return settings.num_classes


def _split_folder(
    images: FolderImages, settings: Settings, device: torch.device, shard: Shard
) -> Splits:
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
    return Splits(training, FolderEvalLoader(images.evaluation, size, device), holdout=None)


def _split_memory(images: Images, settings: Settings, device: torch.device, shard: Shard) -> Splits:
    """The last `holdout` training images, in the official order, are held out."""
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
    test = MemoryEvalLoader(images.test_images, images.test_labels, normalization, device)
    if not settings.holdout:
        return Splits(training, test, holdout=None)
    held_out = images.train_images[kept:], images.train_labels[kept:]
    return Splits(training, test, MemoryEvalLoader(*held_out, normalization, device))
