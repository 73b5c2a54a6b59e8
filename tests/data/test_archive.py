"""Archives: every compression, and hostile ones whose claims cost neither memory nor time."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import threading

import pytest

from resvar.data import archive as archives
from resvar.data.archive import remove_stale
from resvar.data.cifar import load_cifar
from resvar.data.obtain import obtain
from resvar.errors import UserError
from tests.data.test_obtain import add, contents, names, pack
from tests.support.permissions import obeyed_permissions
from tests.support.tiny import make_cifar


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a tiny CIFAR-10 that no test changes, and the dataset that describes it."""
    folder = tmp_path_factory.mktemp("source")
    return folder, make_cifar(folder, train=50, test=20)


# --- compression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["zstd", "lz4"])
def test_an_archive_by_an_installed_program_is_taken(source, tmp_path, program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    plain = pack(source, tmp_path / "plain.tar", "w")
    with plain.open("rb") as file, (tmp_path / "archive").open("wb") as packed:
        subprocess.run([program, "-c"], stdin=file, stdout=packed, check=True)
    assert obtain(source[1], tmp_path / "data", archive=tmp_path / "archive")
    assert contents(tmp_path / "data") == contents(source[0])
    packed = (tmp_path / "archive").read_bytes()
    (tmp_path / "archive").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="archive: "):
        obtain(source[1], tmp_path / "other", archive=tmp_path / "archive")
    assert names(tmp_path / "other") == []


@pytest.mark.parametrize(
    ("head", "program"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4")]
)
def test_a_program_that_is_not_installed_is_named(source, tmp_path, monkeypatch, head, program):
    (tmp_path / "c.tar.z").write_bytes(head + bytes(100))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"not installed here; .* `{program} -d c.tar.z`"):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "c.tar.z")


def test_what_a_program_says_of_an_archive_is_passed_on(source, tmp_path):
    """Such as of a window that would take more memory than the program allows."""
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    (tmp_path / "archive").write_bytes(b"\x28\xb5\x2f\xfd\x00\xff" + bytes(100))
    with pytest.raises(
        UserError, match=r"zstd cannot unpack it \(.*(memory|window|Decoding).*\); n"
    ):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "archive")


def test_xz_in_several_streams_with_padding(source, tmp_path):
    data = pack(source, tmp_path / "plain", "w").read_bytes()
    half = len(data) // 2
    packed = lzma.compress(data[:half]) + bytes(8) + lzma.compress(data[half:])
    (tmp_path / "archive").write_bytes(packed)
    assert obtain(source[1], tmp_path / "data", archive=tmp_path / "archive")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            b"\n<!DOCTYPE html><title>Sign in</title>",
            "not a tar archive but a web page, such as a sign-in form",
        ),
        (b"PK\x03\x04" + bytes(100), "a zip file; unpack it, and repack its files"),
    ],
)
def test_what_else_it_is(source, tmp_path, data, sentence):
    (tmp_path / "archive").write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "archive")


# --- hostile archives -----------------------------------------------------------------------------

MEBIBYTE = gzip.compress(bytes(1 << 20))


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(kind: bytes, records: bytes) -> bytes:
    return header(kind, len(records)) + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return str(length).encode() + b" " + key + b"=" + value + b"\n"


def endless(start: bytes) -> bytes:
    """A start, and zeros of 2.5 GB that take as many MB."""
    return gzip.compress(start) + 2500 * MEBIBYTE


def many_globals() -> bytes:
    """Global headers of 2.5 kB, each with a name of its own, before 5,000 members."""
    parts = [
        pax(b"g", record(b"k%d" % number, b"v" * 2500)) + header(b"0", 0) for number in range(5000)
    ]
    return gzip.compress(b"".join(parts), 1)


def sparse() -> bytes:
    """The old GNU format: a map of holes that goes on for 2.5 GB."""
    first = bytearray(header(b"S", 512))
    first[482] = 1  # more of the map follows
    first[148:156] = b"        "
    first[148:156] = b"%06o\0 " % sum(first)
    block = bytearray(512)
    for entry in range(21):
        block[entry * 24 : entry * 24 + 24] = b"00000000001\0" * 2
    block[504] = 1
    return gzip.compress(bytes(first)) + 2500 * gzip.compress(bytes(block) * 2048)


def endless_map() -> bytes:
    """The format of pax: the map of holes precedes the data, and never ends."""
    records = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
    start = pax(b"x", records) + header(b"0", 1 << 30)
    return gzip.compress(start) + 2500 * gzip.compress(b"1" * (1 << 20))


HOSTILE = {
    "longname": lambda: endless(header(b"L", 2_500_000_000)),
    "longlink": lambda: endless(header(b"K", 2_500_000_000)),
    "pax": lambda: endless(header(b"x", 2_500_000_000)),
    "global": lambda: endless(header(b"g", 2_500_000_000)),
    "globals": many_globals,
    "sparse": sparse,
    "map": endless_map,
    "digits": lambda: gzip.compress(pax(b"x", b"1" * 30_000) * 1000),
    "window": lambda: b"\x5d\x00\x00\x00\xc0" + b"\xff" * 8 + bytes(1000),
}

