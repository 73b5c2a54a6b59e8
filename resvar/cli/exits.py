"""How a command ends: exit codes, errors in one sentence, Ctrl-C and SIGTERM.

0 done; 2 the input is wrong; 1 any other failure; 130 stopped by Ctrl-C or SIGTERM. With
`RESVAR_DEBUG=1` the traceback of an error, causes included, precedes its sentence.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType

from resvar.errors import PeerFailure, RunError, Stopped, UserError

STOPPED = "stopped; rerun the command to resume from what is saved."

RETRY_SECONDS = 0.05


def exit_code(command: Callable[[], object]) -> int:
    """Run a command; an error becomes a sentence on stderr and an exit code.

    Raises:
        Exception: an error of the program itself, for which a traceback is the right report.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
    try:
        return _attempt(command)
    except KeyboardInterrupt:  # during the report of an error
        return _report(STOPPED, Stopped.exit_code)
    finally:
        _cancel_retry()


def _attempt(command: Callable[[], object]) -> int:
    try:
        code = command()
        if code == Stopped.exit_code:  # Typer has caught a KeyboardInterrupt
            return _report(STOPPED, code)
        return code if isinstance(code, int) else 0
    except (UserError, RunError) as error:
        return _report(str(error), error.exit_code, error)
    except Stopped as stopped:
        print(f"resvar: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except PeerFailure as failure:
        return failure.exit_code
    except KeyboardInterrupt:
        return _report(STOPPED, Stopped.exit_code)
    except BrokenPipeError:
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _report(f"{error.strerror or error}{where}.", 1, error)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's: an unknown option, a missing value
            problem = error.format_message().replace("Value error, ", "").rstrip(".")
            return _report(f"{problem}. Try --help.", 2)
        if type(error).__name__ == "Abort":
            return _report(STOPPED, Stopped.exit_code)
        raise


def _report(sentence: str, code: int, error: Exception | None = None) -> int:
    if error is not None and os.environ.get("RESVAR_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"resvar: error: {sentence}", file=sys.stderr)
    return code


# --- signals --------------------------------------------------------------------------------------


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """The handler of SIGINT and SIGTERM outside the training loop, which has its own.

    An import is completed first: torch aborts the process if its own import is interrupted.
    """
    del signum
    if _is_importing(frame) and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        return
    raise KeyboardInterrupt


def _cancel_retry() -> None:
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is _interrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
