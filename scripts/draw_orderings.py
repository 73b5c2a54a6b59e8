"""Draw the paper's five residual units side by side: `docs/orderings.svg`, shown in the README."""

from __future__ import annotations

import sys
from pathlib import Path

from resvar.files import read_yaml, shipped
from resvar.models.drawing import units_svg
from resvar.models.ordering import PAPER_ORDER, find_ordering

DEFAULT = Path(__file__).parent.parent / "docs" / "orderings.svg"


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    figures = [read_yaml(shipped("variants")[name])["figure"] for name in PAPER_ORDER]
    also = {"original": " · ResNet V1", "full-preact": " · ResNet V2"}
    captions = [
        f"figure {figure}{also.get(name, '')}"
        for name, figure in zip(PAPER_ORDER, figures, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(units_svg([find_ordering(name) for name in PAPER_ORDER], captions))
    print(out)


if __name__ == "__main__":
    main()
