"""examples/plain.py: one file of plain PyTorch that computes what `resvar` computes."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples import plain
from resvar.api import load_run
from resvar.cli import run_command
from resvar.data.cifar import load_cifar
from resvar.data.memory import Normalization
from resvar.data.sample import load_sample
from resvar.data.splits import Splits
from resvar.models.network import build_model
from resvar.models.ordering import PAPER_ORDER, find_ordering
from tests.support.commands import ROOT, sets
from tests.support.tiny import install, make_cifar, write_cifar

CPU = torch.device("cpu")
ITERATIONS, SEED = 8, 3

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    dataset = make_cifar(tmp_path / "data", train=80, test=40)
    install(dataset, monkeypatch)
    return SimpleNamespace(folder=tmp_path / "data", dataset=dataset)


def copy_weights(source, target):
    """Both networks register their modules in the order in which the signal meets them."""
    names, values = target.state_dict(), source.state_dict().values()
    target.load_state_dict(dict(zip(names, values, strict=True)))


def test_the_orderings_are_those_of_the_variant_files():
    assert tuple(plain.ORDERINGS) == PAPER_ORDER
    for name, lists in plain.ORDERINGS.items():
        ordering = find_ordering(name)
        assert lists == (ordering.lead, ordering.between, ordering.trail, ordering.after_add)


@pytest.mark.heavy
@pytest.mark.parametrize("variant", PAPER_ORDER)
def test_the_losses_weights_and_error_of_a_run_are_resvars(variant, tiny, tmp_path):
    settings = (
        f"iterations={ITERATIONS}", "batch_size=16", "bn_batch_size=8", "eval_every=1",
        "warmup_iterations=0", "milestones=[4,6]", "checkpoint_every=100",
        "precision=fp32", "kernels=plain", "memory_format=contiguous",
    )  # fmt: skip
    run_arguments = ["--variant", variant, "--depth", "8", "--seed", str(SEED), "--device", "cpu"]
    folders = ["--data", str(tiny.folder), "--out", str(tmp_path / "run")]
    assert run_command(["train", *run_arguments, *folders, *sets(*settings)]) == 0
    run = load_run(tmp_path / "run")

    network = plain.ResNet(plain.ORDERINGS[variant], 8).train()
    copy_weights(build_model(variant, 8, seed=SEED), network)
    optimizer = plain.build_optimizer(network)
    batches = Splits.prepare(load_cifar(tiny.dataset, tiny.folder), run.config, CPU).training
    losses = []
    for iteration in range(ITERATIONS):
        for group in optimizer.param_groups:
            group["lr"] = plain.learning_rate(iteration, ITERATIONS)
        images, labels = batches.batch(iteration)
        losses.append(plain.train_step(network, optimizer, images.contiguous(), labels, bn=8))

    # Bit for bit on the processor where this was written; another may round the update otherwise.
    np.testing.assert_allclose(losses, run.metrics["train_loss"], rtol=1e-6)
    for ours, theirs in zip(
        network.state_dict().values(), run.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    _, test = plain.load_cifar10(tiny.folder)
    assert plain.measure_error(network, test, CPU) == run.result["test_error"]


def test_the_learning_rate_of_64000_iterations_is_the_papers():
    rates = {i: plain.learning_rate(i, 64_000) for i in (0, 399, 400, 31_999, 32_000, 48_000)}
    expected = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 48_000: 0.001}
    assert rates == pytest.approx(expected)


def test_the_images_are_those_of_the_files(tiny):
    training, test = plain.load_cifar10(tiny.folder)
    images = load_cifar(tiny.dataset, tiny.folder)
    np.testing.assert_array_equal(training.images.permute(0, 2, 3, 1), images.train_images)
    np.testing.assert_array_equal(training.labels, images.train_labels)
    np.testing.assert_array_equal(test.labels, images.test_labels)
    normalization = Normalization.measure(images.train_images, "pixel-mean")
    expected = normalization(torch.from_numpy(images.test_images))
    got = torch.stack([image for image, _ in test])
    torch.testing.assert_close(got, expected)


def test_training_images_are_crops_of_their_padded_selves(tiny):
    """By trying every offset of every image, mirrored and not."""
    training, _ = plain.load_cifar10(tiny.folder)
    torch.manual_seed(0)
    found = []
    for index in range(20):
        image, _ = training[index]
        padded = torch.zeros(3, 40, 40)
        padded[:, 4:36, 4:36] = training.images[index] / 255 - training.mean
        found += [
            (down, right, mirrored)
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
            if torch.equal(
                image.flip(2) if mirrored else image,
                padded[:, down : down + 32, right : right + 32],
            )
        ]
    assert len(found) == 20
    for column in zip(*found, strict=True):
        assert len(set(column)) > 1


@pytest.mark.heavy
def test_the_program_trains_and_prints_a_test_error(tiny, monkeypatch, capsys):
    make_cifar(tiny.folder, train=150, test=20)
    arguments = ["--depth", "8", "--iterations", "2", "--data", str(tiny.folder)]
    monkeypatch.setattr(sys, "argv", ["plain.py", *arguments])
    plain.main()
    *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"test error \d+\.\d\d %", last)


@pytest.mark.heavy
def test_it_runs_on_real_images(tmp_path):
    write_cifar(tmp_path, load_sample())
    command = [sys.executable, ROOT / "examples" / "plain.py", "--depth", "8", "--iterations", "2"]
    done = subprocess.run(
        [*command, "--data", tmp_path],
        capture_output=True, encoding="utf-8", check=True, timeout=600,
    )  # fmt: skip
    assert "test error" in done.stdout
