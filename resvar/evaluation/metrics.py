"""Errors by class and calibration, as functions of NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RELIABILITY_BINS = 15
"""As in Guo et al. 2017 (arXiv:1706.04599)."""


def confusion_matrix(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """int64 [classes, classes]: images of the row's class, predicted as the column's."""
    pairs = labels * classes + predictions
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def class_errors(confusion: NDArray[np.int64]) -> list[float | None]:
    """Error of each class in percent; None for a class without images."""
    images, correct = confusion.sum(axis=1).tolist(), confusion.diagonal().tolist()
    return [100.0 * (n - c) / n if n else None for n, c in zip(images, correct, strict=True)]


class ReliabilityBin(NamedTuple):
    """Images with a confidence above `above` and at most `up_to`; all values are 0 to 1.

    Attributes:
        confidence: mean probability of the predicted class; None without images.
        accuracy: share of correct predictions; None without images.
    """

    above: float
    up_to: float
    images: int
    confidence: float | None
    accuracy: float | None


def reliability(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = RELIABILITY_BINS
) -> list[ReliabilityBin]:
    """The images in bins of equal width by confidence (arXiv:1706.04599, section 2).

    Args:
        confidence: float [N] in [0, 1], the probability of the predicted class.
        correct: bool [N], whether the prediction is correct.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.digitize(confidence, edges[1:-1], right=True)  # bin m is (edge m, edge m + 1]
    found = []
    for number, (above, up_to) in enumerate(pairwise(edges.tolist())):
        inside = index == number
        count = int(inside.sum())
        means = [float(of[inside].mean()) if count else None for of in (confidence, correct)]
        found.append(ReliabilityBin(above, up_to, count, *means))
    return found


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean |accuracy - confidence| over bins, weighted by their images (arXiv:1706.04599, eq. 3).

    0 is perfect, 1 the worst.
    """
    gaps = (
        one.images * abs(one.accuracy - one.confidence)
        for one in bins
        if one.accuracy is not None and one.confidence is not None
    )
    return sum(gaps) / sum(one.images for one in bins)
