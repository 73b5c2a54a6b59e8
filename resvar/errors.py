"""What can go wrong, by who can mend it; the exit codes of the program follow from it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The input is wrong. One sentence that names the file, the key and the mend. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """The input was fine, but the work could not be finished (a full disk, a loss that is NaN).

    One sentence that says what is kept and how to go on. Exit code 1.
    """

    exit_code = 1


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Ctrl-C or SIGTERM arrived and the state was saved. Exit code 130."""

    exit_code = 130


class PeerFailure(Exception):  # noqa: N818 - the error is another process's
    """Another process of the same run says what happened; this one leaves without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"see the first process; exit code {exit_code}")
        self.exit_code = exit_code


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest known name, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""
