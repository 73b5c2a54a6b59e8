"""Kills: where they fell, what they led to, and the processes that they fell on."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.commands import Commands, Job, wait_for

LOADING = "loading"
PHASES = (
    LOADING, "first iteration", "other iterations", "evaluation", "checkpoint write",
    "final result.json", "elsewhere",
)  # fmt: skip
"""The phases of a process that the driver records."""

KILLED = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 130},
    signal.SIGINT: {-signal.SIGINT, 130},
}
"""Signal → exit codes of a process that it ended, at once or after a checkpoint."""


@dataclass(frozen=True)
class Kill:
    """A kill that met a living process.

    Attributes:
        kind: `place` if the driver killed it, else the name of the signal.
        phase: of the process at that moment.
    """

    kind: str
    phase: str


@dataclass
class Tally:
    """Kills and their consequences. Several threads write to it.

    Attributes:
        lost: kills of runs that did not end as the undisturbed one.
        ends: runs (or sweeps) that ended and were compared.
    """

    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    ends: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kills: Sequence[Kill], problems: Sequence[str]) -> None:
        """Add one finished run: the kills it went through and its differences."""
        with self.lock:
            self.kills += kills
            self.problems += problems
            self.lost += len(kills) if problems else 0
            self.ends += 1

    @property
    def verdict(self) -> str:
        return f"{len(self.kills) - self.lost} of {len(self.kills)} kills survived"

    def table(self) -> str:
        """Number of kills by phase (rows) and kind (columns)."""
        kinds = sorted({kill.kind for kill in self.kills})
        counts = Counter((kill.phase, kill.kind) for kill in self.kills)
        rows = [["the process was in", *kinds, "all"]]
        for phase in [*PHASES, *sorted({k.phase for k in self.kills} - set(PHASES))]:
            numbers = [counts[phase, kind] for kind in kinds]
            rows.append([phase, *map(str, numbers), str(sum(numbers))])
        totals = [sum(kill.kind == kind for kill in self.kills) for kind in kinds]
        rows.append(["all", *map(str, totals), str(len(self.kills))])
        return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A text table: the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            word.rjust(width) if at else word.ljust(width)
            for at, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


# --- processes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phases:
    """Pid → current phase of the process, or its last one. Read from the driver's files."""

    folder: Path

    def __call__(self, pid: int) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / str(pid)).read_text(encoding="utf-8").strip() or LOADING
        return LOADING


@contextlib.contextmanager
def started(
    commands: Commands, command: Sequence[str], cwd: Path, **more: str
) -> Iterator[tuple[Job, Phases]]:
    """A running process and its phases; `more` are environment variables."""
    with tempfile.TemporaryDirectory() as folder:
        phases = Phases(Path(folder))
        with commands.started(*command, cwd=cwd, RESVAR_TEST_PHASES=folder, **more) as job:
            yield job, phases


def wait_until_loaded(job: Job, phases: Phases) -> None:
    wait_for(lambda: phases(job.pid) != LOADING or job.ended, every=0.005)
