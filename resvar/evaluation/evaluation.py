"""`resvar evaluate` and `resvar export`: a trained network, taken up again.

To evaluate it is to measure error, errors by class, confusion and calibration. The test set is
passed through the network once, by the very function that training uses, at the run's own
precision; so error, loss and predictions are the run's own where the machine is the same. What is
worked out from them are small functions of NumPy arrays.

All errors, confidences and accuracies that are printed or written are percentages.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from resvar import rundir
from resvar.config import Settings
from resvar.console import console_for_output, deliver
from resvar.data.cifar import DATASETS, Images, default_folder
from resvar.data.folder import MEAN, STD, FolderImages
from resvar.data.memory import Normalization
from resvar.data.splits import EvalLoader, Splits, open_images
from resvar.errors import RunError, UserError
from resvar.export.exchange import (
    Provenance,
    choose_format,
    export,
    load_model,
    torchvision_name,
)
from resvar.models.network import ResidualNetwork
from resvar.training.checkpoint import DamagedError, State, load_newest
from resvar.training.checkpoint import load as load_checkpoint
from resvar.training.loop import Evaluation, evaluate, place
from resvar.training.machine import choose_device, choose_precision, describe, prepare

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]

BINS = 15
"""Of the calibration error, as in Guo et al. 2017 (arXiv:1706.04599)."""

SMALL = 20
"""Up to so many classes a confusion matrix fits on the screen; beyond, the worst are listed."""

WORST = 10


def evaluate_source(source: Path, data: Path, device: str, format: str, out: Path | None) -> None:
    """Evaluate what `source` holds and print it, or write it to `out`.

    Args:
        source: see `open_trained`.
        data: the folder with the dataset.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        format: `table` or `json`.

    Raises:
        UserError: wrong input, or `out` cannot be written.
        RunError: no checkpoint of a run is whole, or the network's outputs are no numbers.
    """
    findings = examine(open_trained(source), data, choose_device(device))
    if out is None and format == "table":
        _print(findings, console_for_output())
        return
    text = json.dumps(findings, indent=2, allow_nan=False) + "\n"
    if format == "table":
        page = io.StringIO()
        _print(findings, Console(file=page, width=100))
        text = page.getvalue()
    deliver(text, out)


def export_source(source: Path, out: Path, to: str | None, data: Path | None, force: bool) -> None:
    """Write the network that `source` holds to `out`, and say so.

    Args:
        source: see `open_trained`.
        to: a format of `exchange.SUFFIXES`; None takes what the suffix of `out` says.
        data: the folder with the dataset, by which the file can say how images are normalised;
            None takes the default folder, and is content if the dataset is not there.
        force: replace `out` if it is there.

    Raises:
        UserError: wrong input, or `out` cannot be written.
        RunError: no checkpoint of a run is whole.
    """
    to = choose_format(out, to, force)
    trained = open_trained(source)
    if to != "torchvision":
        try:
            trained = with_images(trained, data or default_folder())
        except UserError as error:
            if data is not None:
                raise
            print(
                f"Note: the file will not say how images are normalised: {error}", file=sys.stderr
            )
    export(trained.network, out, to, trained.provenance)
    settings = trained.provenance.settings
    after = after_iteration(trained.provenance.iteration, settings.iterations) if settings else ""
    name = f"{trained.network.ordering.name}-{trained.network.architecture.depth}"
    if to == "torchvision":
        name += f", for torchvision.models.{torchvision_name(trained.network)}"
    print(f"Wrote {out}: {name}{after}.")


# --- a trained network, taken up again ------------------------------------------------------------


@dataclass(frozen=True)
class TrainedNetwork:
    """A network, and where it comes from.

    Attributes:
        source: the file or folder that it was read from.
        folder: the run directory; None where it came from an exported file.
    """

    source: Path
    network: ResidualNetwork
    provenance: Provenance
    folder: Path | None = None


def open_trained(source: Path) -> TrainedNetwork:
    """The network in a run directory, in a checkpoint inside one, or in a safetensors file.

    The network is on the CPU and in evaluation mode. A damaged checkpoint that is passed over for
    the one before it is named on stderr.

    Raises:
        UserError: there is no such thing, it is damaged, or holds no trained network.
        RunError: all checkpoints of the run are damaged.
    """
    if source.is_dir():
        if not (source / rundir.CONFIG).exists():
            raise UserError(f"{source}: there is no run here ({rundir.CONFIG} is missing).")
        settings = rundir.read_settings(source)
        state = load_newest(source, warn=lambda text: print(f"Warning: {text}", file=sys.stderr))
        if state is None:
            raise UserError(f"{source}: there is no checkpoint yet; `resvar train` makes one.")
        return _from_checkpoint(source, source, settings, state)
    if not source.exists():
        raise UserError(f"{source}: there is no such run or file.")
    if source.suffix.lower() == ".safetensors":
        model = load_model(source)
        return TrainedNetwork(source, model, model.provenance)
    folder = source.parent
    if not (folder / rundir.CONFIG).exists():
        raise UserError(
            f"{source}: a checkpoint is read with the {rundir.CONFIG} of its run, and there is "
            "none beside it; name a run directory, a checkpoint inside one, or a .safetensors file."
        )
    try:
        state = load_checkpoint(source)
    except DamagedError as error:
        raise UserError(
            f"{source}: this is damaged or no checkpoint of resvar: {error}."
        ) from error
    return _from_checkpoint(source, folder, rundir.read_settings(folder), state)


def _from_checkpoint(
    source: Path, folder: Path, settings: Settings, state: State
) -> TrainedNetwork:
    try:
        if state["config_hash"] != settings.hash:
            raise UserError(
                f"{source}: the checkpoint belongs to a run with other settings than "
                f"{folder / rundir.CONFIG} says."
            )
        weights = state["model"]
        classes = len(weights["classifier.weight"])
        network = ResidualNetwork(settings.ordering, settings.architecture, classes)
        network.load_state_dict(weights)
        iteration = int(state["iteration"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{source}: this checkpoint does not hold the network that {folder / rundir.CONFIG} "
            "names."
        ) from error
    return TrainedNetwork(source, network.eval(), Provenance(settings, iteration), folder)


def with_images(trained: TrainedNetwork, data: Path) -> TrainedNetwork:
    """The same with normalisation and class names, taken from the dataset where they are missing.

    Raises:
        UserError: the dataset is not in the folder `data`, or the file does not say which it is.
    """
    if trained.provenance.normalization is not None and trained.provenance.class_names is not None:
        return trained
    settings = _settings(trained)
    images = _images(trained, settings, data)
    if isinstance(images, FolderImages):
        normalization = Normalization(torch.tensor(MEAN), 1.0 / torch.tensor(STD))
    else:
        kept = len(images.train_labels) - settings.holdout
        normalization = Normalization.measure(images.train_images[:kept], settings.normalize)
    names = images.class_names
    provenance = replace(trained.provenance, normalization=normalization, class_names=names)
    return replace(trained, provenance=provenance)


def _settings(trained: TrainedNetwork) -> Settings:
    if trained.provenance.settings is None:
        raise UserError(
            f"{trained.source}: the file does not hold the settings of a run, so its dataset is "
            "not known."
        )
    return trained.provenance.settings


def _images(trained: TrainedNetwork, settings: Settings, data: Path) -> Images | FolderImages:
    """The dataset of the network's run, opened."""
    images = open_images(settings, data)
    classes = trained.network.classifier.out_features
    if classes != len(images.class_names):
        raise UserError(
            f"{trained.source}: the network tells {classes} classes apart, but its dataset "
            f"'{settings.dataset}' has {len(images.class_names)}."
        )
    return images


