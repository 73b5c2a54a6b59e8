"""CIFAR-10 and CIFAR-100: get them, verify them, load them.

The official files are pickles, and a pickle can run any program while it is read. So each file
must have the published MD5 *before* it is unpickled, and what is unpickled are the very bytes that
were checked. Getting the data never unpickles anything. torch is not imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import lzma
import os
import pickle
import re
import shlex
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from resvar.errors import RunError, UserError, nearest
from resvar.files import flush_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

SIDE = 32
"""Height and width of every image, in pixels."""

LARGEST_FILE = 200_000_000
"""Bytes; the largest official file, CIFAR-100's `train`, has 155 million."""

LARGEST_ARCHIVE = 2_000_000_000
"""Bytes, packed or unpacked; CIFAR-10 has 182 million, and a repacked archive may hold more."""

MOST_MEMBERS = 100_000
"""In one archive; tarfile keeps each in memory, so that millions of empty ones would fill it."""

CHUNK = 1 << 18
TIMEOUT = 30
"""Seconds without a single byte after which a server is given up."""


@dataclass(frozen=True)
class Dataset:
    """What a dataset is made of, and how its official files are recognised."""

    name: str
    title: str
    folder: str
    url: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    md5: Mapping[str, str]
    label_key: bytes
    names_key: bytes
    classes: int

    @property
    def files(self) -> tuple[str, ...]:
        """Every file, in the order in which they are checked: training, test, names."""
        return (*self.train, *self.test, self.meta)

    @property
    def checksum(self) -> str:
        """SHA-256 of the lines `md5  filename`, as md5sum would print them: all files at once."""
        lines = "".join(f"{self.md5[name]}  {name}\n" for name in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


# The MD5s are those of torchvision.datasets; the authors' page gives only that of the archive.
DATASETS: dict[str, Dataset] = {
    "cifar10": Dataset(
        name="cifar10",
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        label_key=b"labels",
        names_key=b"label_names",
        classes=10,
    ),
    "cifar100": Dataset(
        name="cifar100",
        title="CIFAR-100",
        folder="cifar-100-python",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        meta="meta",
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
        label_key=b"fine_labels",
        names_key=b"fine_label_names",
        classes=100,
    ),
}


@dataclass(frozen=True)
class Images:
    """A dataset in memory. N training and M test images, in the official order.

    Images are uint8 [N, 32, 32, 3] and [M, 32, 32, 3] (height, width, RGB), contiguous; labels are
    int64 [N] and [M], from 0 to the number of classes less one. `checksum` names the data for
    records: see `Dataset.checksum`.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    checksum: str


def find_dataset(name: str) -> Dataset:
    """The dataset of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name in DATASETS:
        return DATASETS[name]
    hint = nearest(name, DATASETS) or f"; known are {', '.join(DATASETS)}."
    raise UserError(f"there is no dataset '{name}'{hint}")


def default_folder() -> Path:
    """Where datasets lie unless the user says otherwise: `$RESVAR_DATA`, else `data/`."""
    return Path(os.environ.get("RESVAR_DATA") or "data").expanduser()


def problems(dataset: Dataset, folder: Path) -> list[str]:
    """A sentence for each file that is missing or is not the official one; nothing is unpickled."""
    found = []
    for name in dataset.files:
        path = folder / dataset.folder / name
        try:
            if not path.is_file():
                found.append(f"{path}: this file is missing.")
                continue
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, _md5).hexdigest()
        except OSError as error:
            found.append(f"{path}: cannot be read ({error.strerror}).")
            continue
        if md5 != dataset.md5[name]:
            found.append(f"{path}: its MD5 is {md5}, the published one is {dataset.md5[name]}.")
    return found


def load(dataset: Dataset, folder: Path) -> Images:
    """Read a dataset from `folder`, which holds the dataset's own folder, and verify all of it.

    Raises:
        UserError: a file is missing, cannot be read, or is not the official one.
    """
    train_images, train_labels = _load_part(dataset, folder, dataset.train)
    test_images, test_labels = _load_part(dataset, folder, dataset.test)
    class_names = _load_class_names(dataset, folder)
    return Images(
        train_images, train_labels, test_images, test_labels, class_names, dataset.checksum
    )


