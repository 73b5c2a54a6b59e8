"""Training curves: what `metrics.csv` holds of a run, and several runs of a cell as one band."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.errors import UserError
from resvar.files import read_text

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

LARGEST_METRICS = 100_000_000
"""Bytes; 64,000 iterations evaluated one by one take twelve million."""

COLUMNS = ("iteration", "train_loss", "test_error")


@dataclass(frozen=True)
class Curve:
    """One run, an entry per evaluation: updates done, mean training loss, test error in percent."""

    iteration: tuple[int, ...]
    train_loss: tuple[float, ...]
    test_error: tuple[float, ...]


def read_curve(path: Path) -> Curve | None:
    """The curve in a `metrics.csv`; None where there is no such file.

    Raises:
        UserError: the file cannot be read, a column is missing, or a line does not make sense.
    """
    if not path.is_symlink() and not path.exists():
        return None
    lines = csv.reader(
        read_text(path, LARGEST_METRICS, "table of metrics").splitlines(), strict=True
    )
    try:
        header = next(lines, [])
        if missing := [name for name in COLUMNS if name not in header]:
            raise UserError(f"{path}: this is damaged: the column '{missing[0]}' is missing.")
        at = [header.index(name) for name in COLUMNS]
        rows: list[tuple[int, float, float]] = []
        for row in lines:
            rows.append(_row(row, header, at, rows[-1][0] if rows else 0))
    except (ValueError, OverflowError, csv.Error) as error:
        raise UserError(f"{path}, line {lines.line_num}: this is damaged ({error}).") from error
    iteration, loss, test = zip(*rows, strict=True) if rows else ((), (), ())
    return Curve(iteration, loss, test)


def _row(row: list[str], header: list[str], at: list[int], before: int) -> tuple[int, float, float]:
    """Iteration, training loss and test error of a line.

    Raises:
        ValueError: what is wrong with it.
    """
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields, where the header has {len(header)}")
    iteration, loss, error = int(row[at[0]]), float(row[at[1]]), float(row[at[2]])
    if not before < iteration < 10**12:
        raise ValueError(f"iteration {iteration} follows {before}")
    if not math.isfinite(loss):
        raise ValueError(f"the training loss is {loss}")
    if not 0 <= error <= 100:
        raise ValueError(f"the test error is {error}, which is no percentage")
    return iteration, loss, error


# --- several runs as one --------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """The test errors and training losses of several runs over a grid of iterations.

    Each array is float64 [len(grid)], NaN where no run has come or begun so far.

    Attributes:
        low, high: the smallest and largest test error since the grid's point before.
        error, loss: medians over the runs.
    """

    low: Array
    error: Array
    high: Array
    loss: Array


def common_grid(curves: Sequence[Curve], most: int) -> Array:
    """All iterations at which any of the curves was evaluated; of more than `most`, so many, evenly
    taken, the first and the last among them. float64 [at most `most`]."""
    import numpy as np

    grid = np.unique(np.concatenate([np.asarray(curve.iteration) for curve in curves]))
    if len(grid) > most:
        grid = grid[np.linspace(0, len(grid) - 1, most).round().astype(np.int64)]
    return grid.astype(np.float64)


def band(curves: Sequence[Curve], grid: Array) -> Band:
    """Curves of one cell over a grid of iterations.

    Between two evaluations a curve is taken to be straight; before its first and after its last
    it counts for nothing. What lies between two points of the grid still widens the band.
    """
    import numpy as np

    errors, lows, highs, losses = [], [], [], []
    for curve in curves:
        if not curve.iteration:
            continue
        x, y = np.asarray(curve.iteration, float), np.asarray(curve.test_error)
        at_grid = np.interp(grid, x, y, np.nan, np.nan)
        low, high = at_grid.copy(), at_grid.copy()
        where = np.minimum(np.searchsorted(grid, x), len(grid) - 1)
        np.fmin.at(low, where, y)
        np.fmax.at(high, where, y)
        errors.append(at_grid)
        lows.append(np.where(np.isnan(at_grid), np.nan, low))
        highs.append(np.where(np.isnan(at_grid), np.nan, high))
        losses.append(np.interp(grid, x, np.asarray(curve.train_loss), np.nan, np.nan))
    if not errors:
        nothing = np.full(len(grid), np.nan)
        return Band(nothing, nothing, nothing, nothing)
    return Band(
        low=np.fmin.reduce(lows),
        error=_median(np.array(errors)),
        high=np.fmax.reduce(highs),
        loss=_median(np.array(losses)),
    )


def error_range(bands: Sequence[Band]) -> tuple[float, float, float]:
    """The test errors that an axis should show, from low to high, and the highest that there is.

    The start of training is cut off, as in the paper's figures, if it dwarfs the end.
    """
    import numpy as np

    top = max(float(np.nanmax(found.high)) for found in bands)
    bottom = min(float(np.nanmin(found.low)) for found in bands)
    at_the_end = max(float(found.error[~np.isnan(found.error)][-1]) for found in bands)
    limit = min(top, 3 * at_the_end) if at_the_end > 0 else top
    return (0.0 if bottom < 0.55 * limit else bottom), limit, top


def _median(values: Array) -> Array:
    """Over the runs that are there; NaN where none is. [runs, grid] → [grid]."""
    import numpy as np

    result = np.full(values.shape[1], np.nan)
    there = ~np.isnan(values).all(axis=0)
    result[there] = np.nanmedian(values[:, there], axis=0)
    return result
