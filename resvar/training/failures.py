"""Why a run failed: recorded in its directory, and reported in a sentence with a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resvar import rundir
from resvar.errors import RunError, Stopped, UserError, first_line, is_out_of_memory
from resvar.training.trainer import DivergedError


@contextmanager
def record_failures(folder: Path) -> Iterator[None]:
    """Record in the run directory why the work failed; not when it is stopped or refused."""
    try:
        yield
    except DivergedError as error:
        loss = error.loss if math.isfinite(error.loss) else str(error.loss)  # JSON has no NaN
        note = {"iteration": error.iteration, "loss": loss, "message": str(error)}
        rundir.write_note(folder / rundir.DIVERGED, note)
        raise
    except OSError as error:
        reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise _failure(
            folder, f"{folder}: {reason}; what was saved is kept, and the same command resumes."
        ) from error
    except Exception as error:
        saved = (folder / rundir.CHECKPOINT).exists()
        if (sentence := _advice(error, saved)) is not None:
            raise _failure(folder, f"{folder}: {sentence}") from error
        if not isinstance(error, UserError | Stopped):
            _failure(folder, str(error) or type(error).__name__)
        raise


def _advice(error: Exception, saved: bool) -> str | None:
    """What to do about an error that is no fault of the program; None for any other.

    Args:
        saved: whether there is a checkpoint.
    """
    kept = "the last checkpoint is kept" if saved else "no checkpoint was due yet"
    if is_out_of_memory(error):
        where = "the GPU" if "cuda" in str(error).lower() else "this machine"
        return (
            f"{where} has not enough free memory ({first_line(error)}); {kept}. Free some and "
            "repeat the command; --set recompute=unit needs less."
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            f"a process that reads images died ({first_line(error)}); {kept}, and the same command "
            "resumes."
        )
    return None


def _failure(folder: Path, message: str) -> RunError:
    """Write `failure.json`; returns the error with the same message."""
    with suppress(OSError):  # the disk that failed may be this one
        rundir.write_failure(folder, message)
    return RunError(message)
