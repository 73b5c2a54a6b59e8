"""The download of an archive: from several sources of the same bytes, resumed where it was cut.

A source that is slow, refuses or breaks off is left for the next, which continues the same partial
file; the MD5 of the whole decides. Whatever servers do, a download ends in one sentence.
"""

from __future__ import annotations

import hashlib
import http.client
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

from resvar.data.archive import CHUNK, LARGEST_ARCHIVE
from resvar.data.cifar import Archive, md5_of
from resvar.data.transfer import megabytes, show_progress, speed
from resvar.data.web import (
    Patience,
    SourceError,
    ask,
    await_answer,
    explain,
    host_of,
    without_password,
)
from resvar.errors import RunError, UserError
from resvar.files import open_to_append

BRISK = Patience(silence=10, answer=10, slowest=200_000, window=10)
"""With a source that others follow."""

PATIENT = Patience(silence=30, answer=60, slowest=1_000, window=60)
"""With the last source. At less than 1 kB/s CIFAR-10 takes two days: that is as good as silence."""

OTHER_SOURCE = "use --archive FILE or --url URL"


def brisk(stall_below: float | None) -> Patience:
    """`BRISK` with another slowest speed, in kB/s; None: its own.

    Raises:
        UserError: the speed is negative, infinite or NaN.
    """
    if stall_below is None:
        return BRISK
    if not 0 <= stall_below < math.inf:
        raise UserError(
            f"--stall-below {stall_below:g}: a speed in kB/s is needed, 0 or more; with 0 no "
            "source is left for its speed."
        )
    return replace(BRISK, slowest=1000 * stall_below)


def download(
    archive: Archive,
    path: Path,
    tell: Callable[[str], None] | None,
    early: Patience = BRISK,
    last: Patience = PATIENT,
) -> None:
    """Download an archive to `path`, continuing what an earlier call has left there.

    Args:
        tell: prints a line, each time when one source is left for another; None: no line and no
            progress.
        early: when a source is left that others follow.
        last: when the last source is left. The slow ones then get a second attempt, as patient.

    Raises:
        UserError: the file is larger than any archive of a dataset.
        RunError: no source could complete it, each with its reason; `path` is kept, and the next
            call resumes at its end.
    """
    part = _Part(path, archive)
    todo = deque((source, early) for source in archive.sources[:-1])
    todo.append((archive.sources[-1], last))
    again: list[str] = []
    second_round = mixed = False
    reasons: dict[str, str] = {}
    name = host_of if len(archive.sources) > 1 else without_password
    if part.is_full() and not part.is_official():
        part.discard()
    while todo:
        source, patience = todo.popleft()
        if mixed and part.origins - {host_of(source)}:  # from now on each source works alone
            part.discard()
        try:
            _fetch(source, part, patience, show=tell is not None, first=not reasons)
            _verify(part, source)
            return
        except _MixedError as error:
            mixed = True
            again += [other for other in archive.sources if host_of(other) in error.origins]
            reasons[source] = str(error)
        except SourceError as error:
            if error.slow and patience is early:
                again.append(source)
            reasons[source] = str(error)
        if not todo and not second_round:
            todo.extend((source, last) for source in dict.fromkeys(again))
            second_round = True
        if todo and tell is not None:
            tell(
                f"{name(source)} {reasons[source]}: trying {name(todo[0][0])}"
                f"{f'; {part.progress()} are kept' if part.size() and not mixed else ''}."
            )
    listed = "; ".join(f"{name(source)} {reason}" for source, reason in reasons.items())
    raise RunError(
        f"{archive.name} could not be downloaded: {listed}; rerun the command to "
        f"{f'resume at {part.progress()}' if part.size() else 'try again'}, {OTHER_SOURCE}, or "
        "train on the sample, which needs no download, with --dataset sample."
    )


# --- the partial file -----------------------------------------------------------------------------


