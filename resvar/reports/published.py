"""The published test errors, from `configs/published.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from resvar.files import configs
from resvar.strict_yaml import read_yaml


@dataclass(frozen=True)
class Published:
    """A published test error in percent and its source.

    Attributes:
        runs: it is the median of so many runs; None if the source does not tell.
    """

    test_error: float
    source: str
    runs: int | None


def published(dataset: str, variant: str, depth: int) -> Published | None:
    """The published figure of a cell, or None."""
    return _published_table().get((dataset, variant, depth))


@lru_cache(maxsize=1)
def _published_table() -> dict[tuple[str, str, int], Published]:
    """(dataset, variant, depth) → figure."""
    return {
        (table["dataset"], variant, depth): Published(error, table["source"], table.get("runs"))
        for table in read_yaml(configs() / "published.yaml")["tables"]
        for variant, errors in table["test_error"].items()
        for depth, error in errors.items()
    }
