"""Faults in the processes that the tests start; the package itself has no hooks for tests.

Python imports a file of this name at start-up, and the tests put this folder on the PYTHONPATH of
their child processes. It reads environment variables:

    RESVAR_TEST_DATA=DIR          use the tiny datasets in DIR (`md5.json`) as the official ones
    RESVAR_TEST_KILL=PLACE:N      SIGKILL when this process reaches a place for the N-th time
    RESVAR_TEST_HANG=PLACE:N      hang there, and answer signals only
    RESVAR_TEST_WAIT=PLACE:N      wait there for SIGTERM or Ctrl-C, or for the end of the parent
    RESVAR_TEST_FAIL=PLACE:N      the disk is full there
    RESVAR_TEST_CRASH=PLACE:N     an unexpected exception there
    RESVAR_TEST_TERM=PLACE:N      SIGTERM there
    RESVAR_TEST_INT=PLACE:N       Ctrl-C there
    RESVAR_TEST_PHASES=DIR        record the phase of this process in DIR/<pid>, up to its death
    RESVAR_TEST_SLOW=SECONDS      delay each training iteration
    RESVAR_TEST_CLOCK=SECONDS     turn the clock back by so much each time it is read
    RESVAR_TEST_ONLY=TEXT         all but DATA only for command lines that contain TEXT

With DATA, a run saves every periodic checkpoint, however short the time since the last one.

Places: `import` (of torch, in the middle), `iteration`, `evaluation` (in the middle of one),
`checkpoint-write` (half the bytes are written), and for each file that is replaced as a whole
`before-NAME` and `after-NAME` its rename, such as `before-result.json`.
"""

import collections
import dataclasses
import errno
import importlib.util
import io
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

PASSED = collections.Counter()
"""Number of times that each place was reached."""


# --- faults ---------------------------------------------------------------------------------------


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    print("HANGING", flush=True)
    time.sleep(600)


def wait():
    asked = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in handlers:
        signal.signal(number, lambda *details: asked.append(details))
    parent = os.getppid()
    print("WAITING", flush=True)
    while not asked and os.getppid() == parent:
        time.sleep(0.05)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for number, frame in asked:
        handlers[number](number, frame)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def fail():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk of the test")


def crash():
    raise ZeroDivisionError("the test asked for it")


ACTIONS = {
    "RESVAR_TEST_KILL": kill,
    "RESVAR_TEST_HANG": hang,
    "RESVAR_TEST_WAIT": wait,
    "RESVAR_TEST_FAIL": fail,
    "RESVAR_TEST_CRASH": crash,
    "RESVAR_TEST_TERM": terminate,
    "RESVAR_TEST_INT": interrupt,
}


def concerned():
    return os.environ.get("RESVAR_TEST_ONLY", "") in " ".join(sys.orig_argv)


def reached(place):
    """At a place: apply the faults that the environment asks for."""
    PASSED[place] += 1
    for variable, action in ACTIONS.items():
        if os.environ.get(variable) == f"{place}:{PASSED[place]}" and concerned():
            action()


class Phase:
    """A context manager that records the phase of this process in a file; at first `loading`.

    Its end restores the phase before. The system keeps a write even if the process is killed right
    after it.
    """

    now = "loading"
    file = None

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.before = "elsewhere" if Phase.now == "loading" else Phase.now
        self.note(self.name)

    def __exit__(self, *_):
        self.note(self.before)

    @staticmethod
    def note(name):
        Phase.now = name
        if "RESVAR_TEST_PHASES" in os.environ:
            if Phase.file is None:
                path = Path(os.environ["RESVAR_TEST_PHASES"]) / str(os.getpid())
                Phase.file = os.open(path, os.O_WRONLY | os.O_CREAT)
            os.pwrite(Phase.file, name.ljust(40).encode(), 0)


def during(name, function):
    def noted(*arguments, **options):
        with Phase(name):
            return function(*arguments, **options)

    return noted


# --- places ---------------------------------------------------------------------------------------


def watch_renames():
    replace = Path.replace

    def watched(self, target):
        name = Path(target).name
        reached(f"before-{name}")
        result = replace(self, target)
        reached(f"after-{name}")
        return result

    Path.replace = watched


def watch_trainer(trainer):
    trainer.CHECKPOINT_PAUSE = 0.0  # else a run of a second has two checkpoints
    step, evaluate = trainer.Trainer.step, trainer.evaluate

    def slower_step(self, *others):
        with Phase("other iterations" if self.iteration else "first iteration"):
            reached("iteration")
            if concerned():
                time.sleep(float(os.environ.get("RESVAR_TEST_SLOW", "0")))
            step(self, *others)

    def watched_evaluate(network, loader, plan, report=None, captured=None):
        def watched_report(share):
            reached("evaluation")
            if report is not None:
                report(share)

        with Phase("evaluation"):
            return evaluate(network, loader, plan, watched_report, captured)

    trainer.Trainer.step, trainer.evaluate = slower_step, watched_evaluate


def watch_checkpoint(checkpoint):
    """Write a checkpoint in two halves, with a place between them."""

    class Torch:
        def __getattr__(self, name):
            return getattr(real, name)

        def save(self, value, file):
            whole = io.BytesIO()
            real.save(value, whole)
            half = whole.tell() // 2
            file.write(whole.getvalue()[:half])
            file.flush()
            reached("checkpoint-write")
            file.write(whole.getvalue()[half:])

    real = checkpoint.torch
    checkpoint.torch = Torch()
    checkpoint.save = during("checkpoint write", checkpoint.save)


def watch_job(job):
    job._write_result = during("final result.json", job._write_result)


def turn_back_the_clock(seconds):
    told = itertools.count()
    now = time.time()
    time.time = lambda: now - seconds * next(told)


def watch_import(_torch):
    exec("reached('import')", globals())  # as dataclasses and named tuples do


class AfterImport:
    """Calls a function with a module right after its import."""

    def __init__(self, patches):
        self.patches = patches

    def find_spec(self, name, *_):
        patch = self.patches.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)  # without us: the name is popped
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


def use_tiny_data(folder):
    from resvar.data.cifar import DATASETS

    for name, md5 in json.loads((Path(folder) / "md5.json").read_text(encoding="utf-8")).items():
        DATASETS[name] = dataclasses.replace(DATASETS[name], md5=md5)


if "RESVAR_TEST_DATA" in os.environ:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` would ignore it
    use_tiny_data(os.environ["RESVAR_TEST_DATA"])
    watch_renames()
    if "RESVAR_TEST_CLOCK" in os.environ:
        turn_back_the_clock(float(os.environ["RESVAR_TEST_CLOCK"]))
    patches = {
        "torch._tensor": watch_import,
        "resvar.training.trainer": watch_trainer,
        "resvar.training.checkpoint": watch_checkpoint,
        "resvar.training.job": watch_job,
    }
    if late := [name for name in patches if name in sys.modules and name.startswith("resvar.")]:
        raise RuntimeError(f"the driver came after {late}, so that it changes nothing")
    sys.meta_path.insert(0, AfterImport(patches))
