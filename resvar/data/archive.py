"""The files of a dataset from a tar archive of any usual compression.

An archive is untrusted until its files have their published MD5. So every limit applies before the
library that would allocate: tarfile reads names, extended headers and maps of holes whole, however
large an archive claims that they are.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from resvar.data.cifar import LARGEST_FILE, Dataset, md5_of
from resvar.data.transfer import megabytes, show_progress
from resvar.files import flush_folder, open_regular

LARGEST_ARCHIVE = 2_000_000_000
"""Bytes, packed or unpacked; CIFAR-10 has 182 million, a repacked archive may have more."""

MOST_MEMBERS = 100_000
"""Of an archive."""

LARGEST_HEADER = 1 << 15
"""Bytes that describe one member: its name, extended headers, map of holes."""

USUAL_HEADER = 1 << 12
"""Bytes. Larger ones must be rare in an archive: tarfile's time grows with their square."""

LARGEST_WINDOW = 1 << 28
"""Bytes of memory for decompressing xz; `xz -9` needs 67 million."""

CHUNK = 1 << 18
TEMPORARY = ".resvar-"


class BadArchiveError(Exception):
    """An archive is not usable; the text continues a sentence after its name: `it is …`."""


def unpack(dataset: Dataset, folder: Path, archive: Path, show: bool) -> None:
    """Move a dataset's files from an archive into place: all of them, verified, or none.

    Raises:
        BadArchiveError: no tar archive, a missing file, or a name that leads out of the folder.
        UserError: `archive` is not a regular file.
        OSError: such as a full disk.
    """
    target = folder / dataset.folder
    # In the same file system, also where `target` is a link: moving is atomic there.
    place = target if target.is_dir() else folder
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=place) as name:
        temporary = Path(name)
        _collect(dataset, archive, temporary, show)
        target.mkdir(exist_ok=True)
        for file in dataset.files:  # before the first one moves
            if (target / file).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target / file)
        for file in dataset.files:
            (temporary / file).replace(target / file)
        flush_folder(target)
    flush_folder(folder)


def require_archive(path: Path) -> None:
    """Check that a file begins as a tar archive does.

    Raises:
        BadArchiveError: it does not.
        UserError: it is not a regular file.
        OSError: it cannot be read.
    """
    with _opened_tar(path):
        pass


def remove_stale(dataset: Dataset, folder: Path) -> None:
    """Remove what killed processes left of unpacking; no other process may work there."""
    for place in (folder, folder / dataset.folder):
        for path in place.glob(f"{TEMPORARY}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


# --- members --------------------------------------------------------------------------------------


def _collect(dataset: Dataset, archive: Path, temporary: Path, show: bool) -> None:
    """Copy the dataset's files, wherever they lie in the archive, to `temporary` and verify them.

    The archive is read once, to its end: a bad name after the last needed file is refused too.
    """
    wrong = dict.fromkeys(dataset.files, "is not in it")
    title = f"Unpacking and checking {dataset.title}"
    with (
        _opened_tar(archive) as (raw, tape, tar),
        show_progress(title, archive.stat().st_size, 0, show, lines=False) as tell,
    ):
        member, number = tar.firstmember, 0
        while member is not None:
            _check_member(number, member)
            path = temporary / PurePosixPath(member.name).name
            if path.name in wrong and not member.isdir():
                # A name may occur twice; the official file counts, first or last.
                with tape.allowing(member.size):
                    problem = _extract(dataset, tar, member, path, lambda: tell(raw.tell()))
                wrong[path.name] = problem
                if not problem:
                    del wrong[path.name]
            tell(raw.tell())
            tar.members.clear()  # tarfile keeps all of them, and global headers: in sum gigabytes
            tar.pax_headers.clear()
            tape.next_member()
            member, number = tar.next(), number + 1
    for name, problem in wrong.items():
        raise BadArchiveError(f"{name} {problem}")


@contextlib.contextmanager
def _opened_tar(archive: Path) -> Iterator[tuple[io.FileIO, _Tape, Any]]:
    """An archive as a file, as the tape in it, and as tarfile's reader of that tape."""
    with (
        open_regular(archive) as packed,
        _describing_damage(),
        io.FileIO(packed.fileno(), closefd=False) as raw,
        _decompressed(raw, archive.name) as plain,
    ):
        tape = _Tape(plain)
        yield raw, tape, tarfile.TarFile(fileobj=tape)  # type: ignore[arg-type]  # no other methods


@contextlib.contextmanager
def _describing_damage() -> Iterator[None]:
    try:
        yield
    except (
        tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError,
        RecursionError, MemoryError,
    ) as error:  # fmt: skip
        raise BadArchiveError("it is not a tar archive, or it is cut or damaged") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise BadArchiveError("it is cut or damaged") from error


def _check_member(number: int, member: tarfile.TarInfo) -> None:
    """Refuse an archive that is hostile or far larger than the dataset's."""
    if number >= MOST_MEMBERS:
        raise BadArchiveError(f"it has more than {MOST_MEMBERS:,} members")
    parts = re.split(r"[/\\]", member.name)
    if parts[0] == "" or re.match("[A-Za-z]:", parts[0]) or ".." in parts:  # also as Windows reads
        raise BadArchiveError(f"its member {member.name[:200]!r} would land outside the folder")
    if member.size < 0 or member.offset_data + member.size > LARGEST_ARCHIVE:
        raise BadArchiveError(f"it unpacks to more than {megabytes(LARGEST_ARCHIVE)}")


def _extract(
    dataset: Dataset,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    path: Path,
    advanced: Callable[[], None],
) -> str:
    """Copy a member to `path` if it is the official file of that name; returns any problem."""
    if not member.isreg():
        raise BadArchiveError(f"its member {member.name[:200]!r} is a link or a device, not a file")
    if member.size > LARGEST_FILE:
        raise BadArchiveError(
            f"its member {member.name[:200]!r} has {megabytes(member.size)}, more than any file "
            f"of {dataset.title}"
        )
    source = tar.extractfile(member)
    assert source is not None  # it is a regular file
    md5 = md5_of()
    with path.open("wb") as file:
        while chunk := source.read(CHUNK):
            md5.update(chunk)
            file.write(chunk)
            advanced()
        file.flush()
        os.fsync(file.fileno())
    if md5.hexdigest() == dataset.md5[path.name]:
        return ""
    path.unlink()
    return (
        f"in it is not the official file (its MD5 is {md5.hexdigest()}, "
        f"the published one is {dataset.md5[path.name]})"
    )


class _Tape:
    """A decompressed archive, read forwards only, with an allowance for what tarfile reads.

    Skipped bytes, such as those of an unneeded member, cost no allowance and no memory.
    """

    def __init__(self, source: io.BufferedIOBase) -> None:
        self.source, self.position, self.allowance = source, 0, LARGEST_HEADER

    def next_member(self) -> None:
        """Allow for one more header."""
        self.allowance = min(LARGEST_HEADER, self.allowance + USUAL_HEADER)

    @contextlib.contextmanager
    def allowing(self, size: int) -> Iterator[None]:
        """Allow for the content of a member meanwhile."""
        kept, self.allowance = self.allowance, size
        yield
        self.allowance = kept

    def read(self, size: int) -> bytes:
        if size > self.allowance:
            raise BadArchiveError("a header in it is larger than any of an honest archive")
        data = self.source.read(size)
        self.allowance -= len(data)
        self.position += len(data)
        return data

    def seek(self, position: int) -> None:
        while self.position < position:
            data = self.source.read(min(CHUNK, position - self.position))
            if not data:
                break  # the next read gives nothing, and tarfile calls the archive cut
            self.position += len(data)
        if self.position > position:
            raise tarfile.ReadError("it leads backwards")

    def tell(self) -> int:
        return self.position


# --- compression ----------------------------------------------------------------------------------

_PROGRAMS = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x1f\x9d": "gzip",  # by compress; Python does not know it
}
"""The first bytes of a compressed file → the program that unpacks it with `-dc`."""

