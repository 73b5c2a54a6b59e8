"""The processes that read images for a run: they end when the run ends them, and not before."""

from __future__ import annotations

import os
import signal
import threading

STOPS = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


def obey_parent_only(worker: int) -> None:
    """Leave signals to the run, in one of its workers.

    Ctrl-C, `timeout`, systemd and Slurm signal all processes at once. The run then saves a
    checkpoint after its iteration, but only if no worker dies before that. The run itself ends its
    workers by SIGTERM.

    Args:
        worker: its number, which does not matter.
    """
    del worker
    for name in STOPS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process as soon as its parent sends SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
