"""Draw the paper's five residual units side by side: `docs/orderings.svg`, shown in the README."""

from __future__ import annotations

import sys
from pathlib import Path

from resvar.explain.drawing import Figure, figures_svg
from resvar.explain.show import caption
from resvar.models.architecture import plan
from resvar.models.ordering import PAPER_ORDER, find_ordering

DEFAULT = Path(__file__).parent.parent / "docs" / "orderings.svg"


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    orderings = [find_ordering(name) for name in PAPER_ORDER]
    figures = [Figure.of(ordering, plan(110), caption(ordering)) for ordering in orderings]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(figures_svg(figures), encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
