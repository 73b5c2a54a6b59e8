from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.server
import io
import os
import socket
import tarfile
import threading
from pathlib import Path

import pytest

from resvar.data import archive as archives
from resvar.data import download as downloads
from resvar.data import obtain as obtaining
from resvar.data.cifar import Dataset, find_problems
from resvar.data.obtain import obtain
from resvar.errors import RunError, Stopped, UserError
from tests.support.tiny import make_cifar

# --- helpers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a tiny CIFAR-10 that no test changes, and the dataset that describes it."""
    folder = tmp_path_factory.mktemp("source")
    return folder, make_cifar(folder, train=50, test=20)


def served_by(dataset: Dataset, *sources: str, packed: bytes = b"") -> Dataset:
    """The dataset with an official archive of these bytes, which these addresses serve."""
    size, md5 = (len(packed), hashlib.md5(packed).hexdigest()) if packed else (None, None)
    archive = dataclasses.replace(dataset.archive, size=size, md5=md5, sources=sources)
    return dataclasses.replace(dataset, archive=archive)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    """What is in a folder, hidden files too; nothing where there is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


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


# --- archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_of_any_compression_are_taken(source, tmp_path, mode):
    dataset = source[1]
    archive = pack(source, tmp_path / "archive", mode)
    folder = tmp_path / "new" / "data"
    assert obtain(dataset, folder, archive=archive) is True
    assert contents(folder) == contents(source[0])
    assert names(folder) == [dataset.folder]
    assert obtain(dataset, folder, archive=archive) is False


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
    assert find_problems(dataset, folder) == []
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
    monkeypatch.setattr(archives, "LARGEST_FILE", 100_000)
    archive = pack(source, tmp_path / "archive", data_batch_2=bytes(100_001))
    with pytest.raises(UserError, match=r"data_batch_2' has 0\.1 MB, more than any file"):
        obtain(source[1], tmp_path / "data", archive=archive)
    assert names(tmp_path / "data") == []


def test_an_archive_that_unpacks_to_too_much_is_refused(source, tmp_path, monkeypatch):
    archive = pack(source, tmp_path / "archive")
    monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 50_000)
    with pytest.raises(UserError, match="unpacks to more than"):
        obtain(source[1], tmp_path / "data", archive=archive)
    monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 1_000_000)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 5)
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


@pytest.mark.parametrize("data", [b"not found" * 100, b"\x1f\x8b\x08", b"BZh9" * 200])
def test_what_is_no_tar_is_one_sentence(source, tmp_path, data):
    (tmp_path / "archive").write_bytes(data)
    with pytest.raises(UserError, match=r"archive: it is .*cut or damaged"):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "archive")


def test_an_archive_that_is_not_there_or_no_file(source, tmp_path):
    with pytest.raises(UserError, match=r"none\.tar: cannot be read .*--archive FILE"):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "none.tar")
    with pytest.raises(UserError, match="not a regular file"):
        obtain(source[1], tmp_path / "data", archive=tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
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
        assert obtain(served_by(source[1], server.url), tmp_path)
    assert contents(tmp_path) == contents(source[0])


def test_a_cut_download_goes_on_where_it_ended(source, packed, tmp_path):
    with serving(packed) as server:
        server.cut_after = len(packed) // 3
        with pytest.raises(RunError, match=r"broke off at .* of .*rerun the command to resume"):
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
        with pytest.raises(RunError, match="broke off"):
            obtain(source[1], tmp_path, url=server.url)
        server.cut_after = None
        assert obtain(source[1], tmp_path, url=server.url)
    assert server.asked == [None, "bytes=1000-"]
    assert contents(tmp_path) == contents(source[0])


def test_a_server_that_sends_another_range_is_asked_for_the_whole(source, packed, tmp_path):
    with serving(packed) as server:
        server.cut_after = 1000
        with pytest.raises(RunError, match="broke off"):
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
            patch.setattr(obtaining, "unpack", stop)
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
            patch.setattr(downloads, "show_progress", interrupting)
            with pytest.raises(Stopped, match=r"stopped; .* are kept: rerun the command to resume"):
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
        with pytest.raises(RunError, match="broke off"):
            obtain(source[1], tmp_path, url=first.url)
        assert obtain(source[1], tmp_path, url=second.url)
    assert second.asked == [None]
    assert len(parts(tmp_path)) == 1  # the first address's, for a later call


def test_a_wrong_file_behind_the_address_is_deleted(source, packed, tmp_path):
    with serving(b"<html>sign in first</html>") as server:
        with pytest.raises(UserError, match=r"was deleted, because it is not a tar.*--url URL"):
            obtain(source[1], tmp_path, url=server.url)
        official = served_by(source[1], server.url, packed=packed)
        with pytest.raises(RunError, match=r"has another file \(26 bytes instead of"):
            obtain(official, tmp_path)
    assert names(tmp_path) == []


def test_something_endless_behind_the_address_is_refused(source, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST_ARCHIVE", 1000)
    with serving(packed) as server:
        for server.chunked in (True, False):
            with pytest.raises(UserError, match="larger than"):
                obtain(source[1], tmp_path, url=server.url)
            assert names(tmp_path) == []


def test_an_address_that_is_not_there(source, packed, tmp_path):
    with (
        serving(packed) as server,
        pytest.raises(RunError, match=r"answered 404 .*--archive FILE.*--url URL"),
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
    with pytest.raises(RunError, match=r"cannot be reached .*--archive FILE.*--url URL"):
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
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # rich would take the log for a terminal
        monkeypatch.delenv(name, raising=False)
    with serving(packed) as server:
        obtain(source[1], tmp_path, url=server.url)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == f"Downloading cifar-10-python.tar.gz from {server.url.split('/')[2]}"
    assert len([line for line in lines if "%" in line]) == 10
    assert "100 % of 0." in lines[10]
    assert lines[11] == "Unpacking and checking CIFAR-10"
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
