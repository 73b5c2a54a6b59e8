"""Evaluation: its arithmetic against a second way by hand, and a network against its own run."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from resvar.config import resolve
from resvar.data.splits import Splits, open_images
from resvar.errors import RunError, UserError
from resvar.evaluation.commands import evaluate_source
from resvar.evaluation.examine import class_findings, evaluate_with_logits, examine
from resvar.evaluation.metrics import (
    class_errors,
    confusion_matrix,
    expected_calibration_error,
    reliability,
)
from resvar.evaluation.render import print_findings
from resvar.evaluation.trained import open_trained
from resvar.training import checkpoint
from resvar.training.execution import Execution
from resvar.training.job import run_training as train
from resvar.training.step import build_network
from tests.support.tiny import install, make_cifar

CPU = torch.device("cpu")

SHORT = (
    "iterations=12", "batch_size=32", "bn_batch_size=16", "eval_every=6", "checkpoint_every=6",
    "schedule=step", "lr=0.05", "warmup_iterations=2", "milestones=[9]", "precision=fp32",
)  # fmt: skip


# --- the arithmetic -------------------------------------------------------------------------------


def test_the_confusion_matrix_counts_pairs():
    labels, predictions = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2])
    confusion = confusion_matrix(labels, predictions, 4)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert class_errors(confusion) == [50.0, 0.0, pytest.approx(100 / 3), None]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_the_confusion_matrix_is_that_of_a_loop(pairs):
    labels, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    wanted = np.zeros((5, 5), np.int64)
    for label, prediction in pairs:
        wanted[label, prediction] += 1
    assert np.array_equal(confusion_matrix(labels, predictions, 5), wanted)


def test_a_bin_takes_its_upper_edge():
    edges = np.linspace(0, 1, 16)
    bins = reliability(edges, np.ones(16, bool))
    assert [held.images for held in bins] == [2, *[1] * 14]  # 0 is in the first as well
    assert (bins[0].above, bins[-1].up_to) == (0.0, 1.0)


def test_the_calibration_error_of_an_example_worked_out_on_paper():
    # Two bins: 0.2 and 0.4 (one right of two), 0.9 and 0.7 and 0.8 (all right).
    bins = reliability(
        np.array([0.2, 0.4, 0.9, 0.7, 0.8]), np.array([True, False, True, True, True]), bins=2
    )
    assert [(held.images, held.accuracy) for held in bins] == [(2, 0.5), (3, 1.0)]
    assert [held.confidence for held in bins] == pytest.approx([0.3, 0.8])
    assert expected_calibration_error(bins) == pytest.approx(2 / 5 * 0.2 + 3 / 5 * 0.2)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_is_that_of_a_loop(pairs):
    confidence = np.array([c for c, _ in pairs])
    right = np.array([r for _, r in pairs])
    bins = reliability(confidence, right)
    assert sum(held.images for held in bins) == len(pairs)
    error = 0.0
    for number in range(15):
        low, high = np.linspace(0, 1, 16)[number : number + 2]
        inside = [(c, r) for c, r in pairs if low < c <= high or (number == 0 and c == 0)]
        assert bins[number].images == len(inside)
        if inside:
            gap = math.fsum(c for c, _ in inside) - sum(r for _, r in inside)
            error += abs(gap) / len(pairs)
        else:
            assert bins[number].confidence is bins[number].accuracy is None
    assert expected_calibration_error(bins) == pytest.approx(error, abs=1e-12)


def test_perfect_and_worst_calibration():
    certain = np.ones(8)
    assert expected_calibration_error(reliability(certain, np.ones(8, bool))) == 0.0
    assert expected_calibration_error(reliability(certain, np.zeros(8, bool))) == 1.0


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of ResNet-8 on tiny data; tests must not write in it."""
    folder = tmp_path_factory.mktemp("evaluation")
    dataset = make_cifar(folder / "data", train=260, test=100)
    with pytest.MonkeyPatch.context() as patch:
        install(dataset, patch)
        settings = resolve(options={"variant": "relu-only-preact", "depth": 8}, overrides=SHORT)
        result = train(
            settings, folder / "data", Console(file=io.StringIO()), folder / "run", "cpu"
        )
    return SimpleNamespace(
        dataset=dataset, data=folder / "data", run=folder / "run", result=result, settings=settings
    )


@pytest.fixture
def finished(made, monkeypatch):
    """The same, its dataset in the place of the official one."""
    install(made.dataset, monkeypatch)
    return made


@pytest.fixture
def copy(finished, tmp_path):
    """A run directory of one's own."""
    return Path(shutil.copytree(finished.run, tmp_path / "run"))


