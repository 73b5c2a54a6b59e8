"""The sample of CIFAR-10 in the package, made from the verified data: the same bytes every time.

    python scripts/make_sample.py --data data --out resvar/data/cifar10-sample

200 training and 100 test images of each class, drawn with SEED. Prints the SHA-256 of every file,
for `resvar/data/sample.py`. Another release of libwebp may compress the same pixels to other bytes.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resvar.data.cifar import DATASETS, Images, default_folder, load_cifar
from resvar.data.sample import SAMPLE_FOLDER, SAMPLE_SHA256, make_mosaic

SEED = 20160316
"""The day on which the paper appeared."""

TRAIN_PER_CLASS, TEST_PER_CLASS = 200, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--out", type=Path, default=SAMPLE_FOLDER)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in sample_files(load_cifar(DATASETS["cifar10"], options.data)).items():
        (options.out / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        state = "as in the package" if digest == SAMPLE_SHA256[name] else "CHANGED"
        print(f"{digest}  {name}  {len(content):,} bytes, {state}")


def sample_files(images: Images) -> dict[str, bytes]:
    """Name → content of each file of the sample."""
    train, test = chosen(images)
    lines = ["part,index,label,class"]
    for part, indices, labels in (
        ("train", train, images.train_labels),
        ("test", test, images.test_labels),
    ):
        lines += [f"{part},{i},{labels[i]},{images.class_names[labels[i]]}" for i in indices]
    return {
        "images.csv": "".join(f"{line}\n" for line in lines).encode("ascii"),
        "train.webp": make_mosaic(images.train_images[train]),
        "test.webp": make_mosaic(images.test_images[test]),
    }


def chosen(images: Images) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The official indices of the training and of the test images, each in ascending order."""
    random = np.random.Generator(np.random.Philox(SEED))

    def draw(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        of_class = (np.flatnonzero(labels == label) for label in range(10))
        return np.sort(
            np.concatenate([random.choice(those, count, replace=False) for those in of_class])
        )

    return draw(images.train_labels, TRAIN_PER_CLASS), draw(images.test_labels, TEST_PER_CLASS)


if __name__ == "__main__":
    main()