# --- the findings ---------------------------------------------------------------------------------


def examine(trained: TrainedNetwork, data: Path, device: torch.device) -> dict[str, Any]:
    """Pass the test set through the network, and say what came out, ready for JSON.

    Raises:
        UserError: the dataset is missing, or the network's run is not known.
        RunError: the network's outputs are no finite numbers.
    """
    asked = _settings(trained)
    precision = choose_precision(asked.precision, device)
    settings = asked.model_copy(update={"precision": precision})
    images = _images(trained, settings, data)
    prepare(settings, device)
    test, class_names = Splits.prepare(images, settings, device).test, images.class_names
    network = place(trained.network, settings, device)
    measured, logits = evaluate_with_logits(network, test, settings)
    if not math.isfinite(measured.loss):
        raise RunError(f"{trained.source}: the network's outputs are no finite numbers.")
    labels: Counts = test.labels.cpu().numpy()
    predictions: Counts = measured.predictions.numpy()
    confidence: Floats = logits.double().softmax(dim=1).max(dim=1).values.numpy()
    confusion = confusion_matrix(labels, predictions, len(class_names))
    bins = reliability(confidence, predictions == labels)
    return {
        "format": 1,
        "source": str(trained.source),
        **{
            name: getattr(settings, name)
            for name in ("variant", "depth", "seed", "protocol", "dataset", "iterations")
        },
        "iteration": trained.provenance.iteration,
        "device": describe(device),
        "precision": precision,
        "images": len(labels),
        "test_error": measured.error,
        "test_loss": measured.loss,
        "run": _beside_the_run(trained, settings, predictions),
        "classes": _class_rows(confusion, class_names),
        "confusion": confusion.tolist(),
        "calibration": {
            "expected_calibration_error": 100.0 * expected_calibration_error(bins),
            "mean_confidence": 100.0 * float(confidence.mean()),
            "bins": [_bin_row(held) for held in bins],
        },
    }


