"""Where built libraries are kept: nobody else can put one there, and a damaged one is not used."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import pytest

from resvar.kernels import cache

CONTENT = b"a library" * 1000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="operators are built on Linux only")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache, and a temporary folder of the system beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return cache.private_folder(print)


@pytest.fixture
def library(folder):
    return kept(folder)


def kept(folder, content=CONTENT):
    with cache.building(folder, print) as work:
        (work / "fused.so").write_bytes(content)
        return cache.keep(work / "fused.so", folder, "key")


def give_away(path, monkeypatch):
    """Let `path` belong to another user."""
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


def test_a_library_is_named_by_its_digest_and_found(folder, library):
    digest = hashlib.sha256(CONTENT).hexdigest()[:16]
    assert library == folder / f"fused-key-{digest}.so"
    assert cache.digest_in(library.name) == digest
    assert cache.find_library(folder, "key") == library
    assert cache.find_library(folder, "other") is None


@pytest.mark.parametrize(
    "content", [b"", CONTENT[:4000], CONTENT[:-1] + b"X"], ids=["empty", "cut", "changed"]
)
def test_a_damaged_library_is_not_found_and_is_replaced(folder, library, content):
    library.write_bytes(content)
    said: list[str] = []
    assert cache.find_library(folder, "key", said.append) is None
    assert said == [f"{library} is not used: it is damaged, or others can write to it."]
    assert kept(folder) == cache.find_library(folder, "key") == library


def test_a_library_of_another_user_is_not_found(folder, library, monkeypatch):
    give_away(library, monkeypatch)
    assert cache.find_library(folder, "key") is None


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_library_that_others_can_write_is_not_found(folder, library, mode):
    library.chmod(mode)
    assert cache.find_library(folder, "key") is None


def test_a_link_to_a_library_that_others_can_replace_is_not_followed(folder, library, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    library.rename(shared / library.name)
    library.symlink_to(shared / library.name)
    assert cache.find_library(folder, "key") == library
    shared.chmod(0o777)
    assert cache.find_library(folder, "key") is None


def test_only_its_user_can_write_to_what_it_makes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    before = os.umask(0)
    try:
        library = kept(cache.private_folder(print))
    finally:
        os.umask(before)
    assert library.stat().st_mode & 0o777 == 0o644
    for folder in (tmp_path / "a", tmp_path / "a" / "b", library.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", ["cache/resvar", "cache"])
@pytest.mark.parametrize("mode", [0o775, 0o757, None], ids=["group", "all", "owner"])
@pytest.mark.usefixtures("folder")
def test_a_cache_that_others_can_write_is_left_for_a_private_one(
    tmp_path, monkeypatch, place, mode
):
    shared = tmp_path / place
    if mode is None:
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        give_away(shared, monkeypatch)
    else:
        shared.chmod(mode)
    said: list[str] = []
    private = cache.private_folder(said.append)
    assert private == tmp_path / "tmp" / f"resvar-{os.geteuid()}"
    assert private.stat().st_mode & 0o777 == 0o700
    assert len(said) == 1
    assert said[0].startswith(f"The fused operators are kept in {private}, since ")
    assert str(shared) in said[0]


@pytest.mark.usefixtures("folder")
def test_where_the_private_folder_is_taken_too_there_is_none(tmp_path):
    (tmp_path / "cache").chmod(0o777)
    taken = tmp_path / "tmp" / f"resvar-{os.geteuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    with pytest.raises(RuntimeError, match=f"others can write to .*cache.* and .*{taken.name}"):
        cache.private_folder(print)


def test_a_sticky_folder_above_is_no_danger(folder, tmp_path):
    (tmp_path / "cache").chmod(0o1777)  # as /tmp
    assert cache.private_folder(print) == folder


def test_a_folder_without_programs_is_left(folder, tmp_path, monkeypatch):
    class Mounted:
        f_flag = os.ST_NOEXEC

    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: Mounted if path == folder else real(path))
    said: list[str] = []
    assert cache.private_folder(said.append).parent == tmp_path / "tmp"
    assert said[0].endswith(f"since {folder} is mounted noexec.")


def test_the_cache_is_never_below_the_current_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache.cache() == Path.home() / ".cache" / "resvar"


def test_a_library_is_on_disk_before_it_has_its_name(folder, disk_calls):
    library = kept(folder)
    assert disk_calls == ["flush fused.so", f"fused.so becomes {library.name}", "flush resvar"]


def test_what_a_killed_build_has_left_is_removed(folder):
    (folder / "build" / "deep").mkdir(parents=True)
    with cache.building(folder, print) as work:
        assert list(work.iterdir()) == []
    assert [path.name for path in folder.iterdir()] == ["build.lock"]


def test_the_second_waits_and_says_so(folder, monkeypatch):
    import fcntl

    monkeypatch.setattr(cache, "SILENT_WAIT", 0.1)
    with (folder / "build.lock").open("a", encoding="utf-8") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        said: list[str] = []

        def release(text: str) -> None:
            said.append(text)
            fcntl.flock(first, fcntl.LOCK_UN)

        with cache.building(folder, release):
            pass
    assert said == [f"Waiting for another process that builds fused operators in {folder} …"]
