"""The sample of CIFAR-10 in the package: its images, their verification, and a run on them."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from resvar.api import load_run
from resvar.cli import run_command
from resvar.config import resolve
from resvar.data.cifar import DATASETS, default_folder, find_problems, load_cifar
from resvar.data.memory import MemoryTrainLoader
from resvar.data.sample import (
    SAMPLE_FOLDER,
    load_sample,
    make_mosaic,
    sample_checksum,
    split_mosaic,
)
from resvar.data.splits import num_classes
from resvar.errors import UserError
from resvar.reports.agreement import cifar10_labels
from resvar.sweeps.estimate import Throughput, estimate, workload
from resvar.sweeps.grid import PlannedRun
from scripts.make_sample import chosen, sample_files
from tests.support.commands import sets

FEW = sets("iterations=4", "eval_every=2", "checkpoint_every=2", "batch_size=16",
           "bn_batch_size=8", "precision=fp32", "kernels=plain")  # fmt: skip


@pytest.fixture(scope="module")
def sample():
    return load_sample()


def shipped_rows(part):
    with (SAMPLE_FOLDER / "images.csv").open(encoding="ascii") as file:
        return [row for row in csv.DictReader(file) if row["part"] == part]


def test_it_is_small_balanced_and_of_the_right_shape(sample):
    assert sample.train_images.shape == (2_000, 32, 32, 3)
    assert sample.test_images.shape == (1_000, 32, 32, 3)
    assert sample.train_images.dtype == sample.test_images.dtype == np.uint8
    assert np.bincount(sample.train_labels).tolist() == [200] * 10
    assert np.bincount(sample.test_labels).tolist() == [100] * 10
    assert sample.class_names[::9] == ("airplane", "truck")
    assert sum(path.stat().st_size for path in SAMPLE_FOLDER.iterdir()) < 6e6


def test_its_labels_are_the_official_ones_of_its_indices(sample):
    """By the labels of all test images, which the package has for its reports."""
    indices = [int(row["index"]) for row in shipped_rows("test")]
    assert indices == sorted(set(indices))
    assert sample.test_labels.tolist() == cifar10_labels()[indices].tolist()


def test_its_images_look_like_cifar(sample):
    """The channel means of the whole dataset, within the error of a mean of 2,000 images."""
    means = sample.train_images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), atol=0.015)
    assert len(np.unique(sample.train_images.reshape(2_000, -1), axis=0)) == 2_000


@pytest.mark.parametrize("name", ["images.csv", "train.webp", "test.webp"])
def test_a_changed_or_missing_file_is_refused(name, tmp_path):
    folder = shutil.copytree(SAMPLE_FOLDER, tmp_path / "sample")
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: this file has changed"):
        load_sample(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        load_sample(folder)


@pytest.mark.heavy
def test_a_mosaic_is_lossless():
    images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(split_mosaic(make_mosaic(images)), images)


@pytest.mark.heavy
def test_a_run_needs_no_data_and_records_the_checksum(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESVAR_DATA", str(tmp_path / "nowhere"))
    train = ["train", "--variant", "original", "--depth", "8", "--device", "cpu"]
    train += ["--dataset", "sample", "--out", str(tmp_path / "run"), *FEW]
    assert run_command(train) == 0
    run = load_run(tmp_path / "run")
    assert run.result["dataset"] == "sample"
    assert np.load(tmp_path / "run" / "predictions.npy").shape == (1_000,)
    assert run.metrics["epoch"].tolist() == [2 * 16 / 2_000, 4 * 16 / 2_000]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text("utf-8"))
    assert environment["dataset_checksum"] == sample_checksum()
    capsys.readouterr()
    assert run_command(["evaluate", str(tmp_path / "run")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1,000 test images of the sample of CIFAR-10" in shown
    assert "All 1,000 predictions are the same as the run's" in shown


@pytest.mark.heavy
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    train = ["train", "--variant", "original", "--depth", "8", "--device", "cpu"]
    train += ["--dataset", "sample", *FEW]
    assert run_command([*train, "--out", str(tmp_path / "whole")]) == 0

    original = MemoryTrainLoader.batch

    def fail(self, iteration):
        if iteration == 3:
            raise MemoryError
        return original(self, iteration)

    with monkeypatch.context() as broken:
        broken.setattr(MemoryTrainLoader, "batch", fail)
        assert run_command([*train, "--out", str(tmp_path / "broken")]) == 1
    assert run_command([*train, "--out", str(tmp_path / "broken")]) == 0
    whole, again = (load_run(tmp_path / run) for run in ("whole", "broken"))
    assert whole.metrics["train_loss"].tolist() == again.metrics["train_loss"].tolist()
    for ours, theirs in zip(
        whole.model.state_dict().values(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_sweep_needs_no_data_either(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESVAR_DATA", str(tmp_path / "nowhere"))
    cells = ["--variants", "original", "--depths", "8", "--seeds", "1", "--dataset", "sample"]
    assert run_command(["sweep", *cells, "--out", str(tmp_path / "runs"), "--dry-run"]) == 0
    assert "dataset=sample" in capsys.readouterr().out


def settings_of_sample(**options):
    return resolve(options={"variant": "original", "depth": 20, "dataset": "sample", **options})


def test_held_out_images_are_limited_by_the_sample():
    assert settings_of_sample(holdout=1_999).holdout == 1_999
    with pytest.raises(UserError, match=r"'holdout' 2000 leaves none of the 2,000"):
        settings_of_sample(holdout=2_000)


def test_it_has_ten_classes():
    assert num_classes(settings_of_sample()) == 10


def test_an_estimate_counts_its_own_test_images(tmp_path):
    settings = settings_of_sample(protocol="quick")
    run = PlannedRun(settings, tmp_path, "run")
    found = estimate([run], Throughput({workload(settings): 100.0}, ""))
    evaluations = -(-settings.iterations // settings.eval_every)
    images = settings.iterations * settings.batch_size + evaluations * 1_000 / 3
    assert found.total == pytest.approx(images / 100)


# --- the real data --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.cifar
def test_its_images_are_the_official_ones_at_the_indices_that_the_seed_chose(sample):
    dataset = DATASETS["cifar10"]
    if found := find_problems(dataset, default_folder()):
        pytest.skip(found[0])
    official = load_cifar(dataset, default_folder())
    parts = (
        ("train", official.train_images, official.train_labels, sample.train_images),
        ("test", official.test_images, official.test_labels, sample.test_images),
    )
    for (part, pixels, labels, shipped), wanted in zip(parts, chosen(official), strict=True):
        rows = shipped_rows(part)
        indices = [int(row["index"]) for row in rows]
        assert indices == wanted.tolist()
        assert [int(row["label"]) for row in rows] == labels[indices].tolist()
        np.testing.assert_array_equal(shipped, pixels[indices])
    assert sample_files(official)["images.csv"] == (SAMPLE_FOLDER / "images.csv").read_bytes()
