"""ImageNet families and ResNeXt, trained on files of CIFAR by the function behind the command."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from resvar.api import load_run
from resvar.config import resolve
from resvar.explain.complexity import Complexity
from resvar.training.job import run_training as train
from tests.support.tiny import install, make_cifar


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("dataset", "classes", "options", "overrides"),
    [
        ("cifar10", 10, {"variant": "full-preact", "family": "imagenet", "depth": 18}, []),
        ("cifar100", 100, {"variant": "original", "family": "imagenet", "depth": 18}, []),
        # ResNeXt-29 is a CIFAR network, here in its smallest form: the 8×64d has 34.4 M parameters.
        ("cifar100", 100, {"variant": "original", "depth": 29}, ["cardinality=2", "base_width=8"]),
    ],
)
def test_a_family_trains_on_cifar(tmp_path, monkeypatch, dataset, classes, options, overrides):
    install(make_cifar(tmp_path, train=20, test=20, name=dataset), monkeypatch)
    settings = resolve(
        options={"stem": "cifar", "dataset": dataset, "protocol": "quick"} | options,
        overrides=[
            "precision=fp32", "iterations=2", "batch_size=4", "bn_batch_size=4", "eval_every=2",
            *overrides,
        ],
    )  # fmt: skip
    folder = tmp_path / "run"
    result = train(settings, tmp_path, Console(file=io.StringIO()), folder, "cpu")
    run = load_run(folder)
    counted = Complexity.of(settings.ordering, settings.architecture, classes).parameters
    assert result["parameters"] == counted == sum(p.numel() for p in run.model.parameters())
    assert run.model.classifier.out_features == classes
    assert 0 <= result["test_error"] <= 100
