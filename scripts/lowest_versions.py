"""The oldest versions that pyproject.toml allows, as constraints for pip; see `make test-lowest`.

    python scripts/lowest_versions.py --without torch torchvision > constraints.txt

Only bounds of the form `name>=version` are supported; pyproject.toml uses no others.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def constraints(requirements: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """`name==version` for each `name>=version`.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    found = []
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} is not of the form name>=version")
        if match[1] not in without:
            found.append(f"{match[1]}=={match[2]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the oldest allowed versions.")
    parser.add_argument("--without", nargs="*", default=(), help="packages to leave out")
    options = parser.parse_args()
    requirements = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    print("\n".join(constraints(requirements, options.without)))


if __name__ == "__main__":
    main()
