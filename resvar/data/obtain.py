"""`resvar data`: the official files of CIFAR, from a local archive or from the network.

Nothing is unpickled here. All files are present and have the published MD5 before the first one
moves into place.
"""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

from resvar.console import log
from resvar.data.archive import BadArchiveError, remove_stale, unpack
from resvar.data.cifar import Dataset, find_problems
from resvar.data.download import OTHER_SOURCE, check_url, download, without_password
from resvar.data.lock import exclusive
from resvar.errors import RunError, UserError
from resvar.files import open_regular

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
) -> bool:
    """Put the official files into `folder`, from a local tar archive or from the network.

    Nothing changes unless every file is present and has the published MD5. An interrupted download
    is kept and resumed by the next call. Where another process fetches data into the folder, this
    one waits for its end. Messages and progress go to stderr.

    Returns:
        False where all files were already in place, also from another process that was waited for;
        True where they were fetched.

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
        check_url(dataset.home if url is None else url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be used as a folder ({error.strerror}); choose another with --dir."
        ) from error
    try:
        with exclusive(folder, log if progress else lambda _line: None):
            if not find_problems(dataset, folder):
                return False
            remove_stale(dataset, folder)
            if archive is not None:
                _obtain_from_archive(dataset, folder, archive, progress)
            else:
                _obtain_from_network(dataset, folder, url, progress)
    except OSError as error:
        failure = f"{error.filename or folder}: {error.strerror or error}; no data in {folder} was "
        if error.errno in OBSTACLES:
            raise UserError(f"{failure}changed; choose another folder with --dir.") from error
        raise RunError(
            f"{failure}changed; run the same command again once there is room and permission."
        ) from error
    return True


def _check_archive_opens(archive: Path) -> None:
    try:
        open_regular(archive).close()
    except OSError as error:
        raise UserError(
            f"{archive}: cannot be read ({error.strerror}); name a tar archive with --archive FILE."
        ) from error


def _obtain_from_archive(dataset: Dataset, folder: Path, archive: Path, show: bool) -> None:
    try:
        unpack(dataset, folder, archive, show)
    except BadArchiveError as bad:
        raise UserError(
            f"{archive}: {bad}; nothing was taken from it, the official archive of "
            f"{dataset.title} is {dataset.home}."
        ) from bad


def _obtain_from_network(dataset: Dataset, folder: Path, url: str | None, show: bool) -> None:
    address = url or dataset.home
    # A partial download belongs to its address: it is never completed with another server's bytes.
    mark = hashlib.sha256(address.encode(errors="replace")).hexdigest()[:8]
    part = folder / f"{dataset.archive.name}.{mark}.part"
    download(address, part, show)
    try:
        unpack(dataset, folder, part, show)
    except BadArchiveError as bad:
        part.unlink(missing_ok=True)
        kind = UserError if url else RunError  # the user can correct an address of their own
        raise kind(
            f"{without_password(address)}: what came from there was deleted again, because {bad}; "
            f"{OTHER_SOURCE}"
        ) from bad
    part.unlink(missing_ok=True)
