"""Weights & Biases for runs with `wandb: true`: the figures of TensorBoard, by a separate process.

Needs the optional extra `resvar[wandb]`. The process `python -m resvar.training.wandb_log` alone
imports wandb and talks to its server, so that a server that is slow or gone, and whatever wandb
does to signals and at exit, neither delays nor ends the training. It gets one JSON object per line:
the run, then each evaluation; the end of stdin ends it. Its answers are sentences for the user.

A run has one id, kept in its directory, so that a resumed run continues in the same place. Online,
evaluations that the server has are not sent again. Offline, the files of earlier processes that
were not uploaded are replaced by one that contains all evaluations.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from resvar.errors import UserError, first_line
from resvar.files import PACKAGE, open_to_append
from resvar.rundir import WANDB, read_json, try_lock, write_note
from resvar.settings import Settings
from resvar.training.events import scalars

FOLDER = "wandb"
"""In the run directory, made by wandb."""

LONGEST_START, LONGEST_END = 60.0, 30.0
"""Seconds for which the process waits for the server, and the run for the process."""

QUIET = {
    "WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true", "WANDB_X_DISABLE_STATS": "true", "WANDB_PROJECT": "resvar",
}  # fmt: skip
"""Environment of the process, where the user has not chosen otherwise: figures only."""


class WandbLog:
    """The evaluations of a run in Weights & Biases. No method waits for the server or raises.

    Args:
        folder: the run directory.
        rows: the evaluations so far, as in `metrics.csv`.
        log: called with sentences for the user.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        rows: Sequence[Mapping[str, float]],
        log: Callable[[str], None],
    ) -> None:
        self._folder, self._log = folder, log
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        try:
            name = f"{settings.variant}-{settings.depth}"
            head = {
                "folder": str(folder.absolute()),
                "id": _run_id(folder, settings),
                "name": f"{name} seed {settings.seed}",
                "group": f"{settings.protocol}/{name}",
                "config": settings.model_dump(),
            }
            self._process = _started()
        except (OSError, UserError) as error:
            log(_problem(error))
            return
        self._lines.put(head)
        for row in rows:
            self._put(row)
        for work in (self._send, self._receive):
            threading.Thread(target=work, args=(self._process,), daemon=True).start()

    def add(self, row: Mapping[str, float]) -> None:
        """One evaluation."""
        self._put(row)
        self._pass_on()

    def close(self) -> None:
        """Wait a while until everything is sent."""
        process = self._process
        if process is None:
            return
        self._lines.put(None)
        try:
            process.wait(LONGEST_END)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
            process.wait()
            self._log(
                f"Weights & Biases did not take everything within {LONGEST_END:.0f} s; upload the "
                f"rest with: wandb sync {self._folder / FOLDER}/*run-*"
            )
        self._pass_on()

    def _put(self, row: Mapping[str, float]) -> None:
        self._lines.put({"step": int(row["iteration"]), "figures": scalars(row)})

    def _pass_on(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._log(self._answers.get_nowait())

    def _send(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        with suppress(OSError), process.stdin:
            while (line := self._lines.get()) is not None:
                process.stdin.write(json.dumps(line) + "\n")
                process.stdin.flush()

    def _receive(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._answers.put(line.rstrip("\n"))


def _run_id(folder: Path, settings: Settings) -> str:
    """The id of the run, written down when it is first needed.

    Raises:
        OSError, UserError: the file that contains it cannot be written, or is damaged.
    """
    path = folder / WANDB
    if path.exists():
        return str(read_json(path).get("id"))
    made = f"{settings.hash}-{uuid.uuid4().hex[:8]}"
    write_note(path, {"id": made})
    return made


def _started() -> subprocess.Popen[str]:
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        encoding="utf-8", start_new_session=True,
    )  # fmt: skip


def _problem(error: BaseException) -> str:
    reason = first_line(error) if isinstance(error, Exception) else type(error).__name__
    return (
        f"Warning: nothing is logged to Weights & Biases from here on ({reason}); the training "
        "continues."
    )


# --- in the process -------------------------------------------------------------------------------


def _log_run(lines: IO[str], answer: Callable[[str], None]) -> None:
    """Log what comes on `lines` until their end."""
    import wandb

    head = json.loads(lines.readline())
    own = Path(head["folder"]) / FOLDER
    own.mkdir(exist_ok=True)
    with open_to_append(own / "resvar.lock") as lock:
        _wait_for_lock(lock)  # a killed run's process may be at its end
        offline = wandb.setup().settings.mode in ("offline", "dryrun")
        if offline:
            _remove_offline(own, head["id"])
        run = wandb.init(
            id=head["id"], name=head["name"], group=head["group"], config=head["config"],
            dir=head["folder"], resume=None if offline else "allow",
            settings=wandb.Settings(init_timeout=LONGEST_START),
        )  # fmt: skip
        if offline:
            files = own / f"offline-run-*-{head['id']}"
            answer(f"Weights & Biases is offline; upload with: wandb sync {files}")
        elif run.url:
            answer(f"Weights & Biases: {run.url}")
        there = run.step if run.resumed else 0  # the server has those before
        for line in lines:
            row = json.loads(line)
            if row["step"] >= there:
                run.log(row["figures"], step=row["step"], commit=True)
        run.finish()


def _wait_for_lock(lock: IO[bytes]) -> None:
    until = time.monotonic() + LONGEST_END
    while not try_lock(lock.fileno(), shared=False) and time.monotonic() < until:
        time.sleep(0.1)


def _remove_offline(folder: Path, run: str) -> None:
    """Remove what earlier processes of a run have written; the next one contains all of it."""
    for path in folder.glob(f"offline-run-*-{run}"):
        shutil.rmtree(path, ignore_errors=True)


def _main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what wandb prints goes where its log goes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run decides
    try:
        _log_run(sys.stdin, lambda sentence: print(sentence, file=answers))
    except BaseException as error:
        print(_problem(error), file=answers)
        answers.flush()
        os._exit(1)  # not through wandb's own end, which may wait for a server
    os._exit(0)


if __name__ == "__main__":
    _main()
