"""The published test errors, from `configs/published.yaml`. Nothing types them a second time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from resvar.files import configs, read_yaml


@dataclass(frozen=True)
class Published:
    """A published test error in percent, where it stands, and the runs of which it is the median.

    `runs` is None where the source does not say.
    """

    test_error: float
    source: str
    runs: int | None


def published(dataset: str, variant: str, depth: int) -> Published | None:
    """The published figure of a cell, or None where nobody published one."""
    return _figures().get((dataset, variant, depth))


@lru_cache(maxsize=1)
def _figures() -> dict[tuple[str, str, int], Published]:
    """(dataset, variant, depth) → figure."""
    return {
        (table["dataset"], variant, depth): Published(error, table["source"], table.get("runs"))
        for table in read_yaml(configs() / "published.yaml")["tables"]
        for variant, errors in table["test_error"].items()
        for depth, error in errors.items()
    }
