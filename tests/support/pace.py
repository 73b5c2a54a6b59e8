"""How fast this machine is now, for the tests that limit processor time.

Processors differ by a factor of two, and other work on the same core takes as much again: a limit
in plain seconds would judge the machine.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ORDINARY = (
    "asyncio, csv, decimal, email.message, fractions, http.server, json, logging.config, pydoc, "
    "sqlite3, statistics, tarfile, unittest.mock, xml.dom.minidom, xmlrpc.client, zipfile"
)
"""Modules of the standard library: to import them is ordinary work for Python."""

ELSEWHERE = 0.1
"""Seconds that these imports take on a Zen 4 EPYC."""


def pace() -> float:
    """How many times longer than on that EPYC Python takes here and now; 1 where it is faster."""
    command = [sys.executable, "-I", "-c", f"import {ORDINARY}"]
    return max(1.0, sorted(processor_seconds(command) for _ in range(5))[2] / ELSEWHERE)


def processor_seconds(command: Sequence[str], folder: Path | None = None, **more: str) -> float:
    """User and system time of a command; `more` are all its environment variables, if any."""
    before = children_seconds()
    subprocess.run(
        command, cwd=folder, env=more or None, check=True, stdout=subprocess.DEVNULL, timeout=600
    )
    return children_seconds() - before


def children_seconds() -> float:
    """User and system time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