@pytest.mark.heavy
def test_the_findings_are_the_runs_own(finished):
    found = examine(open_trained(finished.run), finished.data, CPU)
    rows = (finished.run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert found["test_error"] == finished.result["test_error"]
    assert found["test_loss"] == float(last["test_loss"])
    assert found["run"] == {
        "test_error": finished.result["test_error"],
        "same_predictions": True,
        "differing_predictions": 0,
    }
    assert (found["iteration"], found["iterations"], found["precision"]) == (12, 12, "fp32")


def test_the_parts_agree_with_each_other_and_with_the_predictions(finished):
    found = examine(open_trained(finished.run), finished.data, CPU)
    predictions = np.load(finished.run / "predictions.npy")
    confusion = np.array(found["confusion"])
    assert confusion.sum(axis=0).tolist() == np.bincount(predictions, minlength=10).tolist()
    assert [held["images"] for held in found["classes"]] == confusion.sum(axis=1).tolist()
    assert [held["name"] for held in found["classes"]] == [f"class{n}" for n in range(10)]
    wrong = sum(held["wrong"] for held in found["classes"])
    assert 100 * wrong / found["images"] == pytest.approx(found["test_error"])
    bins = found["calibration"]["bins"]
    assert len(bins) == 15
    right = sum(held["images"] * held["accuracy"] for held in bins if held["images"]) / 100
    assert right == pytest.approx(found["images"] - wrong)
    json.dumps(found, allow_nan=False)


def test_confidence_and_loss_are_those_of_the_softmax(finished):
    trained = open_trained(finished.run).with_images(finished.data)
    images = open_images(finished.settings, finished.data)
    pixels = trained.provenance.normalization(torch.from_numpy(images.test_images))
    with torch.no_grad():
        logits = trained.network(pixels.contiguous()).double()
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    right = probabilities[torch.arange(100), torch.from_numpy(images.test_labels)]
    found = examine(trained, finished.data, CPU)
    assert found["test_loss"] == pytest.approx(float(-right.log().mean()), rel=1e-5)
    mean = 100 * float(probabilities.amax(dim=1).mean())
    assert found["calibration"]["mean_confidence"] == pytest.approx(mean, rel=1e-5)


def test_logits_come_in_order_and_leave_no_hook(finished):
    images = open_images(finished.settings, finished.data)
    test = Splits.prepare(images, finished.settings, CPU).test
    test.batch_size = 30
    network = build_network(finished.settings)
    measured, logits = evaluate_with_logits(
        network, test, Execution.for_inference(finished.settings, CPU)
    )
    assert logits.shape == (100, 10)
    assert torch.equal(logits.argmax(dim=1), measured.predictions)
    assert not network._forward_hooks


def test_a_checkpoint_takes_the_configuration_beside_it(finished):
    found = examine(open_trained(finished.run / "checkpoint.pt"), finished.data, CPU)
    assert found["run"]["same_predictions"]


def test_an_earlier_checkpoint_is_not_compared_with_the_last_predictions(finished, copy):
    state = checkpoint.load(copy / "checkpoint.pt")
    state["iteration"] = 6
    checkpoint.save(copy, state)
    found = examine(open_trained(copy / "checkpoint.pt"), finished.data, CPU)
    assert found["run"] is None
    assert found["iteration"] == 6
    text = io.StringIO()
    print_findings(found, Console(file=text, width=100))
    assert "after iteration 6 of 12 (not the last)." in text.getvalue()


def test_differing_predictions_are_counted(finished, copy, capsys):
    predictions = np.load(copy / "predictions.npy")
    predictions[:3] = (predictions[:3] + 1) % 10
    np.save(copy / "predictions.npy", predictions)
    evaluate_source(copy, finished.data, "cpu", "json", None)
    found = json.loads(capsys.readouterr().out)
    assert found["run"]["differing_predictions"] == 3
    assert not found["run"]["same_predictions"]
    evaluate_source(copy, finished.data, "cpu", "table", None)
    assert "3 of 100 predictions differ from the run's own" in capsys.readouterr().out


def test_the_table_and_the_file(finished, capsys, tmp_path):
    evaluate_source(finished.run, finished.data, "cpu", "table", None)
    shown = capsys.readouterr().out
    error = f"{finished.result['test_error']:.2f}"
    for text in (f"Test error {error} %", "100 predictions are the same", "class9", "Calibration"):
        assert text in shown
    evaluate_source(finished.run, finished.data, "cpu", "table", tmp_path / "x.txt")
    assert f"Test error {error} %" in (tmp_path / "x.txt").read_text(encoding="utf-8")
    evaluate_source(finished.run, finished.data, "cpu", "json", tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))[
        "test_error"
    ] == pytest.approx(finished.result["test_error"])


def test_many_classes_are_shown_by_the_worst(finished):
    found = examine(open_trained(finished.run), finished.data, CPU)
    confusion = np.eye(100, dtype=np.int64)
    confusion[7] = 0
    confusion[7, 8] = 5
    found["confusion"] = confusion.tolist()
    found["classes"] = class_findings(confusion, tuple(f"name{n}" for n in range(100)))
    text = io.StringIO()
    print_findings(found, Console(file=text, width=100))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert ["5", "name7", "name8"] in lines
    assert ["name7", "5", "5", "100.00"] in lines


