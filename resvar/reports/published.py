"""The published test errors and others' reproductions of them, from `configs/published.yaml`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field

from resvar.errors import UserError
from resvar.files import configs, shipped
from resvar.strict_yaml import read_yaml


@dataclass(frozen=True)
class Published:
    """A figure of the paper, test error in percent.

    Attributes:
        test_error: the headline figure.
        runs: the number of runs behind it; None if the source does not state it.
        mean: of these runs, where the source prints it.
        sd: their standard deviation, likewise.
        note: what the headline figure is, such as `median of 5 runs (section 3.1)`.
    """

    test_error: float
    source: str
    runs: int | None
    mean: float | None = None
    sd: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Reproduction:
    """Others' result for a cell, test error in percent: to show beside ours, not to compare with.

    Attributes:
        by: whose it is, such as `hysts/pytorch_image_classification`.
        test_error: the median where there are several runs.
        runs: the number of runs; None if the source does not state it.
        epoch: `best` if it is the lowest of all epochs, chosen on the test images; None if the
            source does not tell.
        differs: from the paper's protocol, as far as the source tells.
        mean: of these runs, where the source prints it.
        sd: their standard deviation, likewise.
    """

    by: str
    test_error: float
    source: str
    runs: int | None
    epoch: Literal["last", "best"] | None
    differs: str
    mean: float | None = None
    sd: float | None = None


def published(dataset: str, variant: str, depth: int) -> Published | None:
    """The published figure of a cell, or None."""
    return _shipped().published.get((dataset, variant, depth))


def published_difference(v1: Published | None, v2: Published | None) -> float | None:
    """V2 − V1 in the paper, in points with its two decimals: a difference of headline figures."""
    return None if v1 is None or v2 is None else round(v2.test_error - v1.test_error, 2)


def usual_sd(dataset: str) -> float | None:
    """The largest published standard deviation on a dataset, for figures without one."""
    sds = [figure.sd for cell, figure in _shipped().published.items() if cell[0] == dataset]
    return max((sd for sd in sds if sd is not None), default=None)


def reproductions(dataset: str, variant: str, depth: int) -> tuple[Reproduction, ...]:
    """What others measured for a cell, in the file's order."""
    found = _shipped().reproductions
    return tuple(result for cell, result in found if cell == (dataset, variant, depth))


FigureKey = tuple[str, str, int]
"""Dataset, variant, depth."""


@dataclass(frozen=True)
class Figures:
    """The content of a file of published figures."""

    published: dict[FigureKey, Published]
    reproductions: tuple[tuple[FigureKey, Reproduction], ...]


def read_figures(path: Path) -> Figures:
    """The figures in a YAML file.

    Raises:
        UserError: the file has another form, an impossible number, or a cell twice from one source.
    """
    try:
        content = _File.model_validate(read_yaml(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}.") from None
    ours = [
        (cell, Published(error, **entry.details()))
        for entry in content.tables
        for cell, error in entry.cells()
    ]
    others = [
        (cell, Reproduction(test_error=error, **entry.details()))
        for entry in content.reproductions
        for cell, error in entry.cells()
    ]
    _once(path, [cell for cell, _ in ours])
    _once(path, [(result.by, *cell) for cell, result in others])
    return Figures(dict(ours), tuple(others))


@lru_cache(maxsize=1)
def _shipped() -> Figures:
    return read_figures(configs() / "published.yaml")


def _once(path: Path, keys: Sequence[tuple[Any, ...]]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{path}: {' '.join(map(str, key))} is there twice.")


def _known_variant(name: str) -> str:
    if name not in shipped("variants"):
        raise ValueError(f"{name} is not a shipped variant")
    return name


Percentage = Annotated[float, Field(gt=0, lt=100)]
Text = Annotated[str, Field(min_length=1)]
Errors = dict[
    Annotated[str, AfterValidator(_known_variant)],
    dict[Annotated[int, Field(gt=0)], Percentage],
]
"""Variant → depth → test error."""


class _Entry(pydantic.BaseModel):
    """Figures from one source, with what applies to all of them."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    source: Text
    dataset: Literal["cifar10", "cifar100"]
    runs: Annotated[int, Field(gt=0)] | None = None
    mean: Percentage | None = None
    sd: Percentage | None = None
    test_error: Errors

    @pydantic.model_validator(mode="after")
    def _mean_and_sd(self) -> _Entry:
        """Mean and sd come together, of several runs, and for one cell."""
        given = [value for value in (self.mean, self.sd) if value is not None]
        if given and (len(given) == 1 or (self.runs or 0) < 2 or len(list(self.cells())) != 1):
            raise ValueError("mean and sd need each other, two or more runs, and a single cell")
        return self

    def cells(self) -> Iterator[tuple[FigureKey, float]]:
        for variant, errors in self.test_error.items():
            for depth, error in errors.items():
                yield (self.dataset, variant, depth), error

    def details(self) -> dict[str, Any]:
        return self.model_dump(exclude={"dataset", "test_error"})


class _Paper(_Entry):
    note: Text


class _Others(_Entry):
    by: Text
    epoch: Literal["last", "best"] | None = None
    differs: Text


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    tables: list[_Paper]
    reproductions: list[_Others]
