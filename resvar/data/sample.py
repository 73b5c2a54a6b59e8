"""The sample of CIFAR-10 that the package carries, for machines that reach no source of the data.

2,000 training and 1,000 test images in `cifar10-sample/`, chosen by `scripts/make_sample.py`: two
mosaics in lossless WebP, and a CSV with each image's official index and class. It shows that
everything works, and nothing about the paper. No torch.
"""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from resvar.data.cifar import SIDE, Images
from resvar.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_FOLDER = Path(__file__).parent / "cifar10-sample"

SAMPLE_SHA256 = {
    "images.csv": "75816328f96035134b81d6684edcc1cdec00b15212420eef07f16cf0edc66b3c",
    "train.webp": "14336149e1cf368323f961196b6f4bea0a7faf6c0aaf70f699bffd866f9ebdda",
    "test.webp": "16323ca322ce96b3f8c4247d8d4df8f6d9c74a69fd4aa06aa0cda92ce70d286a",
}
"""The files of the sample; each is verified before anything reads it."""

COLUMNS = 50
"""Images in a row of a mosaic."""


def load_sample(folder: Path = SAMPLE_FOLDER) -> Images:
    """Verify and read the sample; its images are in the order of their official indices.

    Raises:
        UserError: a file is missing or is not the one that the package was made with.
    """
    found = {name: _verified(folder / name) for name in SAMPLE_SHA256}
    rows = list(csv.DictReader(io.StringIO(found["images.csv"].decode("ascii"))))
    names = {int(row["label"]): row["class"] for row in rows}
    return Images(
        split_mosaic(found["train.webp"]),
        _labels(rows, "train"),
        split_mosaic(found["test.webp"]),
        _labels(rows, "test"),
        tuple(names[label] for label in sorted(names)),
        sample_checksum(),
    )


def sample_checksum() -> str:
    """SHA-256 of all lines `sha256  filename`, as sha256sum prints them."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in SAMPLE_SHA256.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def make_mosaic(images: NDArray[np.uint8]) -> bytes:
    """The images, uint8 [N, 32, 32, 3], as a lossless WebP with 50 of them in a row."""
    from PIL import Image

    rows = len(images) // COLUMNS
    tiles = images.reshape(rows, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2)
    mosaic = Image.fromarray(tiles.reshape(rows * SIDE, COLUMNS * SIDE, 3))
    file = io.BytesIO()
    mosaic.save(file, "WEBP", lossless=True, quality=100, method=6)
    return file.getvalue()


def split_mosaic(content: bytes) -> NDArray[np.uint8]:
    """The images of a mosaic, uint8 [N, 32, 32, 3], row by row."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            mosaic = np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise UserError(
            f"Pillow cannot read WebP here ({error}); install its own wheel."
        ) from error
    tiles = mosaic.reshape(-1, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(-1, SIDE, SIDE, 3))


def _verified(path: Path) -> bytes:
    """The content of a file of the sample."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); install resvar again."
        ) from error
    if (digest := hashlib.sha256(content).hexdigest()) != SAMPLE_SHA256[path.name]:
        raise UserError(
            f"{path}: this file has changed since it was packaged (its SHA-256 is {digest}, not "
            f"{SAMPLE_SHA256[path.name]}); install resvar again."
        )
    return content


def _labels(rows: list[dict[str, str]], part: str) -> NDArray[np.int64]:
    import numpy as np

    return np.array([int(row["label"]) for row in rows if row["part"] == part], dtype=np.int64)
