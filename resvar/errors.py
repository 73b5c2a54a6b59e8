"""The exceptions of the package, by exit code of the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

LONGEST_WORD = 200
"""Characters. A longer word is not a typo, and difflib's time grows with its square."""


class UserError(Exception):
    """The input is wrong. One sentence names the file, the key and the remedy. Exit code 2."""

    exit_code = 2


class UnreadableError(UserError):
    """A file or folder cannot be read here, though nothing shows that it is damaged.

    Permissions or the disk forbid it, a later version of resvar wrote it, or it is not resvar's.
    """


class OtherRunError(UserError):
    """A run's directory contains a run with other settings."""


class RunError(Exception):
    """The work could not be finished although the input was right (full disk, diverged loss).

    One sentence says what is kept and how to continue. Exit code 1.
    """

    exit_code = 1


class BrokenOffError(RunError):
    """A run broke off in the middle; the report adds what a rerun of the command will do."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal arrived, or the time of a sweep is up; the state was saved if there was any. Exit
    code 130."""

    exit_code = 130


class OutputError(Exception):
    """A command could not write its product to stdout.

    Attributes:
        reader_gone: the reader closed it (`| head`, a closed terminal), which is not a failure.
    """

    def __init__(self, sentence: str, reader_gone: bool) -> None:
        super().__init__(sentence)
        self.reader_gone = reader_gone


class PeerFailure(Exception):  # noqa: N818 - the error is another rank's
    """Another rank of the run failed and reports it; this one exits in silence."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"see the first process; exit code {exit_code}")
        self.exit_code = exit_code


def first_line(error: Exception) -> str:
    """The first line of an error's text, at most 200 characters, without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(". ")


def kind_and_text(error: Exception) -> str:
    """`ValueError: the first line of its text`, or the kind alone where there is no text."""
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f"{kind}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch means that memory, of the host or a GPU, is too small."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("out of memory", "allocate memory", "enough memory"))
    )


def quoted(value: object, most: int = 80) -> str:
    """A value as a sentence quotes it: its `repr`, cut to `most` characters."""
    try:
        return shortened(repr(value), most)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list in itself
        return "far too large"


def shortened(text: str, most: int = 80) -> str:
    """A text cut to `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def unknown(what: str, name: str, known: Iterable[str], otherwise: str) -> str:
    """`unknown setting 'ler'; did you mean 'lr'?`, or ending in `otherwise` if no name is near."""
    return f"unknown {what} {quoted(name)}{nearest(name, known) or otherwise}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest known name, or an empty string."""
    if len(word) > LONGEST_WORD:
        return ""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def require_given(given: Mapping[str, object], example: str) -> None:
    """Refuse a command line or a call that lacks something that it needs.

    Args:
        given: values by the name that a user would type; None means not given.

    Raises:
        UserError: something is missing; the message names all of it, and an example.
    """
    missing = [name for name, value in given.items() if value is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{' and '.join(missing)} {verb} missing; an example is {example}.")
