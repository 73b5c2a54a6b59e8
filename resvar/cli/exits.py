"""How a command ends: exit codes, errors in one sentence, Ctrl-C and signals.

0 done; 2 the input is wrong; 1 any other failure; 130 stopped by Ctrl-C or another of `SIGNALS`,
or because the time of a sweep is up.
With `RESVAR_DEBUG=1` the traceback of an error, causes included, precedes its sentence.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from types import FrameType
from typing import Any, NoReturn

from resvar.errors import OutputError, PeerFailure, RunError, Stopped, UserError, is_out_of_memory
from resvar.settings import ROLES
from resvar.streams import log
from resvar.synonyms import NEAR, meant_setting
from resvar.training.stop import SIGNALS

REWORDED = (
    (r"No such command (.+?)\.? Did you mean (.+?)\?", "there is no command {}; did you mean {}?"),
    (r"No such command (.+?)\.?", "there is no command {}."),
    (r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)", "unexpected argument: {}."),
    (r"Option '(.+)' requires an argument\.?", "{} needs a value."),
    (r"Option '(.+)' requires (\d+) arguments\.?", "{} needs {} values."),
    (r"Option '(.+)' does not take a value\.?", "{} takes no value."),
    (r"Invalid value for '(.+?)': (.+?)\.?", "{}: {}."),
)
"""Click's messages as patterns, and our sentences for them."""

RETRY_SECONDS = 0.05


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command; an error becomes a sentence on stderr and an exit code.

    A command that ends well returns None, or an exit code that is its answer.

    Raises:
        Exception: an error of the program itself, for which a traceback is the right report.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _stopping():
            signal.signal(number, _interrupt)
    try:
        return _attempt(command)
    except KeyboardInterrupt:  # during the report of an error
        return _stopped()
    finally:
        _cancel_retry()


def leave(command: Callable[[], int]) -> NoReturn:
    """Exit with a command's code, even if signals arrive while the interpreter shuts down.

    While the functions of `atexit` run, a signal ends the process at once. Then Python removes its
    handlers and clears all modules; from then on signals are ignored.
    """
    atexit.register(_ignore_signals)  # registered before all others, so called after them
    code: int | None = None
    try:
        code = returned = command()
        for number in _stopping():
            signal.signal(number, lambda *_: os._exit(returned))
    except KeyboardInterrupt:  # a signal before or after the lines that `exit_code` guards
        os._exit(_stopped() if code is None else code)
    exec("")  # else Python, interrupted in an earlier exec, exits by a signal and not with a code
    sys.exit(code)


def _attempt(command: Callable[[], int | None]) -> int:
    try:
        return command() or 0
    except (UserError, RunError) as error:
        return _report(str(error), error.exit_code, error)
    except OutputError as error:
        return 0 if error.reader_gone else _report(str(error), 1, error)
    except Stopped as stopped:
        log(f"resvar: {stopped}")
        return stopped.exit_code
    except PeerFailure as failure:
        return failure.exit_code
    except KeyboardInterrupt:
        return _stopped()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _report(f"{error.strerror or str(error) or type(error).__name__}{where}.", 1, error)
    except Exception as error:
        if is_out_of_memory(error):
            return _report("there is not enough memory.", 1, error)
        if hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            asked = context.command_path if context else "resvar"
            return _report(f"{usage_sentence(error)} See {asked} --help.", 2)
        raise


def _stopped() -> int:
    log("resvar: stopped.")
    return Stopped.exit_code


def usage_sentence(error: Any) -> str:
    """What is wrong with a command line, from click's error."""
    kind, message = type(error).__name__, error.format_message().replace("Value error, ", "")
    if kind == "NoSuchOption":
        return f"there is no option {error.option_name}{_meant(error)}"
    if kind == "MissingParameter":
        param = error.param
        return (
            f"{param.metavar if param.param_type_name == 'argument' else param.opts[0]} is missing."
        )
    for pattern, sentence in REWORDED:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return sentence.format(*found.groups())
    return f"{message.rstrip('.')}."


def _meant(error: Any) -> str:
    """What a user means by an unknown option: another one, or a setting."""
    word, options = error.option_name.lstrip("-"), error.possibilities or ()
    if near := get_close_matches(error.option_name, options, 1, NEAR):
        return f"; did you mean {near[0]}?"
    meant = meant_setting(word, ROLES)
    if found := re.fullmatch("; did you mean '(.+)'\\?", meant):
        known = {option for param in error.ctx.command.params for option in param.opts}
        option = f"--{found[1].replace('_', '-')}"
        return f"; did you mean {option if option in known else f'--set {found[1]}=…'}?"
    return meant or "."


def _report(sentence: str, code: int, error: Exception | None = None) -> int:
    if error is not None and os.environ.get("RESVAR_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    log(f"resvar: error: {sentence}")
    return code


# --- signals --------------------------------------------------------------------------------------


def _stopping() -> list[signal.Signals]:
    """The signals that stop a command.

    A signal that was ignored when the process started (`nohup`, `trap '' INT`) stays ignored,
    except SIGTERM, with which a sweep stops its runs.
    """
    return [
        number
        for number in SIGNALS
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN
    ]


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """The handler outside the training loop, which has its own.

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
