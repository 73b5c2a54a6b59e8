from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resvar import files
from resvar.errors import UserError
from resvar.files import configs, replacing, shipped, write_json, write_output, write_text
from resvar.strict_yaml import read_yaml

# --- the shipped configurations -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "variants",
            {"original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact"},
        ),
        ("protocols", {"paper", "short", "quick"}),
    ],
)
def test_the_shipped_configurations_are_there_and_can_be_read(kind, names):
    found = shipped(kind)
    assert names <= set(found)
    for name, path in found.items():
        assert path == configs() / kind / f"{name}.yaml"
        assert read_yaml(path)


def test_the_published_figures_are_shipped():
    assert read_yaml(configs() / "published.yaml")
    assert shipped("sweeps")


# --- writes that are whole or not there -----------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_by_what_was_written(tmp_path, durable):
    path = tmp_path / "a.txt"
    for content in (b"old", b"new and longer", b""):
        with replacing(path, durable) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_on_the_disk_before_it_takes_the_name_and_the_name_after(tmp_path, disk_calls):
    write_json(tmp_path / "a.json", {})
    assert disk_calls == ["flush a.json.tmp", "a.json.tmp becomes a.json", f"flush {tmp_path.name}"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("before", [b"old", None])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path, error, before):
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_bytes(before)

    def write_half():
        with replacing(path) as file:
            file.write(b"half of the new")
            file.flush()
            assert (path.read_bytes() if before else None) == before  # a reader meets the old one
            raise error

    with pytest.raises(error):
        write_half()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_json_is_standard_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 0.1], "b": None})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 0.1], "b": None}
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": number})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 0.1], "b": None}


def test_the_new_file_of_a_write_has_a_name_of_its_own(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
        names = {p.name for p in tmp_path.iterdir()}
        assert len(names) == 2
        assert {p.name for p in files.stale_temporaries(tmp_path, r"a\.txt|b\.txt")} == names
        assert not files.stale_temporaries(tmp_path, r"txt|a-txt")
    assert path.read_bytes() == b"first"  # it was the last to end
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_very_long_name_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 120 + ".html")
    write_text(path, "x")
    assert path.read_text(encoding="utf-8") == "x"


