"""Run directories as training leaves them, made in a moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resvar.config import resolve
from resvar.rundir import CONFIG, DIVERGED, FAILURE, PROGRESS, RESULT
from resvar.settings import Settings


def make_settings(
    variant: str = "original",
    depth: int = 110,
    seed: int = 0,
    protocol: str = "quick",
    overrides: Sequence[str] = (),
) -> Settings:
    options = {"variant": variant, "depth": depth, "seed": seed, "protocol": protocol}
    return resolve(options=options, overrides=("precision=fp32", *overrides))


def write_run(
    root: Path,
    variant: str = "original",
    depth: int = 110,
    seed: int = 0,
    test_error: float | None = 50.0,
    protocol: str = "quick",
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    progress: Mapping[str, Any] | None = None,
    failure: Mapping[str, Any] | None = None,
    diverged: Mapping[str, Any] | None = None,
) -> Path:
    """A run directory below `root`; unfinished where `test_error` is None.

    Args:
        folder: instead of the one where older versions put every run.
        changes: fields of the result to replace; a value of `...` takes the field away.
    """
    settings = make_settings(variant, depth, seed, protocol, overrides)
    folder = folder or root / protocol / f"{settings.variant}-{depth}" / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(settings.to_yaml(), encoding="utf-8")
    if test_error is not None:
        result = make_result(settings, test_error) | dict(changes or {})
        kept = {key: value for key, value in result.items() if value is not ...}
        (folder / RESULT).write_text(json.dumps(kept, indent=2), encoding="utf-8")
    if progress is not None:
        (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
    if failure is not None:
        (folder / FAILURE).write_text(json.dumps(failure), encoding="utf-8")
    if diverged is not None:
        (folder / DIVERGED).write_text(json.dumps(diverged), encoding="utf-8")
    return folder


def make_result(settings: Settings, test_error: float) -> dict[str, Any]:
    return {
        "format": 1,
        "variant": settings.variant,
        "depth": settings.depth,
        "seed": settings.seed,
        "protocol": settings.protocol,
        "dataset": settings.dataset,
        "iterations": settings.iterations,
        "parameters": 1_727_962,
        "test_error": test_error,
        "best_test_error": test_error - 0.25,
        "best_test_error_note": "chosen on the test images, so optimistic",
        "train_loss": 1.2345,
        "train_error": 44.0,
        "seconds": 3723.4,
        "images_per_second": 71.6,
        "device": "cpu",
        "precision": "fp32",
        "config_hash": settings.hash,
        "commit": "0123456789abcdef0123456789abcdef01234567",
    }


def how_far(iteration: int, iterations: int = 400) -> dict[str, Any]:
    """The content of `progress.json`."""
    return {
        "iteration": iteration,
        "iterations": iterations,
        "seconds": 61.0,
        "images_per_second": 70.0,
    }
