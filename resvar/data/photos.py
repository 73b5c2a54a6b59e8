"""Image files: list them by class, check them, read them as RGB. No torch."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resvar.errors import UserError, first_line
from resvar.files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in upper or lower case; as in torchvision."""

IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000")
"""Formats that are decoded, whatever the suffix; not EPS, for example, which starts a program."""

MOST_PIXELS = 89_478_485
"""Largest number of pixels in an image; Pillow's limit, 270 MB as RGB."""

MOST_LENGTHS = 200
"""Largest ratio of an image's sides: resizing the shorter one multiplies the pixels by this."""

CHECKED = 50_000_000
"""Bytes. A smaller set of images is read completely before a run, in a second or two."""


@dataclass
class ImageFiles:
    """The images of a part, ordered by class, folder and name.

    Attributes:
        samples: path and class number of each.
        sizes: bytes of each.
        loader: reads one image, like `read_image`.
    """

    classes: list[str]
    samples: list[tuple[str, int]]
    sizes: list[int]
    loader: Callable[[str], Image]

    @property
    def targets(self) -> list[int]:
        """The class number of each image."""
        return [label for _, label in self.samples]


def list_images(folder: Path) -> ImageFiles:
    """The image files below `folder/<class>/`, at any depth; hidden files and folders are skipped.

    Raises:
        UserError: a class has no images; or an entry is a broken or circular link, a pipe or a
            device, or may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if _is_class(entry))
        samples, sizes = [], []
        for number, name in enumerate(classes):
            found = sorted(_walk(str(folder / name)), key=lambda item: os.path.split(item[0]))
            if not found:
                raise UserError(
                    f"{folder}: no images by class (none in that of '{name}', by the endings "
                    f"{', '.join(IMAGE_SUFFIXES)}); fill the folder or remove it."
                )
            samples += [(path, number) for path, _ in found]
            sizes += [size for _, size in found]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    if not classes:
        raise UserError(f"{folder}: no images by class (a folder for each class is missing).")
    return ImageFiles(classes, samples, sizes, read_image)


def checksum_of(parts: Sequence[ImageFiles], folder: Path) -> str:
    """SHA-256 of the names (relative to `folder`) and sizes of all files; not of their bytes."""
    sha = hashlib.sha256()
    for part in parts:
        for (path, _), size in zip(part.samples, part.sizes, strict=True):
            sha.update(os.fsencode(f"{Path(path).relative_to(folder)} {size}\n"))
    return sha.hexdigest()


def check_images(parts: Sequence[ImageFiles]) -> str:
    """Check that no file is empty and, in a small set, that every image can be read.

    Returns:
        SHA-256 of the bytes of all files of a small set, otherwise "".

    Raises:
        UserError: an image cannot be read; names the first, and the reason.
    """
    small, sha = sum(sum(part.sizes) for part in parts) <= CHECKED, hashlib.sha256()
    for part in parts:
        for (path, _), size in zip(part.samples, part.sizes, strict=True):
            if small or not size:
                try:
                    part.loader(path)
                except UnreadableImageError as error:
                    raise UserError(str(error)) from error
                sha.update(Path(path).read_bytes())
    return sha.hexdigest() if small else ""


class UnreadableImageError(Exception):
    """A file is not a usable image; the text is a sentence that names it."""


def read_image(path: str) -> Image:
    """The image in a file as RGB with 8 bits per channel; the first frame of an animation.

    Transparency is dropped. 16-bit grey values keep their upper 8 bits, as colours do.

    Raises:
        UnreadableImageError: the file cannot be read, is not an image, or is too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_regular(Path(path)) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
                _check_shape(*image.size)
                return _to_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise _unreadable(path, "it is empty, or not an image of a known format") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _unreadable(path, f"it has more than {MOST_PIXELS:,} pixels") from error
    except OSError as error:
        raise _unreadable(path, error.strerror or first_line(error)) from error
    except Exception as error:  # a damaged image can raise nearly anything
        raise _unreadable(path, first_line(error)) from error


# --- helpers --------------------------------------------------------------------------------------


def _walk(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, int]]:
    """The images below a folder with their sizes, in any order; follows links."""
    status = Path(folder).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"{folder}: this link leads back to a parent folder; remove it.")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, (*above, here))
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield entry.path, _size_of(entry)


def _is_class(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat()
    except FileNotFoundError as error:
        raise UserError(f"{entry.path}: this link is broken; remove it.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{entry.path}: this is a pipe, socket or device, not a file; remove it.")
    return status.st_size


def _check_shape(width: int, height: int) -> None:
    if max(width, height) > MOST_LENGTHS * min(width, height):
        raise ValueError(f"one side is more than {MOST_LENGTHS} times as long as the other")


def _to_rgb(image: Image) -> Image:
    import numpy as np
    from PIL.Image import fromarray

    if image.mode.startswith("I;16"):  # convert() would turn nearly all of them white
        return fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("it has 32-bit grey values; convert them to 8 bits")
    return image.convert("RGB")


def _unreadable(path: str, reason: str) -> UnreadableImageError:
    return UnreadableImageError(f"{path}: this image cannot be read ({reason}).")
