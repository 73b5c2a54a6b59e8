"""The source code that this process runs: its commit and local changes, or why there is none."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from resvar.files import PACKAGE

GIT_SECONDS = 10.0
"""After which git counts as unavailable, for example on a network file system that hangs."""


@dataclass(frozen=True)
class SourceVersion:
    """A commit, or the reason for its absence.

    Attributes:
        dirty: whether tracked files had changes; None if git does not say.
        reason: why `commit` or `dirty` is None.
    """

    commit: str | None
    dirty: bool | None
    reason: str | None = None


@cache
def source_version(package: Path = PACKAGE) -> SourceVersion:
    """The commit that tracks the package. Asked once: a process runs the code that it has loaded.

    A package that is installed inside a repository of something else has no commit.
    """
    commit = None
    try:
        # The second revision is an error unless the first, a commit, contains the package.
        commit = _git(package, "rev-parse", "HEAD", "HEAD:./__init__.py").split()[0]
        changes = _git(package, "status", "--porcelain", "--untracked-files=no")
        return SourceVersion(commit, bool(changes))
    except FileNotFoundError:
        reason = "git is not installed"
    except subprocess.TimeoutExpired:
        reason = f"git did not answer in {GIT_SECONDS:.0f} s"
    except subprocess.CalledProcessError as error:
        said = (error.stderr.splitlines() or [f"it exited with {error.returncode}"])[0]
        reason = f"git: {said.removeprefix('fatal: ')}"
    except OSError as error:
        reason = f"git: {error.strerror}"
    return SourceVersion(commit, None, reason)


def _git(folder: Path, *command: str) -> str:
    """What git prints about the repository of a folder. It takes no lock and never prompts.

    Variables such as GIT_DIR would name another repository.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
    }  # fmt: skip
    return subprocess.run(
        ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *command],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True,
        encoding="utf-8", errors="replace", timeout=GIT_SECONDS,
    ).stdout  # fmt: skip
