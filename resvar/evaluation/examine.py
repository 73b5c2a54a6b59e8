"""Evaluate a trained network on its test set: error, errors by class, confusion, calibration.

The network classifies the test set once, with the function and precision used in training: on the
same machine, error, loss and predictions equal those of the run. Errors, confidences and accuracies
in the findings are percentages.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resvar import rundir
from resvar.condition import read_result
from resvar.data.splits import EvalLoader, Splits
from resvar.errors import RunError, UserError
from resvar.evaluation.metrics import (
    class_errors,
    confusion_matrix,
    expected_calibration_error,
    reliability,
)
from resvar.evaluation.trained import TrainedNetwork
from resvar.settings import Settings
from resvar.training.evaluate import Evaluation, evaluate
from resvar.training.execution import Execution
from resvar.training.machine import device_name


def examine(trained: TrainedNetwork, data: Path, device: torch.device) -> dict[str, Any]:
    """The findings on the test set, ready for JSON.

    Args:
        data: the folder with the dataset.

    Raises:
        UserError: the dataset is missing, or the network's run is unknown.
        RunError: the network's outputs are not finite.
    """
    plan = Execution.for_inference(trained.settings, device)
    settings = plan.settings
    images = trained.open_dataset(data)
    plan.prepare_process()
    test = Splits.prepare(images, settings, device).test
    measured, logits = evaluate_with_logits(plan.to_device(trained.network), test, plan)
    if not math.isfinite(measured.loss):
        raise RunError(f"{trained.source}: the network's outputs are not finite.")
    labels, predictions = test.labels.cpu().numpy(), measured.predictions.numpy()
    confusion = confusion_matrix(labels, predictions, len(images.class_names))
    identity = ("variant", "depth", "seed", "protocol", "dataset", "iterations")
    return {
        "format": 1,
        "source": str(trained.source),
        **{name: getattr(settings, name) for name in identity},
        "iteration": trained.provenance.iteration,
        "device": device_name(device),
        "precision": settings.precision,
        "images": len(labels),
        "test_error": measured.error,
        "test_loss": measured.loss,
        "run": _compare_with_run(trained, settings, predictions),
        "classes": class_findings(confusion, images.class_names),
        "confusion": confusion.tolist(),
        "calibration": _calibration(logits, predictions == labels),
    }


def evaluate_with_logits(
    network: nn.Module, loader: EvalLoader, plan: Execution
) -> tuple[Evaluation, Tensor]:
    """The result of `evaluate`, and its logits: float [N, classes], on the CPU."""
    batches: list[Tensor] = []
    handle = network.register_forward_hook(lambda _, __, logits: batches.append(logits.float()))
    try:
        measured = evaluate(network, loader, plan)
    finally:
        handle.remove()
    return measured, torch.cat(batches).cpu()


def class_findings(confusion: NDArray[np.int64], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Name, images, wrong predictions and error of each class."""
    images, correct = confusion.sum(axis=1).tolist(), confusion.diagonal().tolist()
    return [
        {"name": name, "images": n, "wrong": n - c, "error": error}
        for name, n, c, error in zip(names, images, correct, class_errors(confusion), strict=True)
    ]


def _calibration(logits: Tensor, correct: NDArray[np.bool_]) -> dict[str, Any]:
    confidence = logits.double().softmax(dim=1).max(dim=1).values.numpy()
    bins = reliability(confidence, correct)

    def percent(name: str, value: Any) -> Any:
        return value if name == "images" or value is None else 100.0 * value

    return {
        "expected_calibration_error": 100.0 * expected_calibration_error(bins),
        "mean_confidence": 100.0 * float(confidence.mean()),
        "bins": [
            {name: percent(name, value) for name, value in one._asdict().items()} for one in bins
        ],
    }


def _compare_with_run(
    trained: TrainedNetwork, settings: Settings, predictions: NDArray[np.int64]
) -> dict[str, Any] | None:
    """The recorded test error, and the number of predictions that differ from the recorded ones.

    None without a finished run, or for a checkpoint from before the end.
    """
    folder = trained.folder
    if folder is None or trained.provenance.iteration != settings.iterations:
        return None
    result, recorded = read_result(folder), rundir.read_predictions(folder)
    if result is None or recorded is None:
        return None
    if recorded.shape != predictions.shape:
        raise UserError(
            f"{folder / rundir.PREDICTIONS}: its array has the shape {recorded.shape}, but "
            f"the test set has {len(predictions)} images."
        )
    differing = int((recorded != predictions).sum())
    return {
        "test_error": result["test_error"],
        "same_predictions": differing == 0,
        "differing_predictions": differing,
    }
