"""Killing runs and sweeps on purpose, and judging what is left.

Shared by `tests/test_repeatability.py`, in short, and `scripts/torture.py`, at length. Processes
are killed from outside at random moments, or by `tests/support/driver` at an exact place. The
driver also notes what a process is doing, so that it is known where a kill fell. At the end the
result is compared with an undisturbed run, bit for bit.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from resvar.errors import RunError
from resvar.rundir import CHECKPOINT, PREVIOUS_CHECKPOINT
from tests.support.commands import Commands, Finished, Job, everyone, wait_for
from tests.support.outcome import differing

AT_A_TIME = 2
"""Runs that are tortured beside each other."""

PLACES = (
    "before-environment.json:1",
    "iteration:1",
    "iteration:5",
    "evaluation:1",
    "evaluation:2",
    "checkpoint-write:1",
    "checkpoint-write:3",
    "before-checkpoint.previous.pt:1",
    "before-checkpoint.pt:2",  # between the two renames: there is no checkpoint.pt now
    "before-metrics.csv:2",
    "after-metrics.csv:2",
    "before-predictions.npy:1",
    "before-result.json:1",
    "after-result.json:1",
)
"""Where the driver can kill a run, and at which time that it gets there."""

LOADING = "loading"
PHASES = (
    LOADING, "first iteration", "other iterations", "evaluation", "checkpoint write",
    "final result.json", "elsewhere",
)  # fmt: skip
"""What the driver says that a process is doing."""

GONE = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 130},
    signal.SIGINT: {-signal.SIGINT, 130},
}
"""The exit codes of what a signal has ended: at once, or with a checkpoint."""


@dataclass(frozen=True)
class Kill:
    """A kill that met a living process.

    Attributes:
        kind: `place` where the driver killed it, else the signal's name.
        phase: what it was doing.
    """

    kind: str
    phase: str


@dataclass
class Tally:
    """What was done to the runs, and what came of it. Several threads write to it."""

    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: int = 0  # kills of runs that did not end as they should
    ends: int = 0  # runs (or sweeps) brought to their end and compared
    lock: threading.Lock = field(default_factory=threading.Lock)

    def judge(self, kills: Sequence[Kill], problems: Sequence[str]) -> None:
        """Book the kills that one run went through, with what is wrong with it."""
        with self.lock:
            self.kills += kills
            self.problems += problems
            self.lost += len(kills) if problems else 0
            self.ends += 1

    @property
    def verdict(self) -> str:
        return f"{len(self.kills) - self.lost} of {len(self.kills)} kills survived"

    def table(self, phases: Sequence[str] = PHASES) -> str:
        """Where the kills fell, by what the process was doing and what killed it."""
        kinds = sorted({kill.kind for kill in self.kills})
        counts = Counter((kill.phase, kill.kind) for kill in self.kills)
        rows = [["the process was in", *kinds, "all"]]
        for phase in [*phases, *sorted({k.phase for k in self.kills} - set(phases))]:
            numbers = [counts[phase, kind] for kind in kinds]
            rows.append([phase, *map(str, numbers), str(sum(numbers))])
        totals = [sum(kill.kind == kind for kill in self.kills) for kind in kinds]
        rows.append(["all", *map(str, totals), str(len(self.kills))])
        return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """As a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            word.rjust(width) if at else word.ljust(width)
            for at, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


# --- one run --------------------------------------------------------------------------------------


@dataclass
class Pace:
    """How long a run takes now, against when it was measured: other work on the machine changes it.

    A kill that came too late says that it takes less; so about one in five comes too late.
    """

    factor: float = 1.0

    def note(self, met: bool) -> None:
        self.factor *= 1.1 if met else 0.7