def test_nothing_is_written_through_a_planted_link(tmp_path, monkeypatch):
    mine, path = tmp_path / "mine", tmp_path / "a.txt"
    mine.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)  # foreseen after all
    (tmp_path / f"a.txt.{'0' * 16}.tmp").symlink_to(mine)
    (tmp_path / "a.txt.tmp").symlink_to(mine)
    with pytest.raises(FileExistsError):
        write_text(path, "new")
    monkeypatch.undo()
    path.symlink_to(mine)
    write_text(path, "new")
    assert not path.is_symlink()
    assert mine.read_text(encoding="utf-8") == "mine"
    (tmp_path / "log").symlink_to(mine)
    with pytest.raises(UserError, match="a link, not a regular file"):
        files.open_to_append(tmp_path / "log")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_replaced_file_keeps_its_mode_and_a_new_one_has_that_of_the_umask(tmp_path, mode):
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(mode)
    before = os.umask(0o027)
    try:
        write_text(old, "x")
        write_text(new, "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == mode
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_root_keeps_the_owner_of_a_file(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    path = tmp_path / "a"
    path.touch()
    os.chown(path, 12, 34)
    write_text(path, "x")
    assert (path.stat().st_uid, path.stat().st_gid) == (12, 34)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_alike_whatever_system_wrote_them(tmp_path, end):
    (tmp_path / "a").write_bytes(f"ä: 1{end}b: 2{end}".encode())
    assert files.read_text(tmp_path / "a", 100, "note") == "ä: 1\nb: 2\n"


# --- what is not a regular file -------------------------------------------------------------------


@pytest.fixture(params=["directory", "named pipe", "socket", "device"])
def no_file(request, tmp_path):
    path = tmp_path / "x"
    if request.param == "directory":
        path.mkdir()
    elif request.param == "named pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")  # not everybody may make a device
    return path, request.param


def test_what_is_no_regular_file_is_refused_and_not_waited_for(no_file):
    path, kind = no_file
    for read in (files.open_regular, lambda path: files.read_text(path, 100, "note")):
        with pytest.raises(UserError, match=f"x: .*this is a {kind}, not a regular"):
            read(path)
    with pytest.raises(UserError, match=r"x: .*, not a regular file"):  # of a link, the link
        files.open_to_append(path)


def test_a_pipe_put_there_after_the_first_look_is_refused_too(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "x")
    looks = []

    def first_look_is_late(path, status):
        looks.append(path)
        if len(looks) > 1:
            look(path, status)

    look = files._require_regular
    monkeypatch.setattr(files, "_require_regular", first_look_is_late)
    with pytest.raises(UserError, match="named pipe"):
        files.open_regular(tmp_path / "x")


# --- a file that a person named -------------------------------------------------------------------


def test_output_follows_links(tmp_path):
    target, link, dangling = tmp_path / "target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "new")
    write_output(link, b"1")
    write_output(dangling, b"2")
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert (target.read_bytes(), (tmp_path / "new").read_bytes()) == (b"1", b"2")


def test_output_is_written_into_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(path.read_bytes)
        write_output(path, b"x" * 100_000)
        assert read.result(60) == b"x" * 100_000
    assert path.is_fifo()


def test_a_pipe_without_a_reader_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READER_TIMEOUT", 0.1)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"^--out .*pipe: no process reads this named pipe; start"):
        write_output(path, b"x")
    assert path.is_fifo()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_root_replaces_no_device_and_writes_on_no_disk(tmp_path):
    null, disk = tmp_path / "null", tmp_path / "disk"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(disk, stat.S_IFBLK | 0o600, os.makedev(7, 99))
    with contextlib.suppress(UserError):  # a file system may forbid the use of devices
        write_output(null, b"x")
    assert null.is_char_device()
    with pytest.raises(UserError, match="this is a disk"):
        write_output(disk, b"x")
    assert disk.is_block_device()


def test_output_is_written_into_a_device():
    for name in ("null", "full"):
        assert Path("/dev", name).is_char_device()
    write_output(Path("/dev/null"), b"x")
    with pytest.raises(UserError, match=r"--out /dev/full: .*No space left"):
        write_output(Path("/dev/full"), b"x")
    for name in ("null", "full"):
        assert Path("/dev", name).is_char_device()


def test_an_open_file_named_by_its_descriptor_gets_the_output_at_its_end(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        file.write(b"before ")
        file.flush()
        write_output(Path(f"/dev/fd/{file.fileno()}"), b"after")
    assert (tmp_path / "log").read_bytes() == b"before after"


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EACCES])
def test_output_is_written_in_place_where_the_name_cannot_be_replaced(tmp_path, monkeypatch, code):
    """A mount point is busy; the folder of a file that one may write can be read-only."""
    path = tmp_path / "a"
    path.write_bytes(b"a longer old content")
    inode = path.stat().st_ino

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", fail)
    write_output(path, b"new")
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", inode)
    with pytest.raises(UserError, match=r"--out .*b: cannot be written"):
        write_output(tmp_path / "b", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_keeps_the_old_output(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_output(path, b"new")
    assert path.read_bytes() == b"old"


def test_many_may_write_one_file_at_once(tmp_path):
    path, contents = tmp_path / "a", [bytes([65 + n]) * 50_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write_output, path, content) for content in contents]:
            done.result()
    assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_output_that_cannot_be_a_file_is_one_sentence(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (Path(), tmp_path, tmp_path / "circle", tmp_path / "no" / "a", Path("a\0b")):
        with pytest.raises(UserError, match=r"^--out .*\.$") as caught:
            write_output(path, b"x")
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["circle"]
