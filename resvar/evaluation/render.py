"""The findings of `resvar evaluate` in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from resvar.data.cifar import DATASETS

MOST_CLASSES_SHOWN = 20
"""Up to this many classes the whole confusion matrix is printed; beyond, the worst entries."""

WORST = 10


def print_findings(findings: dict[str, Any], console: Console) -> None:
    for part in _parts(findings):
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


def after_iteration(iteration: int | None, iterations: int) -> str:
    """How far the weights are trained, where it is known."""
    if iteration is None:
        return ""
    unfinished = f" of {iterations:,} (not the last)" if iteration < iterations else ""
    return f", after iteration {iteration:,}{unfinished}"


def _parts(found: dict[str, Any]) -> Iterator[RenderableType]:
    dataset = DATASETS.get(found["dataset"])
    images = f"of {dataset.title}" if dataset is not None else "in a folder"
    calibration = found["calibration"]
    yield (
        f"{found['source']}: {found['variant']}-{found['depth']}, protocol {found['protocol']}, "
        f"seed {found['seed']}{after_iteration(found['iteration'], found['iterations'])}."
    )
    yield f"{found['images']:,} test images {images}, on {found['device']} in {found['precision']}."
    yield ""
    yield f"Test error {found['test_error']:.2f} %, loss {found['test_loss']:.4f}."
    if found["run"] is not None:
        yield _agreement(found["run"], found["images"])
    yield ""
    if len(found["classes"]) <= MOST_CLASSES_SHOWN:
        yield "Confusion: rows are true classes, columns predicted ones"
        yield _confusion_table(found)
    else:
        yield f"The {WORST} classes with the largest error (--format json has all)"
        yield _worst_classes(found)
        yield f"The {WORST} most frequent confusions"
        yield _worst_pairs(found)
    yield (
        "Calibration: expected calibration error "
        f"{calibration['expected_calibration_error']:.2f} %, mean confidence "
        f"{calibration['mean_confidence']:.2f} %"
    )
    yield _calibration_table(calibration["bins"])


def _agreement(run: dict[str, Any], images: int) -> str:
    if run["same_predictions"]:
        return f"All {images:,} predictions are the same as the run's own."
    return (
        f"{run['differing_predictions']:,} of {images:,} predictions differ from the run's own "
        f"(its test error: {run['test_error']} %); another device, thread count or version of "
        "torch rounds differently."
    )


def _confusion_table(found: dict[str, Any]) -> Table:
    """A row per true class, a column per predicted class; numbers where short names collide."""
    names = [held["name"] for held in found["classes"]]
    short = [name[:5] for name in names]
    if len(set(short)) < len(short):
        short = [str(number) for number in range(len(names))]
        names = [f"{number} {name}" for number, name in enumerate(names)]
    rows = []
    for index, counts in enumerate(found["confusion"]):
        cells = [Text(str(count) if count else "·") for count in counts]
        cells[index].stylize("bold green")
        rows.append((names[index], _percent(found["classes"][index]["error"]), *cells))
    table = _findings_table(["", "error %", *short], rows, left=[""])
    for column in table.columns[2:]:
        column.no_wrap = True
    return table


def _worst_classes(found: dict[str, Any]) -> Table:
    worst = sorted(found["classes"], key=lambda held: -(held["error"] or 0.0))[:WORST]
    rows = [
        (held["name"], str(held["images"]), str(held["wrong"]), _percent(held["error"]))
        for held in worst
    ]
    return _findings_table(["class", "images", "wrong", "error %"], rows, left=["class"])


def _worst_pairs(found: dict[str, Any]) -> Table:
    names = [held["name"] for held in found["classes"]]
    pairs = [
        (count, names[true], names[predicted])
        for true, row in enumerate(found["confusion"])
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    worst = sorted(pairs, key=lambda pair: -pair[0])[:WORST]
    rows = [(str(count), true, predicted) for count, true, predicted in worst]
    return _findings_table(["images", "of", "taken for"], rows, left=["of", "taken for"])


def _calibration_table(bins: Iterable[dict[str, Any]]) -> Table:
    rows = [
        (
            f"{held['above']:.1f}–{held['up_to']:.1f} %",
            f"{held['images']:,}",
            _percent(held["confidence"]),
            _percent(held["accuracy"]),
            f"{held['accuracy'] - held['confidence']:+.2f}",
        )
        for held in bins
        if held["images"]
    ]
    return _findings_table(["confidence in", "images", "confidence %", "accuracy %", "gap"], rows)


def _findings_table(
    titles: Sequence[str], rows: Iterable[Sequence[str | Text]], left: Sequence[str] = ()
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title in left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
