"""Runs of a sweep as processes of this machine: one per slot, each an ordinary `resvar train`.

A slot is a share of the processor's cores, or a GPU (or a part of one). Finished runs are skipped,
others go on where they stopped; one that fails is reported at the end while the rest goes on.

Several sweeps may work through the same folder: a run belongs to whoever holds its lock, and the
others come back to it when they have nothing else to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resvar.console import duration, plain, pluralize
from resvar.errors import RunError, Stopped, UserError
from resvar.rundir import (
    DIVERGED,
    LOG,
    RESULT,
    Progress,
    guard,
    is_locked,
    read_divergence,
    read_progress,
    read_result,
)
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.training.stop import PARENT, StopRequest, stop_request

POLL = 0.5
"""Seconds between two looks at the processes."""

MEMORY_PER_JOB = 4 * 2**30
"""Bytes; ResNet-164 at batch 128 in micro-batches of 64 stays below."""


@dataclass(frozen=True)
class Slot:
    """A place where one run works: what it is called and what its process finds set."""

    name: str
    threads: int
    environment: dict[str, str]
    device: str


@dataclass
class Process:
    """A run at work in a slot."""

    run: PlannedRun
    slot: Slot
    handle: subprocess.Popen[bytes]
    begun: float = field(default_factory=time.monotonic)
    asked: bool = False  # to stop


@dataclass
class Outcome:
    """How the runs of a sweep stand."""

    skipped: list[PlannedRun] = field(default_factory=list)
    done: list[PlannedRun] = field(default_factory=list)
    elsewhere: list[PlannedRun] = field(default_factory=list)  # finished by another process
    diverged: list[PlannedRun] = field(default_factory=list)
    failed: list[tuple[PlannedRun, int]] = field(default_factory=list)

    @property
    def settled(self) -> int:
        """How many runs there is nothing left to do for."""
        runs = len(self.skipped) + len(self.done) + len(self.elsewhere) + len(self.diverged)
        return runs + len(self.failed)


def make_slots(jobs: int | None, per_gpu: int | None, device: str, runs: int) -> list[Slot]:
    """The slots of this machine.

    With GPUs: `jobs`, spread over all of them, but not more than `per_gpu` on each; by default one
    on each. On the processor: `jobs` shares of its cores; by default one per core while memory
    lasts, since several runs on one core each do more work than one run on all.

    Raises:
        UserError: a number below 1.
    """
    require_positive(jobs, per_gpu)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    gpus = _gpus(device)
    if gpus:
        most = len(gpus) * per_gpu if per_gpu else jobs or len(gpus)
        count = max(1, min(jobs or most, most, runs))
        return [_gpu_slot(number, gpus, cores // count) for number in range(count)]
    fitting = max(1, _memory() // MEMORY_PER_JOB)
    count = max(1, min(jobs or min(cores, fitting), runs))
    return [_slot(f"cpu {index}", cores // count, {}, "cpu") for index in range(count)]


def require_positive(jobs: int | None, per_gpu: int | None) -> None:
    """Refuse before anything is written.

    Raises:
        UserError: a number below 1.
    """
    for name, value in (("--jobs", jobs), ("--per-gpu", per_gpu)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")


def launch(sweep: Sweep, slots: Sequence[Slot], data: Path, console: Console) -> Outcome:
    """Work through a sweep.

    Raises:
        Stopped: Ctrl-C or SIGTERM; the runs at work have saved their checkpoints.
        UserError: a run's folder holds one with other settings.
    """
    outcome = Outcome()
    waiting: list[PlannedRun] = []
    for planned in sweep.runs:
        done, hopeless = is_finished(planned), has_diverged(planned)
        (outcome.skipped if done else outcome.diverged if hopeless else waiting).append(planned)
    sweep.write_manifest()
    view = View(sweep, slots, outcome, console)
    working: list[Process] = []
    with stop_request("\nStopping the runs; each saves its checkpoint.\n") as stop, view.live():
        try:
            while (waiting and not stop) or working:
                free = [slot for slot in slots if slot not in [process.slot for process in working]]
                while free and not stop and (run := _next(waiting, outcome, view)):
                    working.append(start(run, free.pop(0), data))
                    view.started(working[-1])
                if stop:
                    end(working, signal.SIGTERM)
                for process in [p for p in working if p.handle.poll() is not None]:
                    working.remove(process)
                    if _book(process, outcome, stop, view):
                        waiting.append(process.run)
                view.update(working, waiting)
                time.sleep(POLL)
        except BaseException:
            end(working, signal.SIGTERM)
            raise
        if stop:
            raise Stopped("the sweep was stopped; the same command goes on with it.")
    return outcome


def is_finished(run: PlannedRun) -> bool:
    """Whether the run is done already.

    Raises:
        UserError: its folder holds a run with other settings.
    """
    guard(run.folder, run.settings)
    return (run.folder / RESULT).exists()


def has_diverged(run: PlannedRun) -> bool:
    """Whether the run ended with a loss that is no number: it would do so again."""
    return (run.folder / DIVERGED).exists()


def start(run: PlannedRun, slot: Slot, data: Path) -> Process:
    """Start `resvar train` for a run; what it prints goes to `log.txt` in its folder.

    The process gets a session of its own, so that Ctrl-C reaches the sweep alone, which then asks
    each run to stop. It also stops when the sweep's process is gone, however that ended.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "resvar", "train", *run.arguments,
        "--out", str(run.folder), "--data", str(data), "--device", slot.device,
    ]  # fmt: skip
    threads = str(slot.threads)
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
        PARENT: str(os.getpid()), **slot.environment,
    }  # fmt: skip
    with (run.folder / LOG).open("ab") as log:
        handle = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    return Process(run, slot, handle)