class _Part:
    """The partial file of an archive, and the hosts that sent its bytes."""

    def __init__(self, path: Path, archive: Archive) -> None:
        self.path = path
        self.archive = archive
        self.origins = {"an earlier download"} if self.size() else set()

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def is_full(self) -> bool:
        return self.archive.size is not None and self.size() >= self.archive.size

    def is_official(self) -> bool:
        """Whether its MD5 is the published one, as far as there is one."""
        if self.archive.md5 is None:
            return True
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, md5_of).hexdigest() == self.archive.md5

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.origins = set()

    def progress(self) -> str:
        """`12.4 of 170.5 MB`."""
        total = self.archive.size
        done = megabytes(self.size())
        return done if total is None else f"{done.removesuffix(' MB')} of {megabytes(total)}"


class _MixedError(SourceError):
    """Bytes of several origins do not make the archive, and it is unknown whose are wrong."""

    def __init__(self, source: str, origins: set[str]) -> None:
        others = " and ".join(sorted(origins - {host_of(source)}))
        super().__init__(f"completed what {others} began, but the MD5 is wrong, so it was deleted")
        self.origins = origins


def _verify(part: _Part, source: str) -> None:
    """Check the MD5 of a complete archive, and delete one that is wrong."""
    if part.is_official():
        return
    origins = part.origins
    part.discard()
    if origins == {host_of(source)}:
        raise SourceError("sent an archive with a wrong MD5, which was deleted")
    raise _MixedError(source, origins)


# --- the transfer ---------------------------------------------------------------------------------


def _fetch(source: str, part: _Part, patience: Patience, show: bool, first: bool) -> None:
    """Append to `part` what it lacks, from one source.

    Args:
        first: no source was tried before, so the progress needs a title.
    """
    if part.is_full():
        return
    size, have = part.archive.size, part.size()
    response, position, total = ask(source, have, patience)
    if size is not None:
        _require_archive(response, total, size)
        total = size
    if response is None:
        return
    # Where nothing vouches that a server has the same bytes as before, it may start over.
    start = position if size is None else have
    verb = "Resuming" if start else "Downloading"
    title = f"{verb} {part.archive.name} from {host_of(source)}" if first else ""
    done = start
    with (
        open_to_append(part.path) as file,
        show_progress(title, total, start, show) as advance,
    ):
        file.truncate(start)
        try:
            if not _is_too_large(total or 0):
                done = _copy(response, position, file, start, total, patience, advance)
        finally:
            if part.size() > start:
                part.origins.add(host_of(source))
    response.close()  # not after Ctrl-C: that would wait for the thread that reads
    if _is_too_large(total or done):
        part.discard()
        raise UserError(
            f"{without_password(source)}: this is larger than {megabytes(LARGEST_ARCHIVE)}, so it "
            f"is not an archive of a dataset; {OTHER_SOURCE}."
        )
    if total is not None and done < total:
        raise SourceError(f"broke off at {megabytes(done)} of {megabytes(total)}")


def _require_archive(
    response: http.client.HTTPResponse | None, total: int | None, size: int
) -> None:
    """Refuse an answer that cannot be the archive of `size` bytes."""
    if response is not None and response.headers.get_content_type() == "text/html":
        raise SourceError("answered with a web page instead of the archive")
    if total is not None and total != size:
        raise SourceError(f"has another file ({total:,} bytes instead of {size:,})")


def _copy(
    response: http.client.HTTPResponse,
    position: int,
    file: IO[bytes],
    done: int,
    total: int | None,
    patience: Patience,
    advance: Callable[[int], None],
) -> int:
    """Append the body, which begins at `position`, from byte `done` of the whole on.

    Returns:
        The bytes that the file then has.
    """
    looked, before = time.monotonic(), position
    while not _is_too_large(done) and (total is None or done < total):
        try:
            chunk = await_answer(patience.answer, lambda: response.read1(CHUNK))
        except TimeoutError as error:
            raise SourceError(f"sent nothing for {patience.silence:.3g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceError(f"broke off ({explain(error)})") from error
        if not chunk:
            break
        end = len(chunk) if total is None else total - position
        file.write(chunk[max(0, done - position) : end])
        file.flush()
        position += len(chunk)
        done = max(done, position if total is None else min(position, total))
        advance(done)
        if (seconds := time.monotonic() - looked) > patience.window:
            rate = (position - before) / seconds
            if rate < patience.slowest:
                raise SourceError(f"is slow ({speed(rate)})", slow=True)
            looked, before = time.monotonic(), position
    return done


def _is_too_large(size: int) -> bool:
    return size > LARGEST_ARCHIVE