def test_a_run_in_bf16_is_evaluated_in_bf16(finished, tmp_path):
    settings = finished.settings.model_copy(update={"precision": "bf16", "iterations": 3})
    settings = settings.model_copy(update={"milestones": [], "eval_every": 3})
    console = Console(file=io.StringIO())
    result = train(settings, finished.data, console, tmp_path / "run", "cpu")
    found = examine(open_trained(tmp_path / "run"), finished.data, CPU)
    assert found["precision"] == "bf16"
    assert found["test_error"] == result["test_error"]
    assert found["run"]["same_predictions"]


@pytest.mark.heavy
def test_a_run_on_a_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{number}.png")
    options = {"variant": "original", "depth": 18, "family": "imagenet", "dataset": "folder"}
    sets = (
        "normalize=imagenet", "image_size=32", "iterations=2", "batch_size=4", "bn_batch_size=4",
        "eval_every=2", "checkpoint_every=2", "milestones=[]", "precision=fp32",
    )  # fmt: skip
    settings = resolve(options=options, overrides=sets)
    console = Console(file=io.StringIO())
    result = train(settings, tmp_path / "data", console, tmp_path / "run", "cpu")
    found = examine(open_trained(tmp_path / "run"), tmp_path / "data", CPU)
    assert found["test_error"] == result["test_error"]
    assert found["run"]["same_predictions"]
    assert [held["name"] for held in found["classes"]] == ["cat", "dog"]
    provenance = open_trained(tmp_path / "run").with_images(tmp_path / "data").provenance
    assert provenance.class_names == ("cat", "dog")
    assert provenance.normalization.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


# --- what is wrong --------------------------------------------------------------------------------


def refused(source, finished, kind=UserError) -> str:
    with pytest.raises(kind) as raised:
        examine(open_trained(source), finished.data, CPU)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_no_run_is_refused(finished, copy, tmp_path):
    assert "no such run" in refused(tmp_path / "nothing", finished)
    assert "config.yaml is missing" in refused(tmp_path, finished)
    (tmp_path / "alone.pt").write_bytes((copy / "checkpoint.pt").read_bytes())
    assert "of its run in the same folder" in refused(tmp_path / "alone.pt", finished)
    (copy / "checkpoint.pt").unlink()
    assert "no checkpoint yet" in refused(copy, finished)


def test_a_damaged_checkpoint_is_refused(finished, copy):
    path = copy / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged" in refused(path, finished)
    assert "damaged" in refused(copy, finished, RunError)
    torch.save({"fc.weight": torch.zeros(3)}, path)  # somebody else's
    assert "not a checkpoint of resvar" in refused(path, finished)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(finished, copy, capsys):
    checkpoint.save(copy, checkpoint.load(copy / "checkpoint.pt"))  # keeps the one before
    (copy / "checkpoint.pt").write_bytes((copy / "checkpoint.pt").read_bytes()[:-100])
    assert examine(open_trained(copy), finished.data, CPU)["run"]["same_predictions"]
    streams = capsys.readouterr()
    assert "checkpoint.pt is damaged" in streams.err
    assert not streams.out


def test_a_checkpoint_of_other_settings_or_another_network_is_refused(finished, copy):
    state = checkpoint.load(copy / "checkpoint.pt")
    checkpoint.save(copy, {**state, "config_hash": "0" * 16})
    assert "other settings" in refused(copy / "checkpoint.pt", finished)
    checkpoint.save(copy, {**state, "model": {"classifier.weight": torch.zeros(10, 64)}})
    assert "does not contain the network" in refused(copy, finished)
    checkpoint.save(copy, {"config_hash": state["config_hash"]})
    assert "does not contain the network" in refused(copy, finished)


def test_outputs_that_are_no_numbers_are_no_result(finished, copy):
    state = checkpoint.load(copy / "checkpoint.pt")
    state["model"]["classifier.bias"][0] = math.nan
    checkpoint.save(copy, state)
    assert "are not finite" in refused(copy, finished, RunError)


@pytest.mark.parametrize("content", ["short", "text", "zip", "empty"])
def test_damaged_predictions_are_named(content, finished, copy):
    path = copy / "predictions.npy"
    if content == "short":
        np.save(path, np.zeros(3, np.int64))
    elif content == "zip":
        with path.open("wb") as file:
            np.savez(file, x=np.zeros(3))
    else:
        path.write_bytes(b"" if content == "empty" else b"hello")
    assert str(path) in refused(copy, finished)


def test_a_missing_dataset_and_a_wrong_out_are_refused(finished, tmp_path):
    with pytest.raises(UserError, match="--data"):
        evaluate_source(finished.run, tmp_path, "cpu", "table", None)
    with pytest.raises(UserError, match="--out"):
        evaluate_source(finished.run, finished.data, "cpu", "json", tmp_path / "no" / "x.json")
    with pytest.raises(UserError, match="--device"):
        evaluate_source(finished.run, finished.data, "toaster", "table", None)
