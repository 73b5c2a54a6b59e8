"""The processes that read images for a run; only the run ends them."""

from __future__ import annotations

import os
import signal
import threading

STOPS = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


def obey_parent_only(worker: int) -> None:
    """In a worker, ignore every signal except a SIGTERM from the run.

    Ctrl-C, `timeout`, systemd and Slurm signal all processes at once. The run then saves a
    checkpoint after its iteration, for which its workers must stay alive. The run ends its workers
    with SIGTERM.

    Args:
        worker: the worker's number, unused.
    """
    del worker
    for name in STOPS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not report who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process as soon as its parent sends SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
