"""`resvar data`: the official files of CIFAR, from a local archive or from the network.

Nothing is unpickled here. All files are present and have the published MD5 before the first one
moves into place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from resvar.console import file_size
from resvar.data.archive import BadArchiveError, remove_stale, require_archive, unpack
from resvar.data.cifar import Archive, Dataset, find_problems
from resvar.data.download import BRISK, OTHER_SOURCE, PATIENT, download
from resvar.data.lock import exclusive
from resvar.data.transfer import show_line
from resvar.data.web import Patience, check_proxy, check_url, without_password
from resvar.errors import RunError, Stopped, UserError

OBSTACLES = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip
"""Errors of a folder in which this user cannot put the files: trying again will not help."""


def obtain(
    dataset: Dataset,
    folder: Path,
    archive: Path | None = None,
    url: str | None = None,
    progress: bool = True,
    early: Patience = BRISK,
    last: Patience = PATIENT,
) -> bool:
    """Put the official files into `folder`, from a local tar archive or from the network.

    Nothing changes unless every file is present and has the published MD5. An interrupted download
    is kept and resumed by the next call. Where another process fetches data into the folder, this
    one waits for its end. Messages and progress go to stderr.

    Args:
        archive: a local archive; it must be one even where nothing is needed from it.
        url: the only address to ask, instead of the dataset's own sources.
        progress: show messages and progress.
        early: when a source is left for the next.
        last: when the last source is left.

    Returns:
        False where all files were already in place, also from another process that was waited for;
        True where they were fetched.

    Raises:
        UserError: the archive, the address or the folder is wrong.
        RunError: the network or the disk failed; the message says how to resume.
    """
    if archive is not None and url is not None:
        raise UserError("--archive and --url exclude each other: name one source.")
    if archive is not None:
        _check_archive(dataset, archive)
    if url is not None:
        check_url(url)
    if not find_problems(dataset, folder):
        return False
    wanted = dataset.archive if url is None else _from_one_address(dataset.archive, url)
    if archive is None:
        for source in wanted.sources:
            check_proxy(source)
    tell = show_line if progress else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be used as a folder ({error.strerror}); choose another with --dir."
        ) from error
    try:
        with exclusive(folder, tell or (lambda _line: None)):
            if not find_problems(dataset, folder):
                return False
            remove_stale(dataset, folder)
            if archive is not None:
                with _blaming(dataset, archive):
                    unpack(dataset, folder, archive, progress)
            else:
                part = _part(dataset, folder, wanted)
                try:
                    download(wanted, part, tell, early, last)
                except KeyboardInterrupt:
                    raise Stopped(f"stopped; {_kept_part(part)}.") from None
                _unpack_download(dataset, folder, part, wanted, progress)
    except OSError as error:
        failure = f"{error.filename or folder}: {error.strerror or error}; no data in {folder} was "
        if error.errno in OBSTACLES:
            raise UserError(f"{failure}changed; choose another folder with --dir.") from error
        raise RunError(
            f"{failure}changed; rerun the command once there is room and permission."
        ) from error
    return True


def _check_archive(dataset: Dataset, archive: Path) -> None:
    try:
        with _blaming(dataset, archive):
            require_archive(archive)
    except OSError as error:
        raise UserError(
            f"{archive}: cannot be read ({error.strerror}); name a tar archive with --archive FILE."
        ) from error


@contextlib.contextmanager
def _blaming(dataset: Dataset, archive: Path) -> Iterator[None]:
    """Turn a fault of a local archive into a sentence about the user's input."""
    try:
        yield
    except BadArchiveError as bad:
        raise UserError(
            f"{archive}: {bad}; nothing was taken from it, the official archive of "
            f"{dataset.title} is {dataset.home}."
        ) from bad


# --- the network ----------------------------------------------------------------------------------


def _from_one_address(official: Archive, url: str) -> Archive:
    """The archive at an address that the user named; only its files can vouch for its bytes."""
    if url in official.sources:
        return replace(official, sources=(url,))
    return replace(official, sources=(url,), size=None, md5=None)


def _part(dataset: Dataset, folder: Path, wanted: Archive) -> Path:
    """The partial file of a download.

    All sources of the official archive share one. That of any other address is its own: it is never
    completed with another server's bytes.
    """
    owner = wanted.sources[0] if wanted.md5 is None else dataset.home
    mark = hashlib.sha256(owner.encode(errors="replace")).hexdigest()[:8]
    return folder / f"{wanted.name}.{mark}.part"


def _kept_part(part: Path) -> str:
    """What is left of a download that was stopped, and what a rerun does."""
    if not part.exists():
        return "nothing was downloaded yet; rerun the command to start again"
    return f"{file_size(part.stat().st_size)} are kept: rerun the command to resume"


def _unpack_download(
    dataset: Dataset, folder: Path, part: Path, wanted: Archive, show: bool
) -> None:
    try:
        unpack(dataset, folder, part, show)
    except BadArchiveError as bad:
        part.unlink(missing_ok=True)
        # The user can correct an address of their own.
        kind = RunError if wanted.md5 is not None else UserError
        raise kind(
            f"{without_password(wanted.sources[0])}: what came from there was deleted, because "
            f"{bad}; {OTHER_SOURCE}."
        ) from bad
    part.unlink(missing_ok=True)
