"""Finished runs with curves and environments, for the page. The runs are made up, and say so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resvar.models.ordering import PAPER_ORDER
from resvar.reports.findings import build
from resvar.reports.html import Page, render_html
from resvar.reports.search import read_records
from resvar.rundir import ENVIRONMENT, METRICS, write_metrics
from tests.reports.runs import write_run

ENVIRONMENT_A = {
    "format": 1, "resvar": "0.1.0", "commit": "0" * 40, "dirty": False, "python": "3.11.7",
    "torch": "2.8.0", "numpy": "2.3.1", "platform": "Linux", "device": "GPU A", "threads": 8,
    "dataset_checksum": "abc",
}  # fmt: skip


def spanless(page: str) -> str:
    """A page whose texts are not divided by the spans that keep names on one line."""
    return re.sub(r"</?span\b[^>]*>", "", page)


def rows(errors: Mapping[int, float], losses: Mapping[int, float] | None = None) -> list[Any]:
    """Rows of `metrics.csv`: iteration → test error, and the training loss, 1 by default."""
    names = ("epoch", "lr", "train_error", "test_loss", "images_per_second", "seconds")
    return [
        dict.fromkeys(names, 0.5)
        | {"iteration": iteration, "test_error": error}
        | {"train_loss": (losses or {}).get(iteration, 1.0)}
        for iteration, error in errors.items()
    ]


def write_curved(
    root: Path,
    variant: str = "original",
    depth: int = 110,
    seed: int = 0,
    errors: Mapping[int, float] | None = None,
    protocol: str = "quick",
    overrides: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A run with metrics and environment; it ends at the last of `errors`."""
    errors = errors or {100: 80.0, 200: 70.0, 300: 55.0 + seed, 400: 50.0 + seed}
    more.setdefault("test_error", list(errors.values())[-1])
    test_error = more.pop("test_error")
    folder = write_run(root, variant, depth, seed, test_error, protocol, overrides, **more)
    write_metrics(folder / METRICS, rows(errors))
    (folder / ENVIRONMENT).write_text(json.dumps(environment or ENVIRONMENT_A), encoding="utf-8")
    return folder


def write_rich(root: Path, seeds: int = 3, protocol: str = "paper") -> Path:
    """The five orderings at both depths, with a clear winner: full-preact."""
    finals = dict(zip(PAPER_ORDER, (6.6, 8.1, 7.8, 6.7, 5.9), strict=True))
    for variant, final in finals.items():
        for depth in (110, 164):
            for seed in range(seeds):
                end = round(final + seed / 10 - (depth > 110) / 2, 2)
                errors = {16000: 30.0 + seed, 32000: 15.0 + seed, 48000: end + 1, 64000: end}
                write_curved(root, variant, depth, seed, errors, protocol)
    return root


def write_page(root: Path, name: str = "report.html", **more: Any) -> Path:
    """The page on the runs below a folder, in a file there."""
    out = root / name
    page = Page(**{"out": out, "folders": (root,)} | more)
    out.write_text(render_html(build(read_records([root])), page), encoding="utf-8")
    return out
