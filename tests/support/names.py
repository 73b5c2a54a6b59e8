"""Names of files, in the form in which tests compare them."""

from __future__ import annotations

import re
from pathlib import Path


def stable_name(path: Path) -> str:
    """The name without the random part of a temporary one: `a.txt.tmp`."""
    return re.sub(r"\.[0-9a-f]{16}\.tmp$", ".tmp", path.name)
