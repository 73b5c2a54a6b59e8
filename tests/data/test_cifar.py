from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from resvar.data.cifar import DATASETS, default_folder, find_problems, load_cifar
from resvar.data.obtain import obtain
from resvar.errors import UserError
from tests.support.tiny import dump_like_python2, install, make_cifar

# --- helpers --------------------------------------------------------------------------------------


class Bomb:
    """A pickle of this creates a file when it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_the_tables_are_those_of_torchvision(name, theirs):
    torchvision = pytest.importorskip("torchvision.datasets")
    official, ours = getattr(torchvision, theirs), DATASETS[name]
    assert [[file, ours.md5[file]] for file in ours.train] == official.train_list
    assert [[file, ours.md5[file]] for file in ours.test] == official.test_list
    assert ours.meta == official.meta["filename"]
    assert ours.md5[ours.meta] == official.meta["md5"]
    assert ours.names_key.decode() == official.meta["key"]
    assert (ours.folder, ours.home) == (official.base_folder, official.url)
    assert (ours.archive.name, ours.archive.md5) == (official.filename, official.tgz_md5)
    assert set(ours.md5) == set(ours.files)


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        ("cifar10", "a1f432355b424fdc51eb647b23901302451915b392944262f2e414e5262e0312"),
        ("cifar100", "c2f70ee4eff4762cfc85b7414eb21dadfd502909a43015934997f3090d06d450"),
    ],
)
def test_the_checksum_in_records_never_changes(name, checksum):
    assert DATASETS[name].checksum == checksum


def test_the_default_folder_is_resvar_data_else_data(monkeypatch):
    monkeypatch.delenv("RESVAR_DATA", raising=False)
    assert default_folder() == Path("data")
    monkeypatch.setenv("RESVAR_DATA", "/some/where")
    assert default_folder() == Path("/some/where")


def test_importing_needs_neither_torch_nor_numpy():
    code = (
        "import sys, resvar.data.cifar; "
        "assert not {'torch', 'torchvision', 'numpy', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_loading_gives_back_what_the_files_hold(tmp_path, name):
    dataset = make_cifar(tmp_path, train=53, test=21, name=name)
    images = load_cifar(dataset, tmp_path)
    for files, got, labels in (
        (dataset.train, images.train_images, images.train_labels),
        (dataset.test, images.test_images, images.test_labels),
    ):
        rows, expected = [], []
        for file in files:
            content = (tmp_path / dataset.folder / file).read_bytes()
            values = pickle.loads(content, encoding="bytes")
            rows += list(values[b"data"])
            expected += values[dataset.label_key]
        assert got.shape == (len(rows), 32, 32, 3)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        assert labels.dtype == np.int64
        assert labels.tolist() == expected
        for index, y, x, channel in ((0, 0, 0, 0), (3, 5, 17, 1), (20, 31, 30, 2)):
            assert got[index, y, x, channel] == rows[index][1024 * channel + 32 * y + x]
        np.testing.assert_array_equal(
            got.reshape(-1, 1024, 3).swapaxes(1, 2).reshape(-1, 3072), np.stack(rows)
        )
    assert images.class_names == tuple(f"class{number}" for number in range(dataset.classes))
    lines = "".join(f"{dataset.md5[file]}  {file}\n" for file in dataset.files)
    assert images.checksum == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_loading_agrees_with_torchvision(tmp_path, name, theirs):
    torchvision = pytest.importorskip("torchvision.datasets")
    dataset = make_cifar(tmp_path, train=30, test=10, name=name)
    official = getattr(torchvision, theirs)
    tiny = type(
        "Tiny",
        (official,),
        {
            "train_list": [[file, dataset.md5[file]] for file in dataset.train],
            "test_list": [[file, dataset.md5[file]] for file in dataset.test],
            "meta": {**official.meta, "md5": dataset.md5[dataset.meta]},
        },
    )
    images, train, test = load_cifar(dataset, tmp_path), tiny(tmp_path), tiny(tmp_path, train=False)
    np.testing.assert_array_equal(images.train_images, train.data)
    np.testing.assert_array_equal(images.test_images, test.data)
    assert images.train_labels.tolist() == train.targets
    assert images.test_labels.tolist() == test.targets
    assert list(images.class_names) == train.classes


def test_the_tiny_dataset_is_deterministic_and_can_be_learned(tmp_path, monkeypatch):
    dataset = make_cifar(tmp_path / "a", seed=3)
    assert make_cifar(tmp_path / "b", seed=3) == dataset
    assert make_cifar(tmp_path / "c", seed=4).md5 != dataset.md5
    with monkeypatch.context() as patch:
        install(dataset, patch)
        assert DATASETS["cifar10"] is dataset
    assert DATASETS["cifar10"] is not dataset
    images = load_cifar(dataset, tmp_path / "a")
    assert (len(images.train_images), len(images.test_images)) == (250, 100)
    mean_colours = images.train_images.mean((1, 2))
    centres = np.stack([mean_colours[images.train_labels == k].mean(0) for k in range(10)])
    distances = np.abs(images.test_images.mean((1, 2))[:, None] - centres).sum(-1)
    assert (distances.argmin(1) == images.test_labels).mean() > 0.8


def test_a_missing_dataset_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError) as caught:
        load_cifar(DATASETS["cifar10"], tmp_path / "my data")
    assert str(caught.value) == (
        f"{tmp_path}/my data/cifar-10-batches-py: CIFAR-10 is not there (data_batch_1 is missing); "
        f"get it with `resvar data --dir '{tmp_path}/my data'` or name its folder with --data DIR "
        "or RESVAR_DATA."
    )
    with pytest.raises(UserError, match="--dataset cifar100"):
        load_cifar(DATASETS["cifar100"], tmp_path)


def test_a_missing_file_is_named(tmp_path):
    dataset = make_cifar(tmp_path, train=10, test=10)
    (tmp_path / dataset.folder / "test_batch").unlink()
    (tmp_path / dataset.folder / "batches.meta").unlink()
    with pytest.raises(UserError, match="test_batch is missing"):
        load_cifar(dataset, tmp_path)
    first, second = find_problems(dataset, tmp_path)
    assert first == f"{tmp_path / dataset.folder / 'test_batch'}: this file is missing."
    assert "batches.meta" in second


def test_naming_the_inner_folder_is_explained(tmp_path):
    dataset = make_cifar(tmp_path, train=10, test=10)
    with pytest.raises(UserError, match="name the folder above"):
        load_cifar(dataset, tmp_path / dataset.folder)


def test_a_flipped_byte_is_found(tmp_path):
    dataset = make_cifar(tmp_path, train=10, test=10)
    assert find_problems(dataset, tmp_path) == []
    path = tmp_path / dataset.folder / "data_batch_3"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"data_batch_3: .*not the official.*resvar data --dir"):
        load_cifar(dataset, tmp_path)
    (problem,) = find_problems(dataset, tmp_path)
    assert "data_batch_3: its MD5 is" in problem
    assert dataset.md5["data_batch_3"] in problem


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_file_with_a_wrong_md5_is_never_unpickled(tmp_path, file):
    dataset, marker = make_cifar(tmp_path, train=10, test=10), tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(marker), protocol=2)
    (tmp_path / dataset.folder / file).write_bytes(bomb)
    with pytest.raises(UserError, match="not unpickled"):
        load_cifar(dataset, tmp_path)
    assert find_problems(dataset, tmp_path)
    archive = tmp_path / "own.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / dataset.folder, "top")
    with pytest.raises(UserError, match=file):
        obtain(dataset, tmp_path, archive=archive)
    assert not marker.exists()
    pickle.loads(bomb)
    assert marker.exists()  # the bomb was live


def test_a_pickle_that_calls_a_function_is_refused_even_with_the_right_md5(tmp_path):
    dataset, marker = make_cifar(tmp_path, train=10, test=10), tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(marker), protocol=2)
    (tmp_path / dataset.folder / "test_batch").write_bytes(bomb)
    md5 = {**dataset.md5, "test_batch": hashlib.md5(bomb).hexdigest()}
    with pytest.raises(UserError, match="test_batch: this is not a pickle of CIFAR-10"):
        load_cifar(dataclasses.replace(dataset, md5=md5), tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("test_batch", {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}),
        ("test_batch", {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, -1]}),
        ("test_batch", {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}),
        ("test_batch", {b"data": np.zeros((2, 3072), np.uint8), b"labels": [b"a", [1]]}),
        ("test_batch", {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]}),
        ("test_batch", {b"data": np.zeros((2, 3072), np.int64), b"labels": [0, 1]}),
        ("test_batch", {b"data": np.zeros((0, 3072), np.uint8), b"labels": []}),
        ("test_batch", {b"labels": [0, 1]}),
        ("test_batch", {}),
        ("test_batch", [1, 2]),
        ("batches.meta", {b"label_names": [b"cat"]}),
        ("batches.meta", {b"label_names": list(range(10))}),
        ("batches.meta", {}),
    ],
)
def test_files_with_strange_contents_are_refused(tmp_path, file, content):
    dataset, data = make_cifar(tmp_path, train=10, test=10), dump_like_python2(content)
    (tmp_path / dataset.folder / file).write_bytes(data)
    md5 = {**dataset.md5, file: hashlib.md5(data).hexdigest()}
    with pytest.raises(UserError, match=f"{file}: this "):
        load_cifar(dataclasses.replace(dataset, md5=md5), tmp_path)


# --- the real data --------------------------------------------------------------------------------


@pytest.mark.cifar
def test_the_real_cifar10_has_the_known_statistics():
    dataset = DATASETS["cifar10"]
    if found := find_problems(dataset, default_folder()):
        pytest.skip(found[0])
    images = load_cifar(dataset, default_folder())
    assert images.train_images.shape == (50_000, 32, 32, 3)
    assert images.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(images.train_labels).tolist() == [5000] * 10
    assert np.bincount(images.test_labels).tolist() == [1000] * 10
    assert images.class_names[0] == "airplane"
    assert images.class_names[9] == "truck"
    means, deviations = [], []
    for channel in range(3):
        counts = np.bincount(images.train_images[..., channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        mean = (counts * values).sum() / counts.sum()
        means.append(mean)
        deviations.append(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)
    np.testing.assert_allclose(deviations, [0.2470, 0.2435, 0.2616], atol=1e-4)