@dataclass(frozen=True)
class Victim:
    """A training that is to be tortured, and what it must come to.

    Attributes:
        arguments: those of `resvar train`, without --out.
        reference: the folder of the undisturbed run.
        life: seconds that the undisturbed one took from its start to its end.
        work: of these, the seconds after it had loaded everything.
    """

    commands: Commands
    arguments: tuple[str, ...]
    reference: Path
    life: float
    work: float

    @classmethod
    def undisturbed(cls, commands: Commands, arguments: Sequence[str], folder: Path) -> Victim:
        """Make the reference, twice: the first start warms the machine up."""
        for name in ("warm-up", "undisturbed"):
            out = folder / name
            begun = time.monotonic()
            with started(commands, (*arguments, "--out", str(out)), folder) as (job, doing):
                wait_until_at_work(job, doing)
                loaded = time.monotonic()
                done = job.end()
            if done.code != 0:
                raise RuntimeError(f"the undisturbed run failed: {done}")
        if found := differing(folder / "undisturbed", folder / "warm-up"):
            raise RuntimeError(f"two undisturbed runs differ: {found}")
        end = time.monotonic()
        return cls(commands, tuple(arguments), out, end - begun, end - loaded)

    def torture(self, folder: Path, kills: int, seed: str, tally: Tally) -> None:
        """Kill runs until it was done `kills` times; each is brought to its end and compared."""
        chance, left, number, pace = random.Random(seed), kills, 0, Pace()
        while left > 0:
            number += 1
            out = folder / f"{seed}-{number}"
            met, done = self._until_the_end(out, left, chance, pace)
            problems = differing(out, self.reference) if done.code == 0 else [str(done)]
            tally.judge(met, [f"{out}: {problem}" for problem in problems])
            left -= len(met)
            if not problems:
                shutil.rmtree(out)

    def _until_the_end(
        self, out: Path, kills: int, chance: random.Random, pace: Pace
    ) -> tuple[list[Kill], Finished]:
        """Start a run again and again, killing it at most `kills` times, until it ends by itself.

        One in three kills is steered to a named place, one falls anywhere in the process's life,
        one after it has begun to work.
        """
        met: list[Kill] = []
        command = (*self.arguments, "--out", str(out))
        while True:
            way = chance.choice(("place", "life", "work")) if len(met) < kills else "none"
            if way == "place":
                kill, done = steered(self.commands, command, out.parent, chance.choice(PLACES))
            else:
                kill, done = self._shot(command, out.parent, way, chance, pace)
            if kill is None:
                return met, done
            met.append(kill)

    def _shot(
        self, command: Sequence[str], cwd: Path, way: str, chance: random.Random, pace: Pace
    ) -> tuple[Kill | None, Finished]:
        """One process, killed at a random moment if it lives to see it."""
        number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        with started(self.commands, command, cwd) as (job, doing):
            if way == "none":
                return None, job.end()
            if way == "work":
                wait_until_at_work(job, doing)
            seconds = pace.factor * chance.uniform(0, getattr(self, way))
            wait_for(lambda: ended(job), seconds, every=0.002)
            phase = doing(job.pid)
            with contextlib.suppress(ProcessLookupError):
                job.send(number)
            done = job.end()
            if number == signal.SIGKILL:  # nothing goes on after it
                phase = doing(job.pid)
        met = done.code in GONE[number]
        pace.note(met)
        return (Kill(number.name, phase) if met else None), done


def steered(
    commands: Commands, command: Sequence[str], cwd: Path, place: str
) -> tuple[Kill | None, Finished]:
    """One process that the driver kills at a place, if it gets there."""
    with started(commands, command, cwd, RESVAR_TEST_KILL=place) as (job, doing):
        done = job.end()
        phase = doing(job.pid)
    return (Kill("place", phase) if done.code == -signal.SIGKILL else None), done


