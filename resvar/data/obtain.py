"""`resvar data`: the official files of CIFAR, from a local archive or from the network.

Nothing is unpickled here. All files are present and have the published MD5 before the first one
moves into place.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import lzma
import os
import re
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from resvar.data.cifar import LARGEST_FILE, Dataset, find_problems, md5_of
from resvar.errors import RunError, UserError
from resvar.files import flush_folder

if TYPE_CHECKING:
    from rich.console import Console

LARGEST_ARCHIVE = 2_000_000_000
"""Bytes, packed or unpacked; CIFAR-10 has 182 million, a repacked archive may have more."""

MOST_MEMBERS = 100_000
"""Of an archive; tarfile keeps each in memory, so that millions of empty ones would fill it."""

CHUNK = 1 << 18
TIMEOUT = 30
"""Seconds without a byte after which the server counts as dead."""


def obtain(
    dataset: Dataset,
    folder: Path,
    archive: Path | None = None,
    url: str | None = None,
    progress: bool = True,
) -> bool:
    """Put the official files into `folder`, from a local tar archive or from the network.

    Nothing changes unless every file is present and has the published MD5. An interrupted download
    is kept and resumed by the next call. Messages and progress go to stderr.

    Returns:
        False where all files were already in place, True where they were fetched.

    Raises:
        UserError: the archive, the address or the folder is wrong.
        RunError: the network or the disk failed; the message says how to resume.
    """
    if archive is not None and url is not None:
        raise UserError("--archive and --url exclude each other: name one source.")
    if not find_problems(dataset, folder):
        return False
    if archive is not None:
        _check_archive_opens(archive)
    else:
        _check_url(url or dataset.url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be used as a folder ({error.strerror}); choose another with --dir."
        ) from error
    try:
        if archive is not None:
            _obtain_from_archive(dataset, folder, archive, progress)
        else:
            _obtain_from_network(dataset, folder, url, progress)
    except OSError as error:
        raise RunError(
            f"{error.filename or folder}: {error.strerror or error}; no data in {folder} was "
            "changed; run the same command again once there is room and permission."
        ) from error
    return True


# --- from an archive ------------------------------------------------------------------------------


class _BadArchiveError(Exception):
    """An archive is not usable; the text continues a sentence after its name: `it is …`."""


_DAMAGE = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
)
"""Raised by reading a damaged archive, as is an OSError without a number."""


def _check_archive_opens(archive: Path) -> None:
    try:
        if archive.exists() and not archive.is_file():  # a pipe would wait for ever
            raise UserError(f"{archive}: this is no file; name a tar archive with --archive FILE.")
        with archive.open("rb"):
            pass
    except OSError as error:
        raise UserError(
            f"{archive}: cannot be read ({error.strerror}); name a tar archive with --archive FILE."
        ) from error


def _obtain_from_archive(dataset: Dataset, folder: Path, archive: Path, show: bool) -> None:
    try:
        _unpack(dataset, folder, archive, show)
    except _BadArchiveError as bad:
        raise UserError(
            f"{archive}: {bad}; nothing was taken from it, the official archive of "
            f"{dataset.title} is {dataset.url}."
        ) from bad


def _unpack(dataset: Dataset, folder: Path, archive: Path, show: bool) -> None:
    """Move a dataset's files from an archive into place: all of them, verified, or none.

    Raises:
        _BadArchiveError: no tar archive, a missing file, or a name that leads out of the folder.
        OSError: such as a full disk.
    """
    # Inside `folder`: moving within a file system is atomic.
    with tempfile.TemporaryDirectory(prefix=".resvar-", dir=folder) as name:
        temporary = Path(name)
        _collect(dataset, archive, temporary, show)
        target = folder / dataset.folder
        target.mkdir(exist_ok=True)
        for file in dataset.files:
            (temporary / file).replace(target / file)
        flush_folder(target)
    flush_folder(folder)


def _collect(dataset: Dataset, archive: Path, temporary: Path, show: bool) -> None:
    """Copy the dataset's files, wherever they lie in the archive, to `temporary` and verify them.

    The archive is read once, to its end: a bad name after the last needed file is refused too.
    """
    wrong = dict.fromkeys(dataset.files, "is not in it")
    title = f"Unpacking and checking {archive.name}"
    with (
        archive.open("rb") as packed,
        _progress(title, archive.stat().st_size, 0, show, lines=False) as tell,
    ):
        try:
            with tarfile.open(fileobj=packed, mode="r:*") as tar:
                for number, member in enumerate(tar):
                    _check_member(number, member)
                    path = temporary / PurePosixPath(member.name).name
                    if path.name in wrong and not member.isdir():
                        # A name may occur twice; the official file counts, first or last.
                        problem = _extract(dataset, tar, member, path, lambda: tell(packed.tell()))
                        wrong[path.name] = problem
                        if not problem:
                            del wrong[path.name]
                    tell(packed.tell())
        except _DAMAGE as error:
            raise _BadArchiveError("it is no tar archive, or it is cut or damaged") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise _BadArchiveError("it is cut or damaged") from error
    for name, problem in wrong.items():
        raise _BadArchiveError(f"{name} {problem}")


def _check_member(number: int, member: tarfile.TarInfo) -> None:
    """Refuse an archive that is hostile or far larger than the dataset's."""
    if number >= MOST_MEMBERS:
        raise _BadArchiveError(f"it has more than {MOST_MEMBERS:,} members")
    parts = re.split(r"[/\\]", member.name)
    if parts[0] == "" or re.match("[A-Za-z]:", parts[0]) or ".." in parts:  # also as Windows reads
        raise _BadArchiveError(f"its member {member.name[:200]!r} would land outside the folder")
    if member.size < 0 or member.offset_data + member.size > LARGEST_ARCHIVE:
        raise _BadArchiveError(f"it unpacks to more than {_megabytes(LARGEST_ARCHIVE)}")