MEASURE = """
import resource, sys
from pathlib import Path
from resvar.data.cifar import DATASETS
from resvar.data.cifar import load_cifar
from resvar.data.obtain import obtain
from resvar.errors import UserError
def peak():
    try:  # of this program alone; getrusage counts its parent's too, before exec
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    obtain(DATASETS["cifar10"], Path(sys.argv[2]), archive=Path(sys.argv[1]), progress=False)
except UserError as error:
    print(error)
print((peak() - before) // 1024)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_takes_little_memory(tmp_path, kind):
    """Without the limits these took up to 5.2 GB, which the limit on the process prevents here."""
    (tmp_path / "archive").write_bytes(HOSTILE[kind]())
    done = subprocess.run(
        [
            *("sh", "-c", 'ulimit -v 2000000; exec "$@"', "sh", sys.executable, "-c", MEASURE),
            *(tmp_path / "archive", tmp_path / "data"),
        ],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    sentence, mebibytes = done.stdout.splitlines()
    assert "nothing was taken from it" in sentence
    assert int(mebibytes) < 60
    assert names(tmp_path / "data") == []


def test_long_names_of_honest_archives_are_read(source, tmp_path):
    plain = tmp_path / "archive"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(plain, "w:gz", format=format) as tar:
            for number in range(50):
                add(tar, "folder/" * 500 + f"{number}.png", b"other")
            tar.add(source[0] / source[1].folder, "ä" * 200)
        assert obtain(source[1], tmp_path / str(format), archive=plain)
        assert contents(tmp_path / str(format)) == contents(source[0])


def test_a_file_with_holes_is_read(source, tmp_path):
    """GNU tar -S; the member itself is sparse in the archive."""
    if shutil.which("tar") is None:
        pytest.skip("no tar")
    folder = tmp_path / "copy"
    shutil.copytree(source[0] / source[1].folder, folder)
    with (folder / "holes").open("wb") as file:
        file.truncate(10_000_000)
    packed = subprocess.run(["tar", "-cSf", tmp_path / "archive", "-C", folder, "."], check=False)
    if packed.returncode:
        pytest.skip("this tar has no -S")
    assert obtain(source[1], tmp_path / "data", archive=tmp_path / "archive")


# --- what is left behind --------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed(source, tmp_path):
    folder, dataset = tmp_path / "data", source[1]
    for place in (folder, folder / dataset.folder):
        (place / ".resvar-abc").mkdir(parents=True)
        (place / ".resvar-abc" / "data_batch_1").write_bytes(b"half")
    (folder / ".resvar-link").symlink_to(tmp_path)
    assert obtain(dataset, folder, archive=pack(source, tmp_path / "archive"))
    assert names(folder) == [".resvar-link", dataset.folder]
    assert contents(folder / dataset.folder) == contents(source[0] / dataset.folder)
    remove_stale(dataset, tmp_path / "nowhere")


def test_a_folder_that_is_a_link_is_filled_where_it_leads(source, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / source[1].folder).symlink_to(tmp_path / "other")
    assert obtain(source[1], tmp_path / "data", archive=pack(source, tmp_path / "archive"))
    assert contents(tmp_path / "other") == contents(source[0] / source[1].folder)
    assert names(tmp_path / "data") == [source[1].folder]


def test_a_huge_file_with_nothing_in_it_is_no_archive(source, tmp_path):
    with (tmp_path / "archive").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="archive: "):
        obtain(source[1], tmp_path / "data", archive=tmp_path / "archive")


# --- the lock -------------------------------------------------------------------------------------


def test_a_second_call_waits_for_the_first_and_finds_its_data(source, tmp_path, monkeypatch):
    """The first is stopped in the middle of its work, until the second has said that it waits."""
    folder, dataset = tmp_path / "data", source[1]
    archive = pack(source, tmp_path / "archive")
    inside, proceed, done = threading.Event(), threading.Event(), []
    extract = archives._extract

    def slowly(*arguments):
        inside.set()
        assert proceed.wait(60)
        return extract(*arguments)

    monkeypatch.setattr(archives, "_extract", slowly)
    first = threading.Thread(
        target=lambda: done.append(obtain(dataset, folder, archive=archive, progress=False))
    )
    first.start()
    assert inside.wait(60)
    printed = io.StringIO()

    def printing(text: str) -> None:
        printed.write(text)
        proceed.set()

    monkeypatch.setattr("resvar.data.obtain.show_line", printing)
    assert obtain(dataset, folder, archive=archive) is False
    first.join()
    assert done == [True]
    assert f"process {os.getpid()} on " in printed.getvalue()
    assert "waiting for its end" in printed.getvalue()
    assert contents(folder) == contents(source[0])
    assert names(folder) == [dataset.folder]


def test_a_file_in_place_of_a_folder_or_the_reverse_is_wrong_input(source, tmp_path):
    archive, dataset = pack(source, tmp_path / "archive"), source[1]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / dataset.folder).write_bytes(b"mine")
    (tmp_path / "two" / dataset.folder / "test_batch").mkdir(parents=True)
    for folder, reason in ((tmp_path / "one", "exists"), (tmp_path / "two", "directory")):
        before = contents(folder)
        with pytest.raises(
            UserError, match=rf"{reason}; no data in .* was changed; choose another"
        ):
            obtain(dataset, folder, archive=archive)
        assert contents(folder) == before


def test_a_folder_of_somebody_else_serves_if_complete_and_is_refused_if_not(source, tmp_path):
    archive, dataset = pack(source, tmp_path / "archive"), source[1]
    shutil.copytree(source[0], tmp_path / "data")
    (tmp_path / "data").chmod(0o555)
    try:
        with obeyed_permissions():
            assert obtain(dataset, tmp_path / "data", archive=archive) is False
            assert len(load_cifar(dataset, tmp_path / "data").train_labels) == 50
            (tmp_path / "data" / dataset.folder / "test_batch").write_bytes(b"other")
            with pytest.raises(
                UserError, match=r"denied; no data in .* was changed; choose another"
            ):
                obtain(dataset, tmp_path / "data", archive=archive)
    finally:
        (tmp_path / "data").chmod(0o755)
