"""What Python's own library has for sequences from 3.12 on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """`items` in pieces of `size`, the last one perhaps shorter: `itertools.batched`."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]
