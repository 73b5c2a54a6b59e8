from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from resvar.data import cifar
from resvar.data.cifar import DATASETS, default_folder, find_dataset, load, obtain, problems
from resvar.errors import RunError, UserError
from tests.tiny import dump_like_python2, install, make_cifar

# --- helpers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a tiny CIFAR-10 that no test changes, and the dataset that describes it."""
    folder = tmp_path_factory.mktemp("source")
    return folder, make_cifar(folder, train=50, test=20)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def pack(source, path: Path, mode="w:gz", top="cifar-10-batches-py/", before=(), after=(), **other):
    """A tar of the tiny dataset; `other` replaces the bytes of files, None leaves one out."""
    folder, dataset = source
    with tarfile.open(path, mode) as tar:
        for name, fields in before:
            add(tar, name, b"", **fields)
        add(tar, top + "readme.html", b"<p>as in the official archive")
        for name in dataset.files:
            data = (folder / dataset.folder / name).read_bytes()
            data = other.get(name.replace(".", "_"), data)
            if data is not None:
                add(tar, top + name, data)
        for name, fields in after:
            add(tar, name, b"", **fields)
    return path


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
    assert (ours.folder, ours.url) == (official.base_folder, official.url)
    assert set(ours.md5) == set(ours.files)


def test_find_dataset_suggests_the_nearest_name():
    assert find_dataset("cifar100") is DATASETS["cifar100"]
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        find_dataset("cifar-10")


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
    images = load(dataset, tmp_path)
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
    images, train, test = load(dataset, tmp_path), tiny(tmp_path), tiny(tmp_path, train=False)
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
        assert find_dataset("cifar10") is dataset
    assert find_dataset("cifar10") is not dataset
    images = load(dataset, tmp_path / "a")
    assert (len(images.train_images), len(images.test_images)) == (250, 100)
    mean_colours = images.train_images.mean((1, 2))
    centres = np.stack([mean_colours[images.train_labels == k].mean(0) for k in range(10)])
    distances = np.abs(images.test_images.mean((1, 2))[:, None] - centres).sum(-1)
    assert (distances.argmin(1) == images.test_labels).mean() > 0.8


def test_a_missing_dataset_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError) as caught:
        load(DATASETS["cifar10"], tmp_path / "my data")
    assert str(caught.value) == (
        f"{tmp_path}/my data/cifar-10-batches-py: CIFAR-10 is not there (data_batch_1 is missing); "
        f"get it with `resvar data --dir '{tmp_path}/my data'` or name its folder with --data DIR "
        "or RESVAR_DATA."
    )
    with pytest.raises(UserError, match="--dataset cifar100"):
        load(DATASETS["cifar100"], tmp_path)


def test_a_missing_file_is_named(tmp_path):
    dataset = make_cifar(tmp_path, train=10, test=10)
    (tmp_path / dataset.folder / "test_batch").unlink()
    (tmp_path / dataset.folder / "batches.meta").unlink()
    with pytest.raises(UserError, match="test_batch is missing"):
        load(dataset, tmp_path)
    first, second = problems(dataset, tmp_path)
    assert first == f"{tmp_path / dataset.folder / 'test_batch'}: this file is missing."
    assert "batches.meta" in second


def test_naming_the_inner_folder_is_explained(tmp_path):
    dataset = make_cifar(tmp_path, train=10, test=10)
    with pytest.raises(UserError, match="name the folder above"):
        load(dataset, tmp_path / dataset.folder)


def test_a_flipped_byte_is_found(tmp_path):
    dataset = make_cifar(tmp_path, train=10, test=10)
    assert problems(dataset, tmp_path) == []
    path = tmp_path / dataset.folder / "data_batch_3"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"data_batch_3: .*not the official.*resvar data --dir"):
        load(dataset, tmp_path)
    (problem,) = problems(dataset, tmp_path)
    assert "data_batch_3: its MD5 is" in problem
    assert dataset.md5["data_batch_3"] in problem


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_file_with_a_wrong_md5_is_never_unpickled(tmp_path, file):
    dataset, marker = make_cifar(tmp_path, train=10, test=10), tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(marker), protocol=2)
    (tmp_path / dataset.folder / file).write_bytes(bomb)
    with pytest.raises(UserError, match="not unpickled"):
        load(dataset, tmp_path)
    assert problems(dataset, tmp_path)
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
        load(dataclasses.replace(dataset, md5=md5), tmp_path)
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
        load(dataclasses.replace(dataset, md5=md5), tmp_path)


