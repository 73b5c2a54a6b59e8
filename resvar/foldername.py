"""Settings as the name of a folder: readable, the same on every system, and one for each value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

LONGEST_NAME = 100
"""Characters. A longer name is cut and ends in a hash of the whole."""

HASH_DIGITS = 10


def folder_name(values: Mapping[str, Any]) -> str:
    """`lr=0.05,milestones=400+800` for settings by name; empty for none.

    Different settings have different names, and equal ones the same, however they were written.
    The names contain letters, digits and `=,+-._` only.
    """
    parts = [f"{name}={value_name(values[name])}" for name in sorted(values)]
    whole = ",".join(parts)
    if len(whole) <= LONGEST_NAME:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:HASH_DIGITS]
    head = whole[: LONGEST_NAME - HASH_DIGITS - 1]
    return f"{head.rpartition(',')[0] or head},{digest}"  # only a hash has no "="


def value_name(value: Any) -> str:
    """A value as part of a name: `0.05`, `true`, `none`, `400+800`; an empty list is `empty`."""
    if isinstance(value, list | tuple):
        return "+".join(map(value_name, value)) or "empty"
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace("e+", "e")  # "+" separates a list
    return str(value).lower()
