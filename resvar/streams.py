"""stdout and stderr for people: the only module that prints.

A failure to print never stops the work: a closed pipe, a full disk or a closed terminal only stops
the printing. Control characters in names, keys and messages never reach a terminal. No torch, no
rich.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from resvar.errors import OutputError


def print_line(text: str) -> None:
    """Print a line on stdout immediately. Never fails."""
    Output.of(sys.stdout).write_line(text)


def log(text: str) -> None:
    """Print a line on stderr immediately; stdout is for the result of a command. Never fails."""
    Output.of(sys.stderr).write_line(text)


def open_standard_streams() -> None:
    """Make stdin, stdout and stderr usable, however the process was started.

    Every resvar process calls this first. Otherwise the next file opened would get the descriptor
    of a closed stream and receive what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
        if number and hasattr(os, "set_blocking"):  # on Windows since Python 3.12
            os.set_blocking(number, True)  # wait for a slow reader
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if not isinstance(stream, Output):
            stream = stream or os.fdopen(number, "w", encoding="utf-8", closefd=False)
            setattr(sys, name, Output(stream, owned=True))


def check_stdout() -> None:
    """Raise `OutputError` if something printed on stdout was lost."""
    Output.of(sys.stdout).check()


# --- text in lines --------------------------------------------------------------------------------

NARROW = 80
"""Columns of a terminal that does not say how wide it is."""

_JOINED = re.compile(
    r"(?<=\d) (?=(?:%|s|min|h|d|images/s|[kMG]i?B)(?!\w))"  # a number and its unit
    r"|(?<= [-−±/×]) | (?=[-−±/×] )"  # what a sign joins
)
_PIECES = re.compile(r"(?<=[/,])(?=[^\W\d]\w|[.~])")  # of a path or list; not in `images/s`
_KEPT = "\x00"  # a space that does not break a line


def folded(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken between words.

    Parts that are two spaces apart are kept whole, where they can be. A word that is too long for a
    line is broken after a `/` or a comma; otherwise it stays whole, and the terminal breaks it.
    Further lines begin where the first does, and those of a text in parts two columns further.
    """
    if columns_of(text) <= width:
        return [text]
    indent = text[: len(text) - len(text.lstrip())]
    margin = indent + "  " * ("  " in text.strip())
    lines = [indent]

    def put(piece: str, gap: str) -> None:
        if not lines[-1].strip():
            lines[-1] += piece
        elif columns_of(lines[-1] + gap + piece) <= width:
            lines[-1] += gap + piece
        else:
            lines.append(margin + piece)

    for gap, part in re.findall(r"(\s*)(\S+(?:\s\S+)*)", text):
        if columns_of(margin + part) <= width:
            put(part, gap)
            continue
        if len(gap) > 1 and lines[-1].strip():
            lines.append(margin)
        for word in unbroken(part):
            pieces = _PIECES.split(word) if columns_of(word) > width else [word]
            for number, piece in enumerate(pieces):
                put(piece, "" if number else gap[:1] or " ")
    return lines


def unbroken(text: str) -> list[str]:
    """The words of a text, between which a line may be broken; a number keeps its unit."""
    return [word.replace(_KEPT, " ") for word in _JOINED.sub(_KEPT, text).split(" ")]


def columns_of(text: str) -> int:
    """The columns that a text takes in a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


# --- text without control characters --------------------------------------------------------------


def plain(text: str) -> str:
    """`text` with line breaks, control characters and lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def plain_lines(text: str) -> str:
    """`plain`, line by line."""
    return text if text.isprintable() else "\n".join(map(plain, text.split("\n")))


# --- streams --------------------------------------------------------------------------------------

ASCII = {
    "×": "x", "…": "...", "→": "->", "↔": "<->", "·": ".", "–": "-", "−": "-", "≠": "!=", "±": "+-",
    "²": "^2", "³": "^3", "⊕": "+", "│": "|", "┃": "|", "─": "-", "┐": "+", "┘": "+", "┣": "+",
    "▼": "v", "▁": "_", "▂": ".", "▃": ":", "▄": "-", "▅": "=", "▆": "+", "▇": "*", "█": "#",
    "⎡": "[", "⎢": "[", "⎣": "[", "⎤": "]", "⎥": "]", "⎦": "]", "‖": "||", "√": "sqrt ",
}  # fmt: skip
"""Replacements for our own characters where the output's encoding lacks them."""


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler of encoding: ASCII for our own characters, an escape for any other."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    texts = (ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing)
    return "".join(texts), error.end


codecs.register_error("resvar", _replace)


class Output(io.TextIOBase):
    """A text stream for people that replaces stdout or stderr. Writing to it never fails.

    Control characters are escaped; characters that the encoding lacks are replaced. After a failure
    nothing more is written.

    Args:
        owned: the process is ours, so a stream that fails becomes /dev/null for everything that
            writes to it: libraries, child processes, and the interpreter's flush at exit.
    """

    def __init__(self, stream: TextIO | None, owned: bool = False) -> None:
        self._stream = stream
        self._owned = owned
        self._failure: OSError | None = None
        self._reader_gone = False

    @classmethod
    def of(cls, stream: TextIO | Output | None) -> Output:
        """`stream` itself if it is already an `Output`."""
        return stream if isinstance(stream, Output) else cls(stream)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it is closed
            return False

    @property
    def columns(self) -> int | None:
        """The width of the terminal; None for a file or a pipe."""
        if not self.isatty():
            return None
        with suppress(OSError, ValueError):
            given = int(os.environ.get("COLUMNS") or 0)
            return given or os.get_terminal_size(self.fileno()).columns or NARROW
        return NARROW

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.put(plain_lines(text))
        return len(text)

    def write_line(self, text: str) -> None:
        """Write a line, which is broken between words where a terminal is too narrow for it."""
        text, width = plain(text), self.columns
        lines = [text] if width is None else folded(text, width)
        self.put("\n".join(lines) + "\n")

    def put(self, text: str) -> None:
        """Write text that may contain control sequences, such as rich's."""
        shown = text.encode(self.encoding, "resvar").decode(self.encoding)
        self._attempt(lambda stream: stream.write(shown))

    def put_bytes(self, text: bytes) -> None:
        """Write UTF-8, whatever the encoding of the stream."""

        def write(stream: TextIO) -> object:
            if (buffer := getattr(stream, "buffer", None)) is None:
                return stream.write(text.decode())
            stream.flush()
            return buffer.write(text)

        self._attempt(write)

    def flush(self) -> None:
        """Do nothing: every write flushes."""

    def check(self) -> None:
        """Raise `OutputError` if something was lost."""
        if self._failure is not None:
            reason = self._failure.strerror or self._failure
            raise OutputError(f"stdout cannot be written ({reason}).", self._reader_gone)

    def _attempt(self, write: Callable[[TextIO], object]) -> None:
        if self._stream is None or self._failure is not None:
            return
        try:
            write(self._stream)
            self._stream.flush()
        except OSError as error:
            self._failure = error
        except ValueError:
            self._failure = OSError(errno.EBADF, "it is closed")
        if self._failure is not None:
            self._reader_gone = _has_no_reader(self._failure, self._stream)
            if self._owned:
                _discard(self._stream)


def _has_no_reader(failure: OSError, stream: TextIO) -> bool:
    """Whether the other end of a pipe, or the terminal, was closed."""
    with suppress(OSError, ValueError):
        device = stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)  # a closed one is not a tty
        return failure.errno == errno.EPIPE or (failure.errno == errno.EIO and device)
    return failure.errno == errno.EPIPE


def _discard(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, with what its buffers still contain."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
