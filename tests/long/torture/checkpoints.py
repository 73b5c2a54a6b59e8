"""Damage checkpoints in every way a disk can; loading must notice it."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from resvar.errors import RunError
from resvar.rundir import CHECKPOINT, PREVIOUS_CHECKPOINT
from resvar.training.checkpoint import digest, load, load_newest
from tests.long.torture.kills import aligned


def _flip(content: bytes, chance: random.Random) -> bytes:
    at, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


def _overwrite(content: bytes, chance: random.Random, block: bytes) -> bytes:
    at = chance.randrange(0, len(content), len(block))
    return (content[:at] + block + content[at + len(block) :])[: len(content)]


BLOCK = 4096
DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a flipped bit": _flip,
    "cut short": lambda content, chance: content[: chance.randrange(1, len(content))],
    "empty": lambda _content, _chance: b"",
    "zero-filled": lambda content, _chance: bytes(len(content)),
    "a block of zeros": lambda content, chance: _overwrite(content, chance, bytes(BLOCK)),
    "a block of noise": lambda content, chance: _overwrite(
        content, chance, chance.randbytes(BLOCK)
    ),
}
"""Kinds of damage by a disk, a copy or a power cut."""


@dataclass
class Damaged:
    """Outcomes of damaged checkpoints, counted by kind of damage.

    Attributes:
        noticed: a warning, and the previous checkpoint was loaded.
        harmless: the same state was loaded: the changed bits have no meaning.
        refused: both checkpoints were damaged, and the error named `--fresh`.
    """

    noticed: Counter[str] = field(default_factory=Counter)
    harmless: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        rows = [["the newest was", "tried", "noticed", "harmless", "both refused"]]
        for kind in DAMAGE:
            noticed, harmless = self.noticed[kind], self.harmless[kind]
            figures = (noticed + harmless, noticed, harmless, self.refused[kind])
            rows.append([kind, *map(str, figures)])
        return aligned(rows)

    @property
    def verdict(self) -> str:
        noticed, harmless = self.noticed.total(), self.harmless.total()
        return (
            f"{noticed} of {noticed + harmless + len(self.problems)} damaged files noticed, "
            f"{harmless} read as the very same state, {len(self.problems)} taken for another"
        )


def torture_checkpoints(folder: Path, tries: int, seed: int) -> Damaged:
    """Damage the newest of a run's two checkpoints `tries` times, and each time then both.

    Args:
        folder: a run stopped after at least two checkpoints; it is not changed.
    """
    found, chance = Damaged(), random.Random(seed)
    whole = {name: (folder / name).read_bytes() for name in (CHECKPOINT, PREVIOUS_CHECKPOINT)}
    newest, previous = (digest(load(folder / name)) for name in whole)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        for number in range(tries):
            kind = list(DAMAGE)[number % len(DAMAGE)]
            for file, content in whole.items():
                (here / file).write_bytes(content)
            (here / CHECKPOINT).write_bytes(DAMAGE[kind](whole[CHECKPOINT], chance))
            warnings: list[str] = []
            state = digest(load_newest(here, warnings.append))
            if state == newest and not warnings:
                found.harmless[kind] += 1
            elif state != previous or len(warnings) != 1:
                found.problems.append(f"try {number}, {kind}: another state, {warnings}")
            else:
                found.noticed[kind] += 1
                found.refused[kind] += _both_refused(here)
    return found


def _both_refused(folder: Path) -> bool:
    """With the damaged bytes in both files: an error that names `--fresh`, and nothing deleted."""
    damaged = (folder / CHECKPOINT).read_bytes()
    (folder / PREVIOUS_CHECKPOINT).write_bytes(damaged)
    try:
        load_newest(folder)
    except RunError as error:
        files = [folder / name for name in (CHECKPOINT, PREVIOUS_CHECKPOINT)]
        return "--fresh" in str(error) and all(file.read_bytes() == damaged for file in files)
    return False