# --- archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_of_any_compression_are_taken(source, tmp_path, mode):
    dataset = source[1]
    archive = pack(source, tmp_path / "archive", mode)
    folder = tmp_path / "new" / "data"
    assert obtain(dataset, folder, archive=archive) is True
    assert contents(folder) == contents(source[0])
    assert names(folder) == [dataset.folder]
    assert obtain(dataset, folder, archive=tmp_path / "not needed any more") is False


@pytest.mark.parametrize("top", ["", "./", "some/other/folder/"])
def test_a_repacked_archive_is_taken(source, tmp_path, top):
    archive = pack(source, tmp_path / "archive", top=top)
    assert obtain(source[1], tmp_path / "data", archive=archive)
    assert contents(tmp_path / "data") == contents(source[0])


def test_cifar100_from_an_archive_with_a_folder_called_train(tmp_path):
    dataset = make_cifar(tmp_path / "source", train=100, test=100, name="cifar100")
    with tarfile.open(tmp_path / "archive", "w:gz") as tar:
        add(tar, "train", b"", type=tarfile.DIRTYPE)
        tar.add(tmp_path / "source" / dataset.folder, "train/cifar-100-python")
    assert obtain(dataset, tmp_path / "data", archive=tmp_path / "archive")
    assert contents(tmp_path / "data") == contents(tmp_path / "source")


def test_a_damaged_dataset_is_replaced_and_other_files_stay(source, tmp_path):
    folder, dataset = tmp_path / "data", source[1]
    (folder / dataset.folder).mkdir(parents=True)
    (folder / dataset.folder / "data_batch_1").write_bytes(b"half of it")
    (folder / dataset.folder / "notes.txt").write_bytes(b"mine")
    assert obtain(dataset, folder, archive=pack(source, tmp_path / "archive"))
    assert problems(dataset, folder) == []
    assert (folder / dataset.folder / "notes.txt").read_bytes() == b"mine"


HOSTILE = [
    ("../evil", {}),
    ("cifar-10-batches-py/../../evil", {}),
    ("/tmp/resvar-evil", {}),
    ("..", {"type": tarfile.DIRTYPE}),
    ("C:\\evil", {}),
    ("a\\..\\..\\evil", {}),
    ("../data_batch_1", {}),
    ("x/data_batch_1", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    ("x/data_batch_1", {"type": tarfile.LNKTYPE, "linkname": "x/data_batch_2"}),
    ("x/data_batch_1", {"type": tarfile.FIFOTYPE}),
    ("x/data_batch_1", {"type": tarfile.CHRTYPE}),
]


@pytest.mark.parametrize(("name", "fields"), HOSTILE)
def test_hostile_members_are_refused_and_nothing_is_written(source, tmp_path, name, fields):
    folder, dataset = tmp_path / "data", source[1]
    folder.mkdir()
    archive = pack(source, tmp_path / "archive", before=[(name, fields)])
    with pytest.raises(UserError) as caught:
        obtain(dataset, folder, archive=archive)
    assert repr(name) in str(caught.value)
    assert names(folder) == []
    assert not Path("/tmp/resvar-evil").exists()
    assert names(tmp_path) == ["archive", "data"]


@pytest.mark.parametrize("name", ["../evil", "/tmp/resvar-evil"])
def test_a_hostile_member_after_the_last_needed_file_is_refused_too(source, tmp_path, name):
    archive = pack(source, tmp_path / "archive", after=[(name, {})])
    with pytest.raises(UserError, match="would land outside"):
        obtain(source[1], tmp_path / "data", archive=archive)
    assert names(tmp_path / "data") == []


def test_a_member_that_is_too_large_is_refused_before_it_is_copied(source, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "LARGEST_FILE", 100_000)
    archive = pack(source, tmp_path / "archive", data_batch_2=bytes(100_001))
    with pytest.raises(UserError, match=r"data_batch_2' has 0\.1 MB, more than any file"):
        obtain(source[1], tmp_path / "data", archive=archive)
    assert names(tmp_path / "data") == []


def test_an_archive_that_unpacks_to_too_much_is_refused(source, tmp_path, monkeypatch):
    archive = pack(source, tmp_path / "archive")
    monkeypatch.setattr(cifar, "LARGEST_ARCHIVE", 50_000)
    with pytest.raises(UserError, match="unpacks to more than"):
        obtain(source[1], tmp_path / "data", archive=archive)
    monkeypatch.setattr(cifar, "LARGEST_ARCHIVE", 1_000_000)
    monkeypatch.setattr(cifar, "MOST_MEMBERS", 5)
    with pytest.raises(UserError, match="more than 5 members"):
        obtain(source[1], tmp_path / "data", archive=archive)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.3, 0.9])
