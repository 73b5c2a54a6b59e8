"""Work through a sweep on this machine: one run in each slot, until no run is left.

Finished runs are skipped, interrupted ones resumed; a failed run is reported at the end, and the
others continue. Several sweeps may work in the same folder: a run belongs to the process that holds
its lock, and a sweep returns to the runs of the others when it has no other run to start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Group
from rich.live import Live

from resvar.condition import read_result
from resvar.console import (
    console_for_progress,
    duration,
    per_second,
    percent,
    pluralize,
    print_line,
)
from resvar.errors import RunError, Stopped, UserError
from resvar.rundir import CHECKPOINT, RunProgress, is_locked, read_divergence, read_progress
from resvar.sweeps.grid import PlannedRun, Sweep
from resvar.sweeps.limit import TimeLimit
from resvar.sweeps.processes import (
    POLL,
    FailedRun,
    RunProcess,
    RunStatus,
    collect,
    run_status,
    standing_of,
    start,
    terminate,
)
from resvar.sweeps.slots import Slot
from resvar.sweeps.suspension import suspension
from resvar.table import Prose, TerminalTable, filled, left, right
from resvar.training.stop import stop_request


class LocalSweep:
    """The runs of a sweep that are waiting, running and ended, and what a person sees of them.

    Args:
        limit: of the time; None: none.

    Raises:
        UserError: a run's directory contains a run with other settings.
    """

    def __init__(
        self, sweep: Sweep, slots: Sequence[Slot], data: Path, limit: TimeLimit | None = None
    ) -> None:
        self.sweep, self.slots, self.data = sweep, slots, data
        self.limit = limit or TimeLimit()
        self.console = console_for_progress()
        found = standing_of(sweep)
        self.waiting = found.open
        self.active: list[RunProcess] = []
        self.finished = len(found.finished)
        self.diverged = found.diverged
        self.failed = found.failed
        self._begun = time.monotonic()

    def run(self) -> None:
        """Work until no run is waiting.

        Raises:
            Stopped: Ctrl-C, SIGTERM, or the time is up; the running runs have saved their
                checkpoints.
        """
        self.sweep.write_manifest()
        live = Live(
            console=self.console, get_renderable=self._picture, auto_refresh=False, transient=True
        )
        message = "\nStopping the runs; each saves its checkpoint.\n"
        terminal = self.console.is_terminal
        with (
            TemporaryDirectory(prefix="resvar-") as configs,
            stop_request(message) as stop,
            suspension() as suspended,
            live if terminal else nullcontext(),
        ):
            stopping: object = stop
            try:
                while self.active or (self.waiting and not stopping):
                    if not stopping and self.limit.is_up(self._running(), self.waiting):
                        stopping = True
                        self._log(f"the time is nearly up; {len(self.active)} running")
                    if stopping:
                        terminate(self.active)
                    else:
                        self._fill_slots(Path(configs))
                    suspended.obey(self.active, live.stop, live.start if terminal else live.stop)
                    for process, status, failure in collect(self.active, stopping):
                        self._settle(process, status, failure)
                    if terminal:
                        live.refresh()
                    time.sleep(POLL)
            except BaseException:
                terminate(self.active)
                raise
        if self.waiting:
            saved = sum((run.folder / CHECKPOINT).exists() for run in self.waiting)
            runs = pluralize(len(self.sweep.runs), "run")
            verb = "resume" if saved or self.finished else "start"
            why = "the sweep was stopped" if stop else "the time of the sweep is up"
            raise Stopped(
                f"{why}: {self.finished} of {runs} finished{self._unhappy()}, {saved} with a "
                f"checkpoint; rerun the command to {verb} it."
            )

    def report(self) -> None:
        """Print each diverged run, and each failed one with the end of its log.

        Raises:
            RunError: some runs failed.
        """
        for run in self.diverged:
            with suppress(UserError):
                found = read_divergence(run.folder)
                where = f" at iteration {found.iteration}" if found is not None else ""
                text = (
                    f"{run.folder} diverged{where}; it would diverge again, so it is not retried."
                )
                print_line(text)
        for failure in self.failed:
            print_line(f"{failure.run.folder} {failure}{':' if failure.log else ''}")
            for line in failure.log or ():
                print_line(f"    {line}")
        if self.failed:
            diverged = f", {len(self.diverged)} diverged" if self.diverged else ""
            raise RunError(
                f"{pluralize(len(self.failed), 'run')} failed, {self.finished} finished{diverged}; "
                "rerun the command to retry what failed."
            )

    # --- one run after the other ------------------------------------------------------------------

    def _fill_slots(self, configs: Path) -> None:
        busy = {process.slot.name for process in self.active}
        for slot in self.slots:
            while slot.name not in busy and self._may_start() and (run := self._next()):
                try:
                    self.active.append(start(run, slot, self.data, configs))
                except (OSError, UserError) as error:
                    self._fail(FailedRun.because(run, error))
                    continue
                busy.add(slot.name)
                if not self.console.is_terminal:
                    self._log(f"started {run.name} on {slot.name}")

    def _next(self) -> PlannedRun | None:
        """Remove the first run from `waiting` that no process works on; None if there is none.

        Runs that other processes have finished meanwhile are removed too.
        """
        for run in list(self.waiting):
            if is_locked(run.folder):
                continue
            self.waiting.remove(run)
            try:
                status = run_status(run)
            except UserError as error:
                self._fail(FailedRun.because(run, error))
                continue
            if status is RunStatus.OPEN:
                return run
            if status is RunStatus.DIVERGED:
                self.diverged.append(run)
            else:
                self.finished += 1
                self._log(f"{run.name} was finished by another process")
        return None

    def _settle(self, process: RunProcess, status: RunStatus, failure: FailedRun | None) -> None:
        """Count a run whose process has ended; one that is not settled waits again."""
        run, code = process.run, process.handle.returncode
        took = f" ({duration(time.monotonic() - process.begun)} in this process)"
        if failure is not None:
            self._fail(failure, took)
            return
        match status:
            case RunStatus.FINISHED if code == 0:
                self.finished += 1
                result = read_result(run.folder) or {"test_error": math.nan}
                self._log(f"{run.name} finished: test error {percent(result['test_error'])}{took}")
            case RunStatus.FINISHED:
                self.finished += 1
                self._log(f"{run.name} was finished by another process")
            case RunStatus.DIVERGED:
                self.diverged.append(run)
                self._log(f"{run.name} diverged{took}")
            case RunStatus.STOPPED:
                self.waiting.append(run)
                self._log(f"{run.name} stopped{took}")
            case _:
                self.waiting.append(run)
                self._log(f"{run.name} is being trained by another process")

    def _fail(self, failure: FailedRun, took: str = "") -> None:
        self.failed.append(failure)
        self._log(f"{failure.run.name} {str(failure).replace('failed', 'FAILED', 1)}{took}")

    def _may_start(self) -> bool:
        return self.limit.allows_start(self._running(), self.waiting)

    def _running(self) -> list[PlannedRun]:
        return [process.run for process in self.active]

    # --- what a person sees -----------------------------------------------------------------------

    def _log(self, text: str) -> None:
        settled = self.finished + len(self.diverged) + len(self.failed)
        clock = time.strftime("%H:%M:%S")
        line = f"{clock} [{settled}/{len(self.sweep.runs)}] {text}"
        self.console.print(line)  # above the live table

    def _picture(self) -> Group:
        """The running runs as a table, and a line with counts; for a terminal."""
        items = [(process, read_progress(process.run.folder)) for process in self.active]
        so_far = f"{duration(time.monotonic() - self._begun)} so far"
        if self.limit.remaining < math.inf:
            so_far += f", stops within {duration(max(0.0, self.limit.remaining))}"
        counts = (
            f"{self.finished} of {len(self.sweep.runs)} done, {len(self.active)} running, "
            f"{len(self.waiting)} waiting{self._unhappy()}; {so_far}"
        )
        tables = [TerminalTable(filled("", ACTIVE_COLUMNS, items))] if items else []
        return Group(*tables, Prose(counts))

    def _unhappy(self) -> str:
        """The number of diverged and failed runs, if any, for a list of counts."""
        counts = {"diverged": len(self.diverged), "failed": len(self.failed)}
        return "".join(f", {count} {word}" for word, count in counts.items() if count)


# --- the table of the running runs ----------------------------------------------------------------

ActiveRun = tuple[RunProcess, RunProgress | None]


def _iteration_text(item: ActiveRun) -> str:
    process, progress = item
    done = progress.iteration if progress is not None else 0
    return f"{done:,.0f} / {process.run.settings.iterations:,}"


def _rate(item: ActiveRun) -> str | None:
    speed = item[1].images_per_second if item[1] is not None else None
    return per_second(speed) if speed else None


def _time_left(item: ActiveRun) -> str:
    return duration(item[1].seconds_left if item[1] is not None else None)


ACTIVE_COLUMNS = (
    left("run", lambda item: item[0].run.name, wrap=20),
    left("slot", lambda item: item[0].slot.name, drop=2),
    right("iteration", _iteration_text),
    right("images/s", _rate, drop=1),
    right("left", _time_left),
)