def last_lines(folder: Path, count: int = 5) -> list[str]:
    """The end of a run's log."""
    try:
        with (folder / LOG).open("rb") as log:
            return _tail(log).splitlines()[-count:]
    except OSError:
        return []


# --- what a person sees ---------------------------------------------------------------------------


class View:
    """One live table in a terminal; a line per event elsewhere."""

    def __init__(
        self, sweep: Sweep, slots: Sequence[Slot], outcome: Outcome, console: Console
    ) -> None:
        self.sweep, self.slots, self.outcome, self.console = sweep, slots, outcome, console
        self.begun = time.monotonic()
        self._live: Live | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, refresh_per_second=2, transient=True) as self._live:
            yield

    def started(self, process: Process) -> None:
        if self._live is None:
            self._line(f"started {process.run.name} on {process.slot.name}")

    def elsewhere(self, run: PlannedRun, text: str) -> None:
        """Another process did, or does, what this sweep would."""
        self._line(f"{run.name} {text} by another process")

    def ended(self, process: Process, text: str) -> None:
        seconds = duration(time.monotonic() - process.begun)
        self._line(f"{process.run.name} {text} ({seconds} in this process)")

    def update(self, working: Sequence[Process], waiting: Sequence[PlannedRun]) -> None:
        progress = {process.run.name: read_progress(process.run.folder) for process in working}
        if self._live is not None:
            self._live.update(
                Group(self._table(working, progress), self._summary(progress, waiting))
            )

    def _line(self, text: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self.console.print(
            f"{clock} [{self.outcome.settled}/{len(self.sweep.runs)}] {text}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip

    def _table(self, working: Sequence[Process], progress: dict[str, Progress | None]) -> Table:
        table = Table("run", "slot", "iteration", "images/s", "left", box=None, pad_edge=False)
        for process in working:
            note, total = progress[process.run.name], process.run.settings.iterations
            done, speed = (note.iteration, note.images_per_second) if note is not None else (0, 0.0)
            left = (total - done) * process.run.settings.batch_size / speed if speed else None
            table.add_row(
                process.run.name, process.slot.name, f"{done:,.0f} / {total:,}",
                f"{speed:,.0f}" if speed else "…", duration(left),
            )  # fmt: skip
        return table

    def _summary(self, progress: dict[str, Progress | None], waiting: Sequence[PlannedRun]) -> Text:
        o = self.outcome
        failed = f", {len(o.diverged)} diverged" if o.diverged else ""
        failed += f", {len(o.failed)} failed" if o.failed else ""
        so_far = duration(time.monotonic() - self.begun)
        return Text(
            f"{o.settled - len(o.diverged) - len(o.failed)} of {len(self.sweep.runs)} done, "
            f"{len(progress)} at work, {len(waiting)} waiting{failed}; {so_far} so far"
        )


def report_failures(outcome: Outcome, console: Console) -> None:
    """Each failed run with the last lines of its log; those that diverged, which is a result.

    Raises:
        RunError: some failed.
    """
    for run in outcome.diverged:
        with suppress(UserError):
            found = read_divergence(run.folder)
            where = f" at iteration {found.iteration}" if found is not None else ""
            console.print(
                f"{run.folder} diverged{where}; it would again, so it is not tried again.",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
    for run, code in outcome.failed:
        console.print(f"{run.folder} failed (exit {code}):", markup=False, soft_wrap=True)
        for line in last_lines(run.folder):
            console.print(f"    {plain(line)}", markup=False, highlight=False, soft_wrap=True)
    if outcome.failed:
        failed = pluralize(len(outcome.failed), "run")
        raise RunError(f"{failed} failed, the others are finished; the same command tries again.")


# --- inside ---------------------------------------------------------------------------------------


def _next(waiting: list[PlannedRun], outcome: Outcome, view: View) -> PlannedRun | None:
    """Take the first run out of `waiting` that nobody works on; None where there is none.

    What another process has finished meanwhile is taken out too.
    """
    for run in list(waiting):
        if (run.folder / RESULT).exists():
            waiting.remove(run)
            outcome.elsewhere.append(run)
            view.elsewhere(run, "was finished")
        elif has_diverged(run):
            waiting.remove(run)
            outcome.diverged.append(run)
        elif not is_locked(run.folder):
            waiting.remove(run)
            return run
    return None


def _book(process: Process, outcome: Outcome, stop: StopRequest, view: View) -> bool:
    """Note how a process ended; whether its run is to be taken up again later."""
    code = process.handle.returncode
    if code == 0:
        outcome.done.append(process.run)
        with suppress(UserError):
            error = read_result(process.run.folder)["test_error"]
            view.ended(process, f"finished: test error {error:.2f} %")
    elif stop and (code == Stopped.exit_code or code < 0):  # below 0: a signal ended it
        view.ended(process, "stopped")
    elif has_diverged(process.run):
        outcome.diverged.append(process.run)
        view.ended(process, "diverged")
    elif is_locked(process.run.folder) or (process.run.folder / RESULT).exists():
        # It came second: another process was quicker.
        view.elsewhere(process.run, "is being trained")
        return True
    else:
        outcome.failed.append((process.run, code))
        view.ended(process, f"FAILED (exit {code})")
    return False


def end(working: Sequence[Process], number: int) -> None:
    """Ask each process once."""
    for process in working:
        if process.handle.poll() is None and not process.asked:
            process.asked = True
            with suppress(ProcessLookupError):
                process.handle.send_signal(number)


def _tail(log: IO[bytes], most: int = 8_000) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - most))
    return log.read().decode(errors="replace")


def _slot(name: str, threads: int, environment: dict[str, str], device: str) -> Slot:
    return Slot(name, max(1, threads), environment, device)


def _gpu_slot(number: int, gpus: Sequence[str], threads: int) -> Slot:
    """One more run on each GPU in turn; each slot has a name of its own."""
    turn, index = divmod(number, len(gpus))
    name = f"gpu {gpus[index][:16]}" + (f", {turn + 1}" if turn else "")  # a UUID is long
    return _slot(name, threads, {"CUDA_VISIBLE_DEVICES": gpus[index]}, "cuda")


def taking_turns(slots: Sequence[Slot]) -> bool:
    """Whether runs share a GPU without NVIDIA's multi-process service: then they take turns on it,
    and do less together than one alone (docs/performance.md)."""
    gpus = [gpu for slot in slots if (gpu := slot.environment.get("CUDA_VISIBLE_DEVICES"))]
    service = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps", "control")
    return len(set(gpus)) < len(gpus) and not service.exists()


def _gpus(device: str) -> list[str]:
    """The GPUs to use, as `CUDA_VISIBLE_DEVICES` names them; none for `cpu`.

    What that variable holds already is a choice that somebody made, by number or UUID: `cuda:1` is
    the second of those, and only those are used.
    """
    if device == "cpu":
        return []
    from resvar.training.machine import choose_device

    if choose_device(device).type == "cpu":
        return []
    import torch

    count = torch.cuda.device_count()  # CUDA passes over what stands behind a wrong name
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = chosen.split(",") if chosen else map(str, range(count))
    gpus = [name.strip() for name in visible][:count]
    return [gpus[int(device.partition(":")[2])]] if ":" in device else gpus


def _memory() -> int:
    """Bytes of memory that this machine has; where it does not say, plenty."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2**40