def test_a_cut_archive_is_one_sentence(source, tmp_path, mode, kept):
    archive = pack(source, tmp_path / "archive", mode)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=r"archive: (it is|\w+ is not in it).*; nothing was taken"):
        obtain(source[1], tmp_path / "data", archive=archive)
    assert names(tmp_path / "data") == []


@pytest.mark.parametrize("data", [b"<html>not found</html>" * 100, b"\x1f\x8b\x08", b"BZh9" * 200])
def test_what_is_no_tar_is_one_sentence(source, tmp_path, data):
    (tmp_path / "archive").write_bytes(data)
    with pytest.raises(UserError, match=r"archive: it is .*cut or damaged"):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "archive")


def test_an_archive_that_is_not_there_or_no_file(source, tmp_path):
    with pytest.raises(UserError, match=r"none\.tar: cannot be read .*--archive FILE"):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "none.tar")
    with pytest.raises(UserError, match="this is no file"):
        obtain(source[1], tmp_path / "data", archive=tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="this is no file"):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "pipe")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"data_batch_4": b"other bytes"}, "data_batch_4 in it is not the official file"),
        ({"batches_meta": None}, "batches.meta is not in it"),
    ],
)
def test_a_wrong_archive_leaves_existing_data_untouched(source, tmp_path, other, sentence):
    folder, dataset = tmp_path / "data", source[1]
    (folder / dataset.folder).mkdir(parents=True)
    (folder / dataset.folder / "data_batch_1").write_bytes(b"old")
    before = contents(folder)
    archive = pack(source, tmp_path / "archive", **other)
    with pytest.raises(UserError, match=sentence):
        obtain(dataset, folder, archive=archive)
    assert contents(folder) == before
    assert names(folder) == [dataset.folder]


def test_a_name_that_stands_twice_counts_where_it_is_right(source, tmp_path):
    archive = pack(source, tmp_path / "archive", before=[("x/test_batch", {})])
    assert obtain(source[1], tmp_path / "data", archive=archive)
    archive = pack(source, tmp_path / "archive", after=[("x/test_batch", {})])
    assert obtain(source[1], tmp_path / "data2", archive=archive)
    assert contents(tmp_path / "data2") == contents(source[0])


def test_a_folder_that_cannot_be_one(source, tmp_path):
    (tmp_path / "data").write_bytes(b"a file")
    with pytest.raises(UserError, match="data: cannot be used as a folder"):
        obtain(source[1], tmp_path / "data", archive=pack(source, tmp_path / "archive"))


def test_a_full_disk_is_one_sentence(source, tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device; no data in"):
        obtain(source[1], tmp_path / "data", archive=pack(source, tmp_path / "archive"))
    assert names(tmp_path / "data") == []


def test_an_interrupted_unpacking_leaves_nothing(source, tmp_path, monkeypatch):
    def stop(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        obtain(source[1], tmp_path / "data", archive=pack(source, tmp_path / "archive"))
    assert names(tmp_path / "data") == []


# --- the network ----------------------------------------------------------------------------------


class Server:
    """A web server on 127.0.0.1 that serves one file and notes what was asked and sent."""

    def __init__(self, data: bytes, ranges: bool = True):
        self.data = data
        self.ranges = ranges
        self.cut_after: int | None = None  # bytes of a body after which the connection ends
        self.wrong_range = False
        self.chunked = False
        self.asked: list[str | None] = []  # the Range header of each request
        self.sent: list[int] = []  # the bytes of each body

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler):  # noqa: N805
                self.answer(handler)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.host}/cifar-10-python.tar.gz"

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.asked.append(wanted)
        if handler.path == "/moved":
            handler.send_response(302)
            handler.send_header("Location", "file:///etc/passwd")
            handler.end_headers()
            return
        if handler.path != "/cifar-10-python.tar.gz":
            handler.send_error(404)
            return
        start, size = 0, len(self.data)
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{size}")
                handler.end_headers()
                return
            handler.send_response(206)
            said = start + 1 if self.wrong_range else start
            handler.send_header("Content-Range", f"bytes {said}-{size - 1}/{size}")
        else:
            handler.send_response(200)
        if self.chunked:  # HTTP/1.0: no length, the end of the connection is the end of the body
            handler.end_headers()
        else:
            handler.send_header("Content-Length", str(size - start))
            handler.end_headers()
        body = self.data[start:][: self.cut_after]
        self.sent.append(len(body))
        handler.wfile.write(body)