_OTHER_ARCHIVES = {
    b"PK\x03\x04": "zip", b"Rar!": "rar", b"7z\xbc\xaf": "7z", b"LZIP": "lzip", b"\x89LZO": "lzop",
}  # fmt: skip


@contextlib.contextmanager
def _decompressed(packed: io.FileIO, name: str) -> Iterator[io.BufferedIOBase]:
    """The tar in a compressed file, in memory that does not depend on what the file claims."""
    head = packed.read(512)
    packed.seek(0)
    program, other = _find_start(head, _PROGRAMS), _find_start(head, _OTHER_ARCHIVES)
    if re.match(rb"\s*<(!doctype|html|\?xml|head|body)", head, re.IGNORECASE):
        raise BadArchiveError(
            "it is not a tar archive but a web page, such as a sign-in form or an error message"
        )
    if other:
        raise BadArchiveError(
            f"it is not a tar archive but a {other} file; unpack it, and repack its files with "
            "`tar czf FILE.tar.gz FOLDER`"
        )
    if program:
        with _piped(program, packed, name) as plain:
            yield plain
    elif head.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=packed) as plain:
            yield plain
    elif head.startswith(b"BZh"):
        with bz2.BZ2File(packed) as plain:
            yield plain
    elif head.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
        yield io.BufferedReader(_Xz(packed), CHUNK)
    else:
        yield io.BufferedReader(packed, CHUNK)


def _find_start(head: bytes, known: Mapping[bytes, str]) -> str | None:
    return next((name for magic, name in known.items() if head.startswith(magic)), None)


@contextlib.contextmanager
def _piped(program: str, packed: io.FileIO, name: str) -> Iterator[Any]:
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [program, "-dc"], stdin=packed, stdout=subprocess.PIPE, stderr=said
            )
        except FileNotFoundError:
            raise BadArchiveError(
                f"it is compressed by {program}, and that program is not installed here; install "
                f"it, or unpack the file elsewhere with `{program} -d {name}`"
            ) from None
        assert process.stdout is not None
        try:
            with process.stdout as plain:
                yield plain
        except tarfile.TarError as error:
            if process.wait() <= 0:  # it succeeded, or ended because its reader closed
                raise
            said.seek(0)
            reason = " ".join(said.read(300).decode(errors="replace").split())
            raise BadArchiveError(f"{program} cannot unpack it ({reason})") from error
        finally:
            process.kill()
            process.wait()


class _Xz(io.RawIOBase):
    """Decompresses xz; unlike lzma.LZMAFile in limited memory."""

    def __init__(self, packed: io.FileIO) -> None:
        self.packed, self.decoder = packed, _new_decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            more = b""
            if self.decoder.eof:  # perhaps another stream follows
                more = self.decoder.unused_data.lstrip(b"\0") or self.packed.read(CHUNK)
                if not more:
                    return 0
                self.decoder = _new_decoder()
            elif self.decoder.needs_input and not (more := self.packed.read(CHUNK)):
                raise EOFError
            data = self.decoder.decompress(more, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _new_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=LARGEST_WINDOW)
