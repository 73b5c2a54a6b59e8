"""A tiny CIFAR for tests: files in the official format, with images that a network can learn."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from resvar.data.cifar import DATASETS, Dataset, Images


def make_cifar(
    folder: Path, train: int = 250, test: int = 100, seed: int = 0, name: str = "cifar10"
) -> Dataset:
    """Write a tiny dataset below `folder` and return it, with the MD5s of its files.

    The training images are split over as many files as the official dataset has. The same
    arguments give the same bytes.
    """
    official = DATASETS[name]
    rng = np.random.default_rng(seed)

    def part(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = rng.permutation(np.arange(count) % official.classes)
        rows = make_rows(labels, official.classes, rng)
        return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    names = tuple(f"class{number}" for number in range(official.classes))
    return write_cifar(folder, Images(*part(train), *part(test), names, ""), name)


def write_cifar(folder: Path, images: Images, name: str = "cifar10") -> Dataset:
    """Write images as the files of a dataset, and return it with their MD5s."""
    official = DATASETS[name]
    (folder / official.folder).mkdir(parents=True, exist_ok=True)
    md5 = {}

    def write(file: str, content: dict[bytes, Any]) -> None:
        data = dump_like_python2(content)
        (folder / official.folder / file).write_bytes(data)
        md5[file] = hashlib.md5(data).hexdigest()

    for files, pixels, labels in (
        (official.train, images.train_images, images.train_labels),
        (official.test, images.test_images, images.test_labels),
    ):
        rows = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(labels), -1)
        for number, part in enumerate(np.array_split(np.arange(len(labels)), len(files))):
            write(
                files[number],
                {
                    b"batch_label": f"batch {number + 1} of {len(files)}".encode(),
                    official.label_key: [int(label) for label in labels[part]],
                    b"data": rows[part],
                    b"filenames": [f"image_{index:05d}.png".encode() for index in part],
                },
            )
    write(official.meta, {official.names_key: [name.encode() for name in images.class_names]})
    return dataclasses.replace(official, md5=md5)


def make_marked_cifar(folder: Path, train: int = 260, test: int = 60) -> None:
    """A tiny CIFAR-10 with `md5.json`, by which test processes recognise its files."""
    dataset = make_cifar(folder, train, test)
    (folder / "md5.json").write_text(
        json.dumps({dataset.name: dict(dataset.md5)}), encoding="utf-8"
    )


def install(dataset: Dataset, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Replace the official dataset by a tiny one; with `monkeypatch`, for one test."""
    if monkeypatch is None:
        DATASETS[dataset.name] = dataset
    else:
        monkeypatch.setitem(DATASETS, dataset.name, dataset)


def make_rows(
    labels: NDArray[np.int64], classes: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Images in the layout of the files, uint8 [N, 3072], channel first: stripes and noise.

    Colour, direction and width of the stripes belong to the class; their phase is random.
    """
    fixed = np.random.default_rng(20160316)  # the classes look the same for every seed
    colours = fixed.uniform(60, 195, size=(classes, 3))
    waves = fixed.uniform(-0.8, 0.8, size=(classes, 2))
    y, x = np.mgrid[0:32, 0:32]
    phase = rng.uniform(0, 2 * np.pi, size=(len(labels), 1, 1))
    wave = waves[labels][:, :, None, None]
    stripes = np.sin(wave[:, 0] * y + wave[:, 1] * x + phase)[:, None]
    noise = rng.normal(0, 20, size=(len(labels), 3, 32, 32))
    images = colours[labels][:, :, None, None] + 40 * stripes + noise
    return np.ascontiguousarray(images.clip(0, 255).astype(np.uint8).reshape(len(labels), -1))


def dump_like_python2(value: Any) -> bytes:
    """A protocol 2 pickle with Python 2's strings, like those of the official files.

    Read with encoding="bytes" they come back as bytes, with encoding="latin1" as str.
    """
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


class _Python2Pickler(pickle._Pickler):
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes | str) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[bytes] = save_string
    dispatch[str] = save_string
