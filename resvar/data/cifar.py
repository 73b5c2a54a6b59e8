"""CIFAR-10 and CIFAR-100: their files, verification and loading. No torch.

The official files are pickles, and a pickle can run any program while it is read. So each file
must have the published MD5 *before* it is unpickled, and exactly the bytes that were checked are
unpickled.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.data.lock import find_fetching
from resvar.errors import RunError, UserError
from resvar.files import configs, open_regular
from resvar.strict_yaml import read_yaml

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 32
"""Height and width of every image, in pixels."""

LARGEST_FILE = 200_000_000
"""Bytes; the largest official file, `train` of CIFAR-100, has 155 million."""


@dataclass(frozen=True)
class Archive:
    """An archive on the network.

    Attributes:
        size: bytes; None: unknown.
        md5: of the archive; None: unknown, so nothing proves that two sources have the same one.
        sources: addresses of the same bytes, in the order in which they are tried.
    """

    name: str
    size: int | None
    md5: str | None
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """The official files of a dataset, their checksums and their keys."""

    name: str
    title: str
    folder: str
    archive: Archive
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    md5: Mapping[str, str]
    label_key: bytes
    names_key: bytes
    classes: int

    @property
    def files(self) -> tuple[str, ...]:
        """All files in the order of verification: training, test, names."""
        return (*self.train, *self.test, self.meta)

    @property
    def home(self) -> str:
        """The authors' own address of the archive."""
        return self.archive.sources[-1]

    @property
    def checksum(self) -> str:
        """SHA-256 of all lines `md5  filename`, as md5sum prints them."""
        lines = "".join(f"{self.md5[name]}  {name}\n" for name in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


def _read_datasets(path: Path) -> dict[str, Dataset]:
    datasets = {}
    for name, values in read_yaml(path).items():
        archive = values.pop("archive")
        values["archive"] = Archive(**{**archive, "sources": tuple(archive["sources"])})
        for key in ("train", "test"):
            values[key] = tuple(values[key])
        for key in ("label_key", "names_key"):  # as the pickles of Python 2 have them
            values[key] = values[key].encode()
        datasets[name] = Dataset(name=name, **values)
    return datasets


DATASETS = _read_datasets(configs() / "datasets.yaml")


@dataclass(frozen=True)
class Images:
    """A dataset in memory: N training and M test images, in the official order.

    Images are uint8 [N, 32, 32, 3] and [M, 32, 32, 3] (height, width, RGB), contiguous; labels are
    int64 [N] and [M], from 0 to `classes - 1`. `checksum` identifies the data in records: see
    `Dataset.checksum`.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    checksum: str


def default_folder() -> Path:
    """The default folder of datasets: `$RESVAR_DATA`, else `data/`.

    Raises:
        UserError: it begins with `~`, and that home directory does not exist.
    """
    named = Path(os.environ.get("RESVAR_DATA") or "data")
    try:
        return named.expanduser()
    except RuntimeError as error:  # `~name` of no user
        raise UserError(
            f"RESVAR_DATA={str(named)!r}: that home directory does not exist."
        ) from error


def find_problems(dataset: Dataset, folder: Path) -> list[str]:
    """A sentence per file that is missing or not the official one; nothing is unpickled."""
    found = []
    for name in dataset.files:
        path = folder / dataset.folder / name
        try:
            if not path.is_file():
                found.append(f"{path}: this file is missing.")
                continue
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, md5_of).hexdigest()
        except OSError as error:
            found.append(f"{path}: cannot be read ({error.strerror}).")
            continue
        if md5 != dataset.md5[name]:
            found.append(f"{path}: its MD5 is {md5}, the published one is {dataset.md5[name]}.")
    return found


def load_cifar(dataset: Dataset, folder: Path) -> Images:
    """Verify and read a dataset whose own folder lies in `folder`.

    Raises:
        UserError: a file is missing, cannot be read, or is not the official one.
        RunError: the same, and another process fetches data into the folder now.
    """
    try:
        return _load_verified(dataset, folder)
    except UserError as error:
        if (owner := find_fetching(folder)) is None:
            raise
        raise RunError(
            f"{folder}: {owner} fetches data into it now; run the same command again after its end."
        ) from error


# --- loading --------------------------------------------------------------------------------------


def _load_verified(dataset: Dataset, folder: Path) -> Images:
    train_images, train_labels = _load_part(dataset, folder, dataset.train)
    test_images, test_labels = _load_part(dataset, folder, dataset.test)
    class_names = _load_class_names(dataset, folder)
    return Images(
        train_images, train_labels, test_images, test_labels, class_names, dataset.checksum
    )


def _load_part(
    dataset: Dataset, folder: Path, names: tuple[str, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of some files, concatenated."""
    import numpy as np

    images, labels = [], []
    for name in names:
        values = _load_file(dataset, folder, name)
        rows, classes = values.get(b"data"), values.get(dataset.label_key)
        try:
            numbers = np.asarray(classes, dtype=np.int64)
            sane = (
                isinstance(rows, np.ndarray)
                and rows.dtype == np.uint8
                and rows.shape == (len(numbers), 3 * SIDE * SIDE)
                and len(numbers) > 0
                and bool(((numbers >= 0) & (numbers < dataset.classes)).all())
            )
        except (TypeError, ValueError, OverflowError):
            sane = False
        if not sane or rows is None:
            raise UserError(
                f"{folder / dataset.folder / name}: this does not hold images and labels of "
                f"{dataset.title}; get it again with `{_data_command(dataset, folder)}`."
            )
        # A row is the red plane, then the green, then the blue.
        images.append(rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels.append(numbers)
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


def _load_class_names(dataset: Dataset, folder: Path) -> tuple[str, ...]:
    names = _load_file(dataset, folder, dataset.meta).get(dataset.names_key)
    if (
        not isinstance(names, list)
        or len(names) != dataset.classes
        or not all(isinstance(name, bytes) for name in names)
    ):
        raise UserError(
            f"{folder / dataset.folder / dataset.meta}: this does not hold the class names of "
            f"{dataset.title}; get it again with `{_data_command(dataset, folder)}`."
        )
    return tuple(name.decode("ascii", "replace") for name in names)


def _load_file(dataset: Dataset, folder: Path, name: str) -> dict[Any, Any]:
    """The mapping in an official file: read once, verified, then unpickled."""
    path = folder / dataset.folder / name
    try:
        if not path.exists():
            raise UserError(_describe_missing(dataset, folder, name))
        with open_regular(path) as file:
            content = file.read(LARGEST_FILE)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    md5 = md5_of(content).hexdigest()
    if md5 != dataset.md5[name]:
        raise UserError(
            f"{path}: this is not the official file of {dataset.title} (its MD5 is {md5}, the "
            f"published one is {dataset.md5[name]}), so it was not unpickled; get it again with "
            f"`{_data_command(dataset, folder)}`."
        )
    try:
        values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path}: this is not a pickle of {dataset.title} ({error}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: this is not a pickle of {dataset.title} (not a mapping).")
    return values


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values only: a second lock behind the MD5."""

    allowed = frozenset(
        [
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
        ]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _describe_missing(dataset: Dataset, folder: Path, name: str) -> str:
    if (folder / name).is_file():
        return (
            f"{folder}: this is the folder of {dataset.title} itself or one like it; name the "
            f"folder above, which contains {dataset.folder}/, with --data DIR or RESVAR_DATA."
        )
    return (
        f"{folder / dataset.folder}: {dataset.title} is not there ({name} is missing); get it with "
        f"`{_data_command(dataset, folder)}` or name its folder with --data DIR or RESVAR_DATA."
    )


def _data_command(dataset: Dataset, folder: Path) -> str:
    """The command that fetches the dataset into the folder, quoted for a shell."""
    which = "" if dataset.name == "cifar10" else f" --dataset {dataset.name}"
    return f"resvar data --dir {shlex.quote(str(folder))}{which}"


def md5_of(content: bytes = b"") -> Any:
    """MD5 as published, declared as not for security: some systems forbid it otherwise."""
    return hashlib.md5(content, usedforsecurity=False)