def torture_runs(
    victim: Victim, folder: Path, kills: int, seed: int, at_a_time: int = AT_A_TIME
) -> Tally:
    """Kill `kills` times, in several runs beside each other."""
    tally = Tally()
    shares = [kills // at_a_time + (at < kills % at_a_time) for at in range(at_a_time)]
    with ThreadPoolExecutor(at_a_time) as pool:
        waiting = [
            pool.submit(victim.torture, folder, share, f"{seed}-{at}", tally)
            for at, share in enumerate(shares)
        ]
    for each in waiting:
        each.result()  # an error of the harness itself is not to be missed
    return tally


# --- checkpoints ----------------------------------------------------------------------------------


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
"""What a disk, a copy or a power cut can make of a file."""


@dataclass
class Damaged:
    """What became of damaged checkpoints, by what was done to them.

    Attributes:
        noticed: it was said, and the one before was used.
        harmless: the very same state was read: the bits that differ stand for nothing.
        refused: both were damaged, and the error named `--fresh`.
    """

    noticed: Counter[str] = field(default_factory=Counter)
    harmless: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        rows = [["the newest was", "tried", "noticed", "harmless", "both refused"]]
        for what in DAMAGE:
            noticed, harmless = self.noticed[what], self.harmless[what]
            figures = (noticed + harmless, noticed, harmless, self.refused[what])
            rows.append([what, *map(str, figures)])
        return aligned(rows)

    @property
    def verdict(self) -> str:
        noticed, harmless = self.noticed.total(), self.harmless.total()
        return (
            f"{noticed} of {noticed + harmless + len(self.problems)} damaged files noticed, "
            f"{harmless} read as the very same state, {len(self.problems)} taken for another"
        )


def torture_checkpoints(folder: Path, tries: int, seed: int) -> Damaged:
    """Damage the newest of a run's two checkpoints again and again, and then both.

    Args:
        folder: of a run that was stopped after at least two checkpoints; it stays as it is.
    """
    # Not above: a forked process imports this file too, and the driver must come first.
    from resvar.training.checkpoint import digest, load, load_newest

    found, chance = Damaged(), random.Random(seed)
    whole = {name: (folder / name).read_bytes() for name in (CHECKPOINT, PREVIOUS_CHECKPOINT)}
    newest, previous = (digest(load(folder / name)) for name in whole)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        for number in range(tries):
            what = list(DAMAGE)[number % len(DAMAGE)]
            for file, content in whole.items():
                (here / file).write_bytes(content)
            (here / CHECKPOINT).write_bytes(DAMAGE[what](whole[CHECKPOINT], chance))
            said: list[str] = []
            state = digest(load_newest(here, said.append))
            if state == newest and not said:
                found.harmless[what] += 1
                continue
            if state != previous or len(said) != 1:
                found.problems.append(f"try {number}, {what}: another state was taken, {said}")
                continue
            found.noticed[what] += 1
            before = (here / CHECKPOINT).read_bytes()
            (here / PREVIOUS_CHECKPOINT).write_bytes(before)
            try:
                load_newest(here)
            except RunError as error:
                kept = [(here / file).read_bytes() == before for file in whole]
                if "--fresh" in str(error) and all(kept):
                    found.refused[what] += 1
    return found


# --- a sweep --------------------------------------------------------------------------------------


SHARE_AT_WORK = 3 / 4
"""Of the kills, so many are aimed at a moment when a run trains; the others fall anywhere."""

NOBODY = "no run at work"

TRAINS = 1.5
"""Seconds; a tiny run trains about so long, and a kill aimed at its work falls within them."""

LOOKS = 3000
"""So often, 0.2 s apart, it is looked whether what a killed sweep started is gone.

Counted and not timed: were this process and those paused together, no time would have gone by."""


@dataclass(frozen=True)
class Aim:
    """Kill so many seconds after the start, or after one of its runs began to train."""

    at_work: bool
    seconds: float


def torture_sweep(
    commands: Commands, arguments: Sequence[str], runs: Sequence[Path], folder: Path,
    kills: int, seed: int,
) -> Tally:  # fmt: skip
    """Kill a sweep until it was done `kills` times; what it started must be gone each time.

    Args:
        arguments: those of `resvar sweep`, without --out.
        runs: the run directories that it makes, below its --out.
    """
    reference = folder / "undisturbed"
    begun = time.monotonic()
    done = commands.run(*arguments, "--out", reference, cwd=folder)
    life = time.monotonic() - begun
    if done.code != 0:
        raise RuntimeError(f"the undisturbed sweep failed: {done}")
    tally, chance, number = Tally(), random.Random(seed), 0
    while len(tally.kills) < kills:
        number += 1
        out = folder / f"sweep-{number}"
        met: list[Kill] = []
        problems: list[str] = []
        while True:
            aim = None
            if len(tally.kills) + len(met) < kills:
                at_work = chance.random() < SHARE_AT_WORK
                aim = Aim(at_work, chance.uniform(0, TRAINS if at_work else life))
            kill, found, done = _shoot_sweep(commands, (*arguments, "--out", str(out)), aim, chance)
            problems += found
            if kill is None:
                break
            met.append(kill)
        problems += [str(done)] if done.code else _judge_sweep(out, runs, reference)
        tally.judge(met, [f"{out}: {problem}" for problem in problems])
    return tally


def _shoot_sweep(
    commands: Commands, command: Sequence[str], aim: Aim | None, chance: random.Random
) -> tuple[Kill | None, list[str], Finished]:
    """One process of the sweep, killed as aimed; then nobody that it started lives.

    It measures how long its runs will take, which needs seconds, only where the kill may fall then.
    """
    mark = uuid.uuid4().hex
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    how = {"RESVAR_TEST_MARK": mark}
    if aim is None or aim.at_work:
        how["RESVAR_TEST_UNMEASURED"] = "1"
    with started(commands, command, Path.cwd(), **how) as (job, doing):
        if aim is None:
            return None, [], job.end()
        if aim.at_work:
            wait_for(lambda: not {LOADING, NOBODY}.issuperset(at(mark, doing)) or ended(job))
        wait_for(lambda: ended(job), aim.seconds)
        phases = at(mark, doing)
        with contextlib.suppress(ProcessLookupError):
            job.send(number)
        done = job.end()
    if done.code not in GONE[number]:
        return None, [], done
    gone = _gone(mark)
    found = [] if gone else [f"still there after {number.name}: {everyone(mark)}"]
    return Kill(number.name, " and ".join(phases)), found, done


def at(mark: str, doing: Doing) -> list[str]:
    """What the runs of a sweep are doing."""
    trainings = [pid for pid, words in everyone(mark).items() if "train" in words]
    return sorted({doing(pid) for pid in trainings}) or [NOBODY]


def _gone(mark: str) -> bool:
    for _ in range(LOOKS):
        if not everyone(mark):
            return True
        time.sleep(0.2)
    return False


def _judge_sweep(out: Path, runs: Sequence[Path], reference: Path) -> list[str]:
    """What is wrong with a sweep that says it is finished."""
    made = {path.parent.relative_to(out) for path in out.rglob("config.yaml")}
    problems = [f"{run} is missing or too many" for run in made ^ set(runs)]
    for run in made & set(runs):
        problems += [f"{run}: {what}" for what in differing(out / run, reference / run)]
        if (out / run / "log.txt").read_text().count("Finished") > 1:
            problems.append(f"{run} was done twice")
    return problems


# --- processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(
    commands: Commands, command: Sequence[str], cwd: Path, **more: str
) -> Iterator[tuple[Job, Doing]]:
    """A process at work, and who knows what it is doing."""
    with tempfile.TemporaryDirectory() as notes:
        doing = Doing(Path(notes))
        with commands.started(*command, cwd=cwd, RESVAR_TEST_PHASES=notes, **more) as job:
            yield job, doing


@dataclass(frozen=True)
class Doing:
    """Pid → what the process is doing, or did when it died; the driver notes it there."""

    notes: Path

    def __call__(self, pid: int) -> str:
        with contextlib.suppress(OSError):
            return (self.notes / str(pid)).read_text().strip() or LOADING
        return LOADING


def wait_until_at_work(job: Job, doing: Doing) -> None:
    wait_for(lambda: doing(job.pid) != LOADING or ended(job), every=0.005)


def ended(job: Job) -> bool:
    return job.code() is not None