def _class_rows(confusion: Counts, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class: its name, its images, how many were taken for another, in percent too."""
    errors = class_errors(confusion)
    images, right = confusion.sum(axis=1).tolist(), confusion.diagonal().tolist()
    return [
        {"name": name, "images": n, "wrong": n - r, "error": error}
        for name, n, r, error in zip(names, images, right, errors, strict=True)
    ]


def _bin_row(held: Bin) -> dict[str, Any]:
    return {
        "above": 100.0 * held.low,
        "up_to": 100.0 * held.high,
        "images": held.images,
        "confidence": None if held.confidence is None else 100.0 * held.confidence,
        "accuracy": None if held.accuracy is None else 100.0 * held.accuracy,
    }


def evaluate_with_logits(
    network: nn.Module, batches: EvalLoader, settings: Settings
) -> tuple[Evaluation, Tensor]:
    """What `loop.evaluate` finds, and the logits that it saw: float [N, classes], on the CPU."""
    seen: list[Tensor] = []

    def note(module: nn.Module, given: Any, out: Tensor) -> None:
        del module, given
        seen.append(out.float())

    handle = network.register_forward_hook(note)
    try:
        measured = evaluate(network, batches, settings)
    finally:
        handle.remove()
    return measured, torch.cat(seen).cpu()


def _beside_the_run(
    trained: TrainedNetwork, settings: Settings, predictions: Counts
) -> dict[str, Any] | None:
    """The run's own test error and in how many predictions it differs from these.

    None where there is nothing to compare: no run directory, an unfinished run, or a checkpoint
    from before its end.
    """
    folder = trained.folder
    if folder is None or trained.provenance.iteration != settings.iterations:
        return None
    recorded = rundir.read_predictions(folder)
    if not (folder / rundir.RESULT).exists() or recorded is None:
        return None
    if recorded.shape != predictions.shape:
        raise UserError(
            f"{folder / rundir.PREDICTIONS}: this holds an array of shape {recorded.shape}, but "
            f"the test set has {len(predictions)} images."
        )
    differing = int((recorded != predictions).sum())
    return {
        "test_error": rundir.read_json(folder / rundir.RESULT).get("test_error"),
        "same_predictions": differing == 0,
        "differing_predictions": differing,
    }


# --- the mathematics ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Images whose confidence is above `low` and at most `high`; all in [0, 1].

    Attributes:
        confidence: their mean probability of the predicted class; None without images.
        accuracy: the share of them whose prediction is right; None without images.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def confusion_matrix(labels: Counts, predictions: Counts, classes: int) -> Counts:
    """int64 [classes, classes]: how many images of the row's class were taken for the column's."""
    pairs = labels * classes + predictions
    counted: Counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return counted.astype(np.int64)


def class_errors(confusion: Counts) -> list[float | None]:
    """Percent of each class's images that were taken for another; None for a class without any."""
    images, right = confusion.sum(axis=1), confusion.diagonal()
    return [100.0 * int(n - r) / int(n) if n else None for n, r in zip(images, right, strict=True)]


def reliability(confidence: Floats, right: Truths, bins: int = BINS) -> list[Bin]:
    """The images sorted into bins of equal width by confidence (arXiv:1706.04599, section 2).

    Args:
        confidence: float [N] in [0, 1], the probability of the predicted class.
        right: bool [N], whether the prediction is right.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.digitize(confidence, edges[1:-1], right=True)  # bin m holds (edge m, edge m + 1]
    made = []
    for number in range(bins):
        inside = index == number
        count = int(inside.sum())
        made.append(
            Bin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                images=count,
                confidence=float(confidence[inside].mean()) if count else None,
                accuracy=float(right[inside].mean()) if count else None,
            )
        )
    return made


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean |accuracy - confidence| over bins, weighted by their images (arXiv:1706.04599, eq. 3).

    0 is perfect, 1 the worst.
    """
    total = sum(held.images for held in bins)
    gaps = (
        held.images * abs(held.accuracy - held.confidence)
        for held in bins
        if held.accuracy is not None and held.confidence is not None
    )
    return sum(gaps) / total


# --- for the terminal -----------------------------------------------------------------------------


def _print(findings: dict[str, Any], console: Console) -> None:
    for part in _page(findings):
        console.print(part, highlight=False, soft_wrap=isinstance(part, str), markup=False)


def _page(found: dict[str, Any]) -> Iterator[RenderableType]:
    """What is printed, from top to bottom."""
    yield (
        f"{found['source']}: {found['variant']}-{found['depth']}, protocol {found['protocol']}, "
        f"seed {found['seed']}{after_iteration(found['iteration'], found['iterations'])}."
    )
    dataset = DATASETS.get(found["dataset"])
    images = f"of {dataset.title}" if dataset is not None else "in a folder"
    yield (
        f"{found['images']:,} test images {images}, on {found['device']} in {found['precision']}."
    )
    yield ""
    yield f"Test error {found['test_error']:.2f} %, loss {found['test_loss']:.4f}."
    yield from _agreement(found)
    yield ""
    if len(found["classes"]) <= SMALL:
        yield "Confusion: rows are true classes, columns predicted ones"
        yield _confusion_table(found)
    else:
        yield f"The {WORST} classes with the largest error (--format json has all)"
        yield _worst_classes(found)
        yield f"The {WORST} most frequent confusions"
        yield _worst_pairs(found)
    calibration = found["calibration"]
    yield (
        "Calibration: expected calibration error "
        f"{calibration['expected_calibration_error']:.2f} %, mean confidence "
        f"{calibration['mean_confidence']:.2f} %"
    )
    yield _calibration_table(calibration)


def after_iteration(iteration: int | None, iterations: int) -> str:
    """How far the training of the weights was, where that is known."""
    if iteration is None:
        return ""
    unfinished = f" of {iterations:,} (not the last)" if iteration < iterations else ""
    return f", after iteration {iteration:,}{unfinished}"


def _agreement(found: dict[str, Any]) -> Iterator[str]:
    if (run := found["run"]) is None:
        return
    if run["same_predictions"]:
        yield f"All {found['images']:,} predictions are the same as the run's own."
    else:
        yield (
            f"{run['differing_predictions']:,} of {found['images']:,} predictions differ from the "
            f"run's own (its test error: {run['test_error']} %); another device, thread count or "
            "version of torch rounds differently."
        )


def _confusion_table(found: dict[str, Any]) -> Table:
    """A row per true class; columns are the predicted ones."""
    names = [held["name"] for held in found["classes"]]
    short = [name[:5] for name in names]
    if len(set(short)) < len(short):  # they would be the same: numbers instead, in the rows too
        short = [str(number) for number in range(len(names))]
        names = [f"{number} {name}" for number, name in enumerate(names)]
    table = _table()
    table.add_column("")
    table.add_column("error %", justify="right")
    for name in short:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for index, (held, row) in enumerate(zip(found["classes"], found["confusion"], strict=True)):
        cells = [Text(str(count) if count else "·") for count in row]
        cells[index].stylize("bold green")
        table.add_row(Text(names[index]), _percent(held["error"]), *cells)
    return table


def _worst_classes(found: dict[str, Any]) -> Table:
    table = _table()
    for name in ("class", "images", "wrong", "error %"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for held in sorted(found["classes"], key=lambda held: -(held["error"] or 0.0))[:WORST]:
        counts = str(held["images"]), str(held["wrong"])
        table.add_row(Text(held["name"]), *counts, _percent(held["error"]))
    return table


def _worst_pairs(found: dict[str, Any]) -> Table:
    names = [held["name"] for held in found["classes"]]
    pairs = [
        (count, names[true], names[taken])
        for true, row in enumerate(found["confusion"])
        for taken, count in enumerate(row)
        if true != taken and count
    ]
    table = _table()
    for name in ("images", "of", "taken for"):
        table.add_column(name, justify="right" if name == "images" else "left")
    for count, true, taken in sorted(pairs, key=lambda pair: -pair[0])[:WORST]:
        table.add_row(str(count), Text(true), Text(taken))
    return table


def _calibration_table(found: dict[str, Any]) -> Table:
    table = _table()
    for name in ("confidence in", "images", "confidence %", "accuracy %", "gap"):
        table.add_column(name, justify="right")
    for held in found["bins"]:
        if held["images"]:
            gap = held["accuracy"] - held["confidence"]
            table.add_row(
                f"{held['above']:.1f}–{held['up_to']:.1f} %",
                f"{held['images']:,}",
                _percent(held["confidence"]),
                _percent(held["accuracy"]),
                f"{gap:+.2f}",
            )
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