@contextlib.contextmanager
def serving(data: bytes, ranges: bool = True):
    server = Server(data, ranges)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    return pack(source, tmp_path_factory.mktemp("packed") / "archive").read_bytes()


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.part"))


def test_a_whole_download(source, packed, tmp_path):
    with serving(packed) as server:
        assert obtain(source[1], tmp_path, url=server.url) is True
        assert obtain(source[1], tmp_path, url=server.url) is False
    assert (server.asked, server.sent) == ([None], [len(packed)])
    assert contents(tmp_path) == contents(source[0])


def test_the_official_address_is_the_default(source, packed, tmp_path):
    with serving(packed) as server:
        assert obtain(dataclasses.replace(source[1], url=server.url), tmp_path)
    assert contents(tmp_path) == contents(source[0])


def test_a_cut_download_goes_on_where_it_ended(source, packed, tmp_path):
    with serving(packed) as server:
        server.cut_after = len(packed) // 3
        with pytest.raises(RunError, match=r"cut at .* of .*run the same command again"):
            obtain(source[1], tmp_path, url=server.url)
        (part,) = parts(tmp_path)
        assert part.name.startswith("cifar-10-python.tar.gz.")
        assert part.read_bytes() == packed[: len(packed) // 3]
        server.cut_after = None
        assert obtain(source[1], tmp_path, url=server.url)
    assert server.asked == [None, f"bytes={len(packed) // 3}-"]
    assert sum(server.sent) == len(packed)  # no byte twice
    assert contents(tmp_path) == contents(source[0])


def test_a_server_without_ranges_starts_over(source, packed, tmp_path):
    with serving(packed, ranges=False) as server:
        server.cut_after = 1000
        with pytest.raises(RunError, match="cut"):
            obtain(source[1], tmp_path, url=server.url)
        server.cut_after = None
        assert obtain(source[1], tmp_path, url=server.url)
    assert server.asked == [None, "bytes=1000-"]
    assert contents(tmp_path) == contents(source[0])


def test_a_server_that_sends_another_range_is_asked_for_the_whole(source, packed, tmp_path):
    with serving(packed) as server:
        server.cut_after = 1000
        with pytest.raises(RunError, match="cut"):
            obtain(source[1], tmp_path, url=server.url)
        server.cut_after, server.wrong_range = None, True
        assert obtain(source[1], tmp_path, url=server.url)
    assert server.asked == [None, "bytes=1000-", None]


def test_a_server_that_does_not_say_how_much_comes(source, packed, tmp_path):
    with serving(packed) as server:
        server.chunked = True
        assert obtain(source[1], tmp_path, url=server.url)


def test_a_whole_part_is_not_fetched_again(source, packed, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with serving(packed) as server:
        with monkeypatch.context() as patch:
            patch.setattr(cifar, "_unpack", stop)
            with pytest.raises(KeyboardInterrupt):
                obtain(source[1], tmp_path, url=server.url)
        (part,) = parts(tmp_path)
        assert part.read_bytes() == packed
        assert obtain(source[1], tmp_path, url=server.url)
    assert server.sent == [len(packed)]
    assert contents(tmp_path) == contents(source[0])


def test_a_part_that_is_longer_than_the_file_starts_over(source, packed, tmp_path):
    with serving(packed) as server:
        server.cut_after = 1000
        with pytest.raises(RunError):
            obtain(source[1], tmp_path, url=server.url)
        (part,) = parts(tmp_path)
        part.write_bytes(packed + b"more")
        server.cut_after = None
        assert obtain(source[1], tmp_path, url=server.url)
    assert server.asked == [None, f"bytes={len(packed) + 4}-", None]


def test_an_interrupted_download_keeps_its_part(source, packed, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def interrupting(*_, **__):
        def tell(_done):
            raise KeyboardInterrupt

        yield tell

    with serving(packed) as server:
        with monkeypatch.context() as patch:
            patch.setattr(cifar, "_progress", interrupting)
            with pytest.raises(KeyboardInterrupt):
                obtain(source[1], tmp_path, url=server.url)
        (part,) = parts(tmp_path)
        size = part.stat().st_size
        assert packed.startswith(part.read_bytes())
        assert size > 0
        assert obtain(source[1], tmp_path, url=server.url)
    assert server.asked == [None, f"bytes={size}-"]


def test_a_part_belongs_to_one_address(source, packed, tmp_path):
    with serving(packed) as first, serving(packed) as second:
        first.cut_after = 1000
        with pytest.raises(RunError, match="cut"):
            obtain(source[1], tmp_path, url=first.url)
        assert obtain(source[1], tmp_path, url=second.url)
    assert second.asked == [None]
    assert len(parts(tmp_path)) == 1  # the first address's, for a later call


def test_a_wrong_file_behind_the_address_is_deleted(source, tmp_path):
    with serving(b"<html>sign in first</html>") as server:
        with pytest.raises(UserError, match=r"deleted again, because it is no tar.*--url MIRROR"):
            obtain(source[1], tmp_path, url=server.url)
        official = dataclasses.replace(source[1], url=server.url)
        with pytest.raises(RunError, match="deleted again"):
            obtain(official, tmp_path)
    assert names(tmp_path) == []


def test_something_endless_behind_the_address_is_refused(source, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "LARGEST_ARCHIVE", 1000)
    with serving(packed) as server:
        for server.chunked in (True, False):
            with pytest.raises(UserError, match="larger than"):
                obtain(source[1], tmp_path, url=server.url)
            assert names(tmp_path) == []


def test_an_address_that_is_not_there(source, packed, tmp_path):
    with (
        serving(packed) as server,
        pytest.raises(RunError, match=r"answered 404 .*--url MIRROR.*--archive FILE"),
    ):
        obtain(source[1], tmp_path, url=server.host + "/other")
    assert names(tmp_path) == []


def test_a_redirect_to_a_local_file_is_not_followed(source, packed, tmp_path):
    with serving(packed) as server, pytest.raises(RunError, match="answered 302"):
        obtain(source[1], tmp_path, url=server.host + "/moved")


def test_a_server_that_cannot_be_reached(source, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RunError, match=r"cannot be reached .*--url MIRROR.*--archive FILE"):
        obtain(source[1], tmp_path, url=f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/x.tar.gz",
        "cifar-10-python.tar.gz",
        "https://",
        "http://127.0.0.1:port/x",
        "http://[::1/x",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/ä",
        "http://127.0.0.1/a\r\nHost: b",
    ],
)
def test_other_addresses_are_refused(source, tmp_path, url):
    with pytest.raises(UserError, match="--url"):
        obtain(source[1], tmp_path / "data", url=url)
    assert not (tmp_path / "data").exists()


def test_archive_and_url_exclude_each_other(source, tmp_path):
    with pytest.raises(UserError, match="exclude each other"):
        obtain(source[1], tmp_path, archive=tmp_path / "a", url="https://example.org/a")


# --- what is said on stderr -----------------------------------------------------------------------


def test_a_log_gets_a_line_every_tenth(source, packed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cifar, "CHUNK", 1000)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # rich would take the log for a terminal
        monkeypatch.delenv(name, raising=False)
    with serving(packed) as server:
        obtain(source[1], tmp_path, url=server.url)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == f"Downloading {server.url}"
    assert len([line for line in lines if "%" in line]) == 10
    assert "100% of 0." in lines[10]
    assert lines[11].startswith("Unpacking and checking cifar-10-python.tar.gz")
    assert len(lines) == 12


def test_a_terminal_gets_a_bar(source, packed, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with serving(packed) as server:
        obtain(source[1], tmp_path, url=server.url)
    out, err = capsys.readouterr()
    assert out == ""
    assert "━" in err
    assert "cifar-10-python.tar.gz" in err


def test_silence_on_request(source, packed, tmp_path, capsys):
    with serving(packed) as server:
        obtain(source[1], tmp_path, url=server.url, progress=False)
    assert capsys.readouterr() == ("", "")


# --- the real data --------------------------------------------------------------------------------


@pytest.mark.cifar
def test_the_real_cifar10_has_the_known_statistics():
    dataset = DATASETS["cifar10"]
    if found := problems(dataset, default_folder()):
        pytest.skip(found[0])
    images = load(dataset, default_folder())
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
