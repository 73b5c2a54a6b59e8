"""The agreement of runs, image by image: informative even at one seed.

Predictions come from `predictions.npy`. The package contains the labels of CIFAR-10's test images
(10,000 digits in the official order); they are used only for runs whose recorded test error they
reproduce. For other datasets only the agreement between runs is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.errors import UnreadableError, UserError
from resvar.reports.cells import CellKey, Finished
from resvar.reports.records import Record, result_of, settings_of
from resvar.reports.verdicts import V1
from resvar.rundir import read_predictions

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

LABELS = Path(__file__).parent / "cifar10-test-labels.txt"


@dataclass(frozen=True)
class Predictions:
    """The predictions of one run.

    Attributes:
        predictions: int [N], the predicted class of each test image in the official order.
        right: bool [N], or None if the labels are unknown.
    """

    seed: int
    predictions: Array
    right: Array | None


@dataclass(frozen=True)
class Pairing:
    """Two single runs of the same seed, image by image (McNemar 1947).

    Attributes:
        first_only, second_only: images that only that run classifies correctly.
        p: of McNemar's exact two-sided test.
    """

    seed: int
    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True)
class Agreement:
    """The predictions of a cell, compared with each other and with the other cells' at its depth.

    Attributes:
        n: runs with predictions.
        within: percent of images on which two runs of the cell differ, mean over pairs; None for
            one run. The reference for `across`.
        across: variant → the same between a run of the cell and one of that variant.
        pairing: with the baseline at the smallest seed that both have, or None.
        test_sd: the standard deviation of the test errors, in points; None for one run.
        predicted_sd: see `predicted_sd`, or None.
        distribution_sd: see `distribution_sd`, or None.
    """

    variant: str
    depth: int
    n: int
    within: float | None
    across: Mapping[str, float]
    pairing: Pairing | None
    test_sd: float | None
    predicted_sd: float | None
    distribution_sd: float | None


def agreements(
    predictions: Mapping[CellKey, Sequence[Predictions]],
    variants: Sequence[str],
    depths: Sequence[int],
    trained_out: bool,
) -> Iterator[Agreement]:
    """Cell by cell; none at a depth whose runs predict different numbers of images."""
    for depth in depths:
        here = {v: predictions[v, depth] for v in variants if (v, depth) in predictions}
        if len({len(run.predictions) for runs in here.values() for run in runs}) == 1:
            yield from (agreement(v, depth, here, V1, trained_out) for v in here)


def is_long(record: Record) -> bool:
    """Whether a run has as many epochs of CIFAR-10 as independent errors take."""
    settings = settings_of(record)
    return settings.iterations * settings.batch_size >= FEWEST_EPOCHS * 50_000


def agreement(
    variant: str,
    depth: int,
    cells: Mapping[str, Sequence[Predictions]],
    baseline: str,
    trained_out: bool = True,
) -> Agreement:
    """The agreement of a cell's runs.

    Args:
        cells: variant → its runs at this depth, at least one each, over the same images.
        baseline: the variant that the others are paired with.
        trained_out: the runs are long enough for independent errors; else nothing is predicted.
    """
    runs = cells[variant]
    rights = [run.right for run in runs if run.right is not None]
    others = {name: other for name, other in cells.items() if name != variant}
    scored = len(rights) == len(runs) > 1
    predicted = trained_out and scored
    return Agreement(
        variant=variant,
        depth=depth,
        n=len(runs),
        within=_within(runs) if len(runs) > 1 else None,
        across={name: _across(runs, other) for name, other in others.items()},
        pairing=_pairing(others.get(baseline, ()), runs),
        test_sd=measured_sd(rights) if scored else None,
        predicted_sd=predicted_sd(rights) if predicted else None,
        distribution_sd=distribution_sd(rights) if predicted else None,
    )


FEWEST_EPOCHS = 16
"""Of shorter runs the errors on different images are not independent (arXiv:2304.01910, 3.2)."""


def measured_sd(right: Sequence[Array]) -> float:
    """The standard deviation of the test errors of at least two runs, in percentage points.

    Args:
        right: of each run, bool [N].
    """
    import numpy as np

    return 100.0 * float(np.std([array.mean() for array in right], ddof=1))


def distribution_sd(right: Sequence[Array]) -> float:
    """The standard deviation between seeds of the error on the distribution of the images.

    Its variance is N / (N - 1) times that of the test errors less that of independent errors on
    N images (arXiv:2304.01910, equation 3). The estimate is unbiased, so it may be below 0: then 0.
    """
    n, excess = len(right[0]), measured_sd(right) ** 2 - predicted_sd(right) ** 2
    return math.sqrt(max(0.0, n / (n - 1) * excess))


def predicted_sd(right: Sequence[Array]) -> float:
    """The standard deviation between seeds if test images were independent, in percentage points.

    The variance of the test error is then the sum over images of e(1 - e) / N², e being the
    probability that a run errs on the image (arXiv:2304.01910, section 3.2). From n runs,
    e(1 - e) is estimated without bias by n / (n - 1) times the product of the observed shares.

    Args:
        right: at least two arrays, bool [N].
    """
    import numpy as np

    n, share = len(right), np.mean([~array for array in right], axis=0)
    variance = float((share * (1 - share)).sum()) * n / (n - 1) / len(share) ** 2
    return 100.0 * math.sqrt(variance)


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided p; 1 if the runs differ on no image (McNemar 1947)."""
    either = first_only + second_only
    if either == 0:
        return 1.0
    stats = import_module("scipy.stats")
    return float(stats.binomtest(min(first_only, second_only), either, 0.5).pvalue)


