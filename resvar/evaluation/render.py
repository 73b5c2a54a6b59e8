"""The findings of `resvar evaluate` in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from resvar.console import percent
from resvar.settings import IMAGES_OF
from resvar.table import Filled, Table, TableCell, draw_parts, filled, left, right

MOST_CLASSES_SHOWN = 20
"""Up to this many classes the whole confusion matrix is printed; for more, the worst entries."""

WORST = 10


def print_findings(findings: dict[str, Any], console: Console) -> None:
    """Print the findings, fitted to a terminal."""
    draw_parts(_report_parts(findings), console)


def after_iteration(iteration: int | None, iterations: int) -> str:
    """How far the weights are trained, if it is known."""
    if iteration is None:
        return ""
    unfinished = f" of {iterations:,} (not the last)" if iteration < iterations else ""
    return f", after iteration {iteration:,}{unfinished}"


def _report_parts(found: dict[str, Any]) -> Iterator[str | Table]:
    yield (
        f"{found['source']}: {found['variant']}-{found['depth']}, protocol {found['protocol']}, "
        f"seed {found['seed']}{after_iteration(found['iteration'], found['iterations'])}."
    )
    images = f"{found['images']:,} test images of {IMAGES_OF[found['dataset']]}"
    yield f"{images}, on {found['device']} in {found['precision']}."
    yield ""
    yield f"Test error {percent(found['test_error'])}, loss {found['test_loss']:.4f}."
    if found["run"] is not None:
        yield _agreement(found["run"], found["images"])
    yield ""
    if len(found["classes"]) <= MOST_CLASSES_SHOWN:
        yield _confusion_table(found)
    else:
        yield _worst_classes(found)
        yield ""
        yield _worst_pairs(found)
    yield ""
    yield _calibration_table(found["calibration"])


def _agreement(run: dict[str, Any], images: int) -> str:
    if run["same_predictions"]:
        return f"All {images:,} predictions are the same as the run's."
    return (
        f"{run['differing_predictions']:,} of {images:,} predictions differ from the run's own "
        f"(test error {percent(run['test_error'])}): another device, thread count or version of "
        "torch rounds differently."
    )


def _confusion_table(found: dict[str, Any]) -> Table:
    """The confusion matrix: a row per true class, a column per predicted one."""
    names = [held["name"] for held in found["classes"]]
    short = [name[:5] for name in names]
    if len(set(short)) < len(short):
        short = [str(number) for number in range(len(names))]

    def column(predicted: int) -> Filled:
        def cell(true: int) -> TableCell:
            count = found["confusion"][true][predicted]
            return TableCell(str(count or "·"), strong=true == predicted)

        return right(short[predicted], cell, short=str(predicted))

    columns = (
        left("", lambda true: f"{true} {names[true]}"),
        right("error %", lambda true: found["classes"][true]["error"], ".2f", drop=1),
        *map(column, range(len(names))),
    )
    title = "Confusion: rows are true classes, columns predicted ones"
    return filled(title, columns, range(len(names)))


def _worst_classes(found: dict[str, Any]) -> Table:
    worst = sorted(found["classes"], key=lambda held: -(held["error"] or 0.0))[:WORST]
    columns = (
        left("class", lambda c: c["name"], wrap=12),
        right("images", lambda c: c["images"], ",d"),
        right("wrong", lambda c: c["wrong"], ",d"),
        right("error %", lambda c: c["error"], ".2f"),
    )
    title = f"The {WORST} classes with the largest error (--format json has all)"
    return filled(title, columns, worst)


def _worst_pairs(found: dict[str, Any]) -> Table:
    names = [held["name"] for held in found["classes"]]
    pairs = [
        (count, names[true], names[predicted])
        for true, row in enumerate(found["confusion"])
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    columns = (
        right("images", lambda pair: pair[0], ",d"),
        left("of", lambda pair: pair[1], wrap=12),
        left("predicted as", lambda pair: pair[2], wrap=12),
    )
    worst = sorted(pairs, key=lambda pair: -pair[0])[:WORST]
    return filled(f"The {WORST} most frequent confusions", columns, worst)


def _calibration_table(found: dict[str, Any]) -> Table:
    columns = (
        right("confidence in", lambda b: f"{b['above']:.1f}–{b['up_to']:.1f} %"),
        right("images", lambda b: b["images"], ",d"),
        right("confidence %", lambda b: b["confidence"], ".2f"),
        right("accuracy %", lambda b: b["accuracy"], ".2f"),
        right("gap", lambda b: b["accuracy"] - b["confidence"], "+.2f"),
    )
    title = (
        f"Calibration: expected calibration error {percent(found['expected_calibration_error'])}, "
        f"mean confidence {percent(found['mean_confidence'])}"
    )
    return filled(title, columns, [held for held in found["bins"] if held["images"]])
