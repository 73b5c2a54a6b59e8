from __future__ import annotations

import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from resvar.api import load_run
from resvar.cli import run_command
from resvar.config import resolve
from resvar.data.folder import FolderEvalLoader, FolderTrainLoader, open_folder
from resvar.data.memory import UNSHARDED, Shard
from resvar.errors import RunError, UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of coloured noise, of different sizes; 24 to train, 9 to evaluate."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(40, 70, 2)
                pixels = random.integers(0, 120, (height, width, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def training(photos, seed=0, workers=0, batch_size=5, shard=UNSHARDED):
    images = open_folder(photos).training
    return FolderTrainLoader(images, batch_size, seed, 32, True, CPU, workers, shard)


def test_every_image_comes_once_per_epoch(photos):
    batches = training(photos, batch_size=7)
    keys = iter(batches._loader(0).batch_sampler)
    positions = [key for _ in range(24) for key in next(keys)]
    assert [position for _, position in positions] == list(range(168))
    for epoch in range(7):
        part = [index for index, position in positions if position // 24 == epoch]
        assert sorted(part) == list(range(24))


def test_a_batch_is_a_function_of_seed_and_iteration(photos):
    in_order = training(photos)
    kept = [in_order.batch(i) for i in range(4)]
    for i in (3, 0, 2):  # another order, and read by worker processes
        images, labels = training(photos, workers=1 if i == 3 else 0).batch(i)
        assert torch.equal(images, kept[i][0])
        assert torch.equal(labels, kept[i][1])
    assert not torch.equal(training(photos, seed=1).batch(0)[0], kept[0][0])
    assert kept[0][0].shape == (5, 3, 32, 32)


def test_the_shards_of_several_processes_are_the_whole(photos):
    shards = [Shard(index, 3) for index in range(3)]
    parts = [training(photos, batch_size=6, shard=shard).batch(5) for shard in shards]
    images, labels = training(photos, batch_size=6).batch(5)
    assert torch.equal(torch.cat([part[0] for part in parts]), images)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    evaluated = FolderEvalLoader(open_folder(photos).evaluation, 32, CPU, 2, workers=0)
    batches = [list(evaluated.batches_of(shard)) for shard in shards]
    assert [len(own) for own in batches] == [2, 2, 1]
    in_order = [batches[number % 3][number // 3] for number in range(5)]
    for (x, y), (its_x, its_y) in zip(in_order, evaluated, strict=True):
        assert torch.equal(x, its_x)
        assert torch.equal(y, its_y)


def test_drawing_a_batch_leaves_torchs_generator_alone(photos):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    training(photos).batch(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_is_the_usual_resize_and_crop(photos):
    usual = transforms.Compose(
        [
            transforms.Resize(37),  # 32 × 256 / 224
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    expected = ImageFolder(str(photos / "val"), usual)
    batches = FolderEvalLoader(open_folder(photos).evaluation, 32, CPU, 4, workers=0)
    images = torch.cat([images for images, _ in batches])
    torch.testing.assert_close(images, torch.stack([image for image, _ in expected]))
    assert batches.labels.tolist() == expected.targets


@pytest.fixture
def damaged(photos, tmp_path):
    """The photos with a truncated image for training and one without any content to evaluate."""
    folder = tmp_path / "damaged"
    shutil.copytree(photos, folder)
    for name, length in (("train/bee/3.png", 200), ("val/cat/1.png", 0)):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:length])
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_sentence_that_names_the_file(damaged, workers):
    images = open_folder(damaged)
    loader = FolderTrainLoader(images.training, 24, 0, 32, True, CPU, workers)
    with pytest.raises(UserError) as caught:
        loader.batch(0)
    path = damaged / "train" / "bee" / "3.png"
    assert re.fullmatch(
        rf"{path}: this image cannot be read \(.*truncated.*\)\.", str(caught.value)
    )
    with pytest.raises(UserError) as caught:
        list(FolderEvalLoader(images.evaluation, 32, CPU, 2, workers))
    path = damaged / "val" / "cat" / "1.png"
    assert re.fullmatch(rf"{path}: this image cannot be read \(.+\)\.", str(caught.value))


@pytest.mark.heavy
def test_a_worker_that_is_killed_is_one_sentence(photos):
    images = open_folder(photos).training
    images.loader = lambda _path: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RunError, match=r"^a process that reads images died \(.*\)\."):
        FolderTrainLoader(images, 4, 0, 32, True, CPU, workers=1).batch(0)


def test_an_unreadable_image_ends_the_program_without_a_traceback(damaged, tmp_path, capsys):
    options = ["--variant", "full-preact", "--family", "imagenet", "--depth", "18"]
    folders = ["--dataset", "folder", "--data", str(damaged), "--out", str(tmp_path / "run")]
    few = ["iterations=2", "batch_size=24", "bn_batch_size=12", "image_size=32", "stem=cifar"]
    settings = [word for setting in few for word in ("--set", setting)]
    protocol = ["--protocol", "imagenet", "--device", "cpu"]
    assert run_command(["train", *options, *folders, *protocol, *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bee/3.png: this image cannot be read" in line


def test_wrong_folders_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"train/<class>/ and val/<class>/"):
        open_folder(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="no images by class"):
        open_folder(tmp_path)
    for part, name in (("train", "ant"), ("val", "bee")):
        (tmp_path / part / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    with pytest.raises(UserError, match="different classes, such as 'ant'"):
        open_folder(tmp_path)


def test_the_settings_must_agree_with_the_dataset():
    options = {"variant": "original", "depth": 18, "family": "imagenet"}
    with pytest.raises(UserError, match="--set normalize=imagenet"):
        resolve(options={**options, "dataset": "folder", "protocol": "quick"})
    with pytest.raises(UserError, match="normalize"):
        resolve(options={**options, "dataset": "cifar10", "protocol": "imagenet"})
    assert resolve(options={**options, "dataset": "folder", "protocol": "imagenet"}).flip


@pytest.mark.heavy
def test_training_on_a_folder_of_images(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def train(out, *more):
        few = ["iterations=4", "batch_size=6", "bn_batch_size=3", "eval_every=2", "image_size=32"]
        return run_command(
            [
                *("train", "--variant", "full-preact", "--family", "imagenet", "--depth", "18"),
                *("--stem", "cifar", "--dataset", "folder", "--protocol", "imagenet"),
                *("--data", str(photos), "--out", out, "--device", "cpu"),
                *(word for setting in few for word in ("--set", setting)),
                *more,
            ]
        )

    assert train("whole") == 0
    run = load_run("whole")
    assert run.config.num_classes == 3
    assert run.config.dataset == "folder"
    assert len(np.load("whole/predictions.npy")) == 9
    assert list(run.metrics["iteration"]) == [2, 4]
    assert train("whole") == 0  # finished already, and the settings agree
    assert "already finished" in capsys.readouterr().out