def obtain(
    dataset: Dataset,
    folder: Path,
    archive: Path | None = None,
    url: str | None = None,
    progress: bool = True,
) -> bool:
    """Put the official files into `folder`, from a local tar archive or from the network.

    Nothing is touched unless every file is there and has the published MD5. An interrupted
    download is kept and goes on at the next call. Messages and progress go to stderr.

    Returns:
        False where everything was already there and right, True where it was got.

    Raises:
        UserError: the archive, the address or the folder is wrong.
        RunError: the network or the disk failed; the sentence says how to go on.
    """
    if archive is not None and url is not None:
        raise UserError("--archive and --url exclude each other: name one source.")
    if not problems(dataset, folder):
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
            "changed, and the same command may be run again once there is room and permission."
        ) from error
    return True


# --- loading --------------------------------------------------------------------------------------


def _load_part(
    dataset: Dataset, folder: Path, names: tuple[str, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of some files, one after the other."""
    import numpy as np

    images, labels = [], []
    for name in names:
        values = _load_file(dataset, folder, name)
        rows, classes = values.get(b"data"), values.get(dataset.label_key)
        try:
            numbers = np.asarray(classes, dtype=np.int64)
            sane = (
                isinstance(rows, np.ndarray)
                and rows.dtype == np.uint8
                and rows.shape == (len(numbers), 3 * SIDE * SIDE)
                and len(numbers) > 0
                and bool(((numbers >= 0) & (numbers < dataset.classes)).all())
            )
        except (TypeError, ValueError, OverflowError):
            sane = False
        if not sane or rows is None:
            raise UserError(
                f"{folder / dataset.folder / name}: this does not hold images and labels of "
                f"{dataset.title}; get it again with `{_command(dataset, folder)}`."
            )
        # A row of a file is the red plane, then the green, then the blue.
        images.append(rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels.append(numbers)
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


def _load_class_names(dataset: Dataset, folder: Path) -> tuple[str, ...]:
    names = _load_file(dataset, folder, dataset.meta).get(dataset.names_key)
    if (
        not isinstance(names, list)
        or len(names) != dataset.classes
        or not all(isinstance(name, bytes) for name in names)
    ):
        raise UserError(
            f"{folder / dataset.folder / dataset.meta}: this does not hold the class names of "
            f"{dataset.title}; get it again with `{_command(dataset, folder)}`."
        )
    return tuple(name.decode("ascii", "replace") for name in names)


def _load_file(dataset: Dataset, folder: Path, name: str) -> dict[Any, Any]:
    """The mapping in an official file: read once, checked, and only then unpickled."""
    path = folder / dataset.folder / name
    try:
        if not path.is_file():
            raise UserError(_missing(dataset, folder, name))
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    md5 = _md5(content).hexdigest()
    if md5 != dataset.md5[name]:
        raise UserError(
            f"{path}: this is not the official file of {dataset.title} (its MD5 is {md5}, the "
            f"published one is {dataset.md5[name]}), so it was not unpickled; get it again with "
            f"`{_command(dataset, folder)}`."
        )
    try:
        values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path}: this is not a pickle of {dataset.title} ({error}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: this is not a pickle of {dataset.title} (it holds no mapping).")
    return values


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values, nothing else: a second lock behind the MD5."""

    allowed = frozenset(
        [
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
        ]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _missing(dataset: Dataset, folder: Path, name: str) -> str:
    if (folder / name).is_file():
        return (
            f"{folder}: this is the folder of {dataset.title} itself or one like it; name the "
            f"folder above, which holds {dataset.folder}/, with --data DIR or RESVAR_DATA."
        )
    return (
        f"{folder / dataset.folder}: {dataset.title} is not there ({name} is missing); get it with "
        f"`{_command(dataset, folder)}` or name its folder with --data DIR or RESVAR_DATA."
    )


def _command(dataset: Dataset, folder: Path) -> str:
    """The command that gets the dataset into that folder, ready to be pasted into a shell."""
    which = "" if dataset.name == "cifar10" else f" --dataset {dataset.name}"
    return f"resvar data --dir {shlex.quote(str(folder))}{which}"


def _md5(content: bytes = b"") -> Any:
    """MD5, as published; declared to be no cryptography, for systems that forbid it as such."""
    return hashlib.md5(content, usedforsecurity=False)


# --- from an archive ------------------------------------------------------------------------------


class _BadArchiveError(Exception):
    """An archive is not what it should be; the text goes on after its name: `it is …`."""


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
"""What reading a damaged archive raises; a bare OSError without a number is the last of them."""


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
    """Take a dataset's files from an archive into place: all of them, verified, or none.

    Raises:
        _BadArchiveError: it is no tar, lacks a file, or a name leads out of the folder.
        OSError: the disk is full, and the like.
    """
    # Inside `folder`, so that the files move into place on one file system.
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
    """Copy the dataset's files, wherever in the archive they lie, to `temporary` and verify them.

    The archive is read once, from end to end: a bad name after the last needed file refuses it too.
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
                        # A name may stand twice; the right file counts, wherever it stands.
                        problem = _take(dataset, tar, member, path, lambda: tell(packed.tell()))
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
    """Refuse an archive that is hostile, or so large that it surely is not the dataset's."""
    if number >= MOST_MEMBERS:
        raise _BadArchiveError(f"it has more than {MOST_MEMBERS:,} members")
    parts = re.split(r"[/\\]", member.name)
    if parts[0] == "" or re.match("[A-Za-z]:", parts[0]) or ".." in parts:  # also as Windows reads
        raise _BadArchiveError(f"its member {member.name[:200]!r} would land outside the folder")
    if member.size < 0 or member.offset_data + member.size > LARGEST_ARCHIVE:
        raise _BadArchiveError(f"it unpacks to more than {_megabytes(LARGEST_ARCHIVE)}")


def _take(
    dataset: Dataset,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    path: Path,
    went_on: Callable[[], None],
) -> str:
    """Copy a member to `path` if it is the official file of that name; else what is wrong."""
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
    md5 = _md5()
    with path.open("wb") as file:
        while chunk := source.read(CHUNK):
            md5.update(chunk)
            file.write(chunk)
            went_on()
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
    # What one server sent is never continued with another's bytes: a part belongs to its address.
    mark = hashlib.sha256(address.encode(errors="replace")).hexdigest()[:8]
    part = folder / f"{PurePosixPath(dataset.url).name}.{mark}.part"
    _download(address, part, show)
    try:
        _unpack(dataset, folder, part, show)
    except _BadArchiveError as bad:
        part.unlink(missing_ok=True)
        kind = UserError if url else RunError  # who chose the address can mend it
        raise kind(
            f"{address}: what came from there was deleted again, because {bad}; {_OTHER_SOURCE}"
        ) from bad
    part.unlink(missing_ok=True)


def _download(url: str, part: Path, show: bool) -> None:
    """Fill `part` with what the address serves, going on where an earlier call was cut.

    Raises:
        UserError: what the address serves is larger than any archive of a dataset.
        RunError: the server cannot be reached or says no, or the connection was cut; then `part`
            stays, and the next call goes on from its end.
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
    """Ask for the bytes from `start` on.

    Returns:
        The answer, the position at which its bytes begin (0 where the server starts over), and the
        size of the whole where it is known. No answer where all bytes are already here.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "resvar"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response: http.client.HTTPResponse = _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:  # nothing lies beyond `start`: whole, or another file
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
    """The usual opener of urllib without file:, ftp: and data:, so that no redirect leads there."""
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
        "and it goes on."
    )


# --- saying how far it is -------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(
    title: str, total: int | None, start: int, show: bool, lines: bool = True
) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many bytes are done, and shows it on stderr.

    The title comes first; then a terminal shows a bar, and a log with `lines` a line every tenth.
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
    """A function that prints a line at every tenth, or every 20 MB where the total is unknown."""
    step = max(total / 10, 1.0) if total is not None else 20e6
    said = int(start / step)

    def tell(done: int) -> None:
        nonlocal said
        if int(done / step) > said:
            said = int(done / step)
            how_far = f"{done / total:4.0%} of {_megabytes(total)}" if total else _megabytes(done)
            console.print(f"  {how_far}", markup=False, highlight=False)

    return tell


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