def _extract(
    dataset: Dataset,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    path: Path,
    advanced: Callable[[], None],
) -> str:
    """Copy a member to `path` if it is the official file of that name; returns any problem."""
    if not member.isreg():
        raise _BadArchiveError(
            f"its member {member.name[:200]!r} is a link or a device, not a file"
        )
    if member.size > LARGEST_FILE:
        raise _BadArchiveError(
            f"its member {member.name[:200]!r} has {_megabytes(member.size)}, more than any file "
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


# --- from the network -----------------------------------------------------------------------------


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        usable = False
    if not usable or not url.isascii() or any(character <= " " for character in url):
        raise UserError(
            f"--url {url!r}: an address that begins with https:// or http:// is needed, without "
            "blanks (write %20) and in ASCII."
        )


def _obtain_from_network(dataset: Dataset, folder: Path, url: str | None, show: bool) -> None:
    address = url or dataset.url
    # A partial download belongs to its address: it is never completed with another server's bytes.
    mark = hashlib.sha256(address.encode(errors="replace")).hexdigest()[:8]
    part = folder / f"{PurePosixPath(dataset.url).name}.{mark}.part"
    _download(address, part, show)
    try:
        _unpack(dataset, folder, part, show)
    except _BadArchiveError as bad:
        part.unlink(missing_ok=True)
        kind = UserError if url else RunError  # the user can correct an address of their own
        raise kind(
            f"{address}: what came from there was deleted again, because {bad}; {_OTHER_SOURCE}"
        ) from bad
    part.unlink(missing_ok=True)


def _download(url: str, part: Path, show: bool) -> None:
    """Download into `part`, resuming where an earlier call was interrupted.

    Raises:
        UserError: the file is larger than any archive of a dataset.
        RunError: the server cannot be reached or refuses, or the connection was lost; `part` is
            kept, and the next call resumes at its end.
    """
    response, start, total = _ask(url, part.stat().st_size if part.exists() else 0)
    if response is None:
        return
    done, too_large = start, (total or 0) > LARGEST_ARCHIVE
    with (
        response,
        part.open("ab") as file,
        _progress(f"Downloading {url}", total, start, show) as tell,
    ):
        file.truncate(start)
        while not too_large and (total is None or done < total):
            try:
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _cut(url, done, total) from error
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            too_large = done > LARGEST_ARCHIVE
            tell(done)
    if too_large:
        part.unlink()
        raise UserError(
            f"{url}: this is larger than {_megabytes(LARGEST_ARCHIVE)} and so no archive of a "
            f"dataset; {_OTHER_SOURCE}"
        )
    if total is not None and done < total:
        raise _cut(url, done, total)


def _ask(url: str, start: int) -> tuple[http.client.HTTPResponse | None, int, int | None]:
    """Request the bytes from `start` on.

    Returns:
        The response, the position of its first byte (0 where the server starts over), and the
        total size where it is known. No response where the download is already complete.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "resvar"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response: http.client.HTTPResponse = _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:  # no bytes after `start`: complete, or another file
                whole = error.headers.get("Content-Range", "").strip() == f"bytes */{start}"
                return (None, start, start) if whole else _ask(url, 0)
            raise RunError(
                f"{url}: the server answered {error.code} ({error.reason}); {_OTHER_SOURCE}"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise RunError(
            f"{url}: the server cannot be reached ({reason}); {_OTHER_SOURCE}"
        ) from error
    if response.status != 206 or not start:
        return response, 0, response.length
    span = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if span is None or int(span[1]) != start:
        response.close()
        return _ask(url, 0)
    if span[2] != "*":
        return response, start, int(span[2])
    return response, start, None if response.length is None else start + response.length


_OTHER_SOURCE = "try another address with --url MIRROR, or a local archive with --archive FILE."


def _opener() -> urllib.request.OpenerDirector:
    """urllib's usual opener without file:, ftp: and data:, so that no redirect leads there."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _cut(url: str, done: int, total: int | None) -> RunError:
    size = _megabytes(total) if total is not None else "an unknown size"
    return RunError(
        f"{url}: the download was cut at {_megabytes(done)} of {size}; run the same command again "
        "to resume it."
    )


# --- progress -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(
    title: str, total: int | None, start: int, show: bool, lines: bool = True
) -> Iterator[Callable[[int], None]]:
    """Yields a function of the bytes done that shows progress on stderr.

    After the title a terminal shows a bar, and a log, with `lines`, a line per tenth.
    """
    if not show:
        yield lambda _done: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _tenths(console, total, start) if lines else lambda _done: None
        return
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task(title.split()[0], total=total, completed=start)
        yield lambda done: bar.update(task, completed=done)


def _tenths(console: Console, total: int | None, start: int) -> Callable[[int], None]:
    """A function that prints a line per tenth, or per 20 MB where the total is unknown."""
    step = max(total / 10, 1.0) if total is not None else 20e6
    printed = int(start / step)

    def tell(done: int) -> None:
        nonlocal printed
        if int(done / step) > printed:
            printed = int(done / step)
            text = f"{done / total:4.0%} of {_megabytes(total)}" if total else _megabytes(done)
            console.print(f"  {text}", markup=False, highlight=False)

    return tell


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
