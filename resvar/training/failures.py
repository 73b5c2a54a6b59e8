"""Why a run ended early: recorded in its directory, and reported in a sentence with a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resvar import rundir
from resvar.errors import (
    BrokenOffError,
    RunError,
    Stopped,
    UserError,
    first_line,
    is_out_of_memory,
)
from resvar.training.checkpoint import load_newest, outlook
from resvar.training.trainer import DivergedError


@contextmanager
def record_failures(folder: Path, fresh: bool = False) -> Iterator[None]:
    """Record in the run directory why the work failed, unless it was stopped or refused.

    What the messages say about checkpoints is what the folder contains.

    Args:
        fresh: the command had `--fresh`.
    """
    try:
        yield
    except DivergedError as error:
        error.args = (f"{error}{_kept_checkpoint(folder)}",)
        loss = error.loss if math.isfinite(error.loss) else str(error.loss)  # JSON has no NaN
        note = {"iteration": error.iteration, "loss": loss, "message": str(error)}
        rundir.write_note(folder / rundir.DIVERGED, note)
        raise
    except Stopped as stopped:
        raise Stopped(f"{stopped}; {outlook(folder, fresh)}.") from None
    except Exception as error:
        if (reason := _reason(error)) is not None:
            sentence = f"{folder}: {reason}; {outlook(folder, fresh)}."
            raise _failure(folder, sentence) from error
        if not isinstance(error, UserError):
            _failure(folder, str(error) or type(error).__name__)
        raise


def _kept_checkpoint(folder: Path) -> str:
    """A sentence on the checkpoint that a diverged run leaves; empty if there is none."""
    with suppress(Exception):
        if (state := load_newest(folder)) is not None:
            return f" The checkpoint of iteration {state['iteration']:,} is kept."
    return ""


def _reason(error: Exception) -> str | None:
    """Why the work broke off, if it is not the fault of the program or the settings."""
    if isinstance(error, BrokenOffError):
        return str(error).rstrip(".")
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    if is_out_of_memory(error):
        where = "the GPU" if "cuda" in str(error).lower() else "this machine"
        return (
            f"{where} does not have enough free memory ({first_line(error)}): free some, or use "
            "--set recompute=unit"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return f"a process that reads images died ({first_line(error)})"
    return None


def _failure(folder: Path, message: str) -> RunError:
    """Write `failure.json`; returns the error with the same message."""
    with suppress(OSError):  # the disk that failed may be this one
        rundir.write_failure(folder, message)
    return RunError(message)