def _pairing(baseline: Sequence[Predictions], runs: Sequence[Predictions]) -> Pairing | None:
    ours: Mapping[int, Predictions] = {run.seed: run for run in runs}
    for first in sorted(baseline, key=lambda run: run.seed):
        second = ours.get(first.seed)
        if second is None or first.right is None or second.right is None:
            continue
        counts = int((first.right & ~second.right).sum()), int((second.right & ~first.right).sum())
        return Pairing(first.seed, *counts, mcnemar(*counts))
    return None


def _within(runs: Sequence[Predictions]) -> float:
    """Percent of images on which two runs of the cell, at least two, differ; mean over pairs."""
    n, images = len(runs), len(runs[0].predictions)
    same = _same(runs, runs) - n * images  # each run agrees with itself
    return 100.0 * (1 - same / (n * (n - 1) * images))


def _across(first: Sequence[Predictions], second: Sequence[Predictions]) -> float:
    """The same between a run of one cell and a run of another."""
    images = len(first[0].predictions)
    return 100.0 * (1 - _same(first, second) / (len(first) * len(second) * images))


def _same(first: Sequence[Predictions], second: Sequence[Predictions]) -> int:
    """How many (image, run of `first`, run of `second`) have the same predicted class.

    Counted by class, not by pair: a hundred seeds of two variants are ten thousand pairs.
    """
    import numpy as np

    ours, theirs = (np.stack([run.predictions for run in runs]) for runs in (first, second))
    return sum(
        int((ours == label).sum(axis=0) @ (theirs == label).sum(axis=0))
        for label in np.intersect1d(ours, theirs)
    )


# --- reading --------------------------------------------------------------------------------------


def all_predictions(finished: Finished) -> tuple[dict[CellKey, list[Predictions]], list[str]]:
    """The predictions by cell, and notes about predictions that do not count."""
    found: dict[CellKey, list[Predictions]] = {}
    unread: dict[str, list[str]] = {}
    for cell, by_seed in finished.items():
        for seed, record in by_seed.items():
            error = result_of(record)["test_error"]
            read = scored_predictions(record.folder, seed, settings_of(record).dataset, error)
            if isinstance(read, str):
                unread.setdefault(read, []).append(record.folder.as_posix())
            else:
                found.setdefault(cell, []).append(read)
    notes = []
    for why, folders in unread.items() if found or set(unread) != {"missing"} else ():
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        notes.append(
            f"Agreement of predictions leaves out {folders[0]}{more}: predictions.npy is {why}."
        )
    return found, notes


def scored_predictions(
    folder: Path, seed: int, dataset: str, test_error: float
) -> Predictions | str:
    """The predictions of a finished run, or in a few words why they are not used."""
    import numpy as np

    try:
        if (found := read_predictions(folder)) is None:
            return "missing"
    except UnreadableError:
        return "not readable here"
    except UserError:
        return "damaged"
    right = _right(found, dataset)
    if right is not None and abs(100.0 * float((~right).mean()) - test_error) > 1e-6:
        return "inconsistent with the recorded test error"
    return Predictions(seed, found.astype(np.int32), right)


def _right(predictions: Array, dataset: str) -> Array | None:
    if dataset != "cifar10" or len(predictions) != len(labels := cifar10_labels()):
        return None
    found: Array = predictions == labels
    return found


@lru_cache(maxsize=1)
def cifar10_labels() -> Array:
    """int64 [10000]: the classes of the test images in the official order."""
    import numpy as np

    return np.array([int(digit) for digit in LABELS.read_text("utf-8") if digit.isdigit()])
