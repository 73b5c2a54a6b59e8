"""resvar: where should BatchNorm and ReLU go in a residual unit?

    import resvar
    model = resvar.build_model("full-preact", depth=164)
    same = resvar.build_model(**resvar.named("full-preact-164"))
    run = resvar.train("full-preact", 20, protocol="quick")
    runs = resvar.load_runs("runs")

`train`, `sweep` and `report` do what the commands do; see `help(resvar.train)`. The names load on
first use, so `import resvar` and `resvar --help` do not wait for torch.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resvar.api import Run as Run
    from resvar.api import load_run as load_run
    from resvar.api import load_runs as load_runs
    from resvar.api import report as report
    from resvar.api import sweep as sweep
    from resvar.api import train as train
    from resvar.errors import RunError as RunError
    from resvar.errors import Stopped as Stopped
    from resvar.errors import UserError as UserError
    from resvar.export.safetensors_file import load_model as load_model
    from resvar.identification.identify import identify as identify
    from resvar.models.names import named as named
    from resvar.models.network import build_model as build_model
    from resvar.models.ordering import Ordering as Ordering

from resvar.limits import available_cores, cores_by_affinity
from resvar.version import __version__

_HOMES = {
    "Ordering": "resvar.models.ordering",
    "Run": "resvar.api",
    "RunError": "resvar.errors",
    "Stopped": "resvar.errors",
    "UserError": "resvar.errors",
    "build_model": "resvar.models.network",
    "identify": "resvar.identification.identify",
    "load_model": "resvar.export.safetensors_file",
    "load_run": "resvar.api",
    "load_runs": "resvar.api",
    "named": "resvar.models.names",
    "report": "resvar.api",
    "sweep": "resvar.api",
    "train": "resvar.api",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resvar' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def shorten_spinning(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP threads of torch that wait for others yield their core after about 0.1 ms.

    By default they spin for some milliseconds. If another process needs that core, each of the
    thousands of barriers in an iteration then costs a time slice: on two cores, next to one other
    process, ResNet-164 took 32 s per iteration instead of 1, and 4.5 s with this. OpenMP reads the
    variable when torch loads, so `import resvar` must come before `import torch`. The user's own
    choice has priority.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "10000")


def fit_threads(environment: MutableMapping[str, str], cores: int, by_affinity: int) -> None:
    """Let OpenMP start no more threads than a cgroup's quota allows to run at a time.

    By default it starts one for each processor that it sees, in a container all of the machine's;
    they then share the quota and wait for each other. Read when torch loads, as above.
    Without a quota nothing changes, and the user's own choice has priority.

    Args:
        cores: processors that may be in use at a time, the quota included.
        by_affinity: processors that OpenMP sees.
    """
    if cores < by_affinity:
        environment.setdefault("OMP_NUM_THREADS", str(cores))


shorten_spinning(os.environ)
fit_threads(os.environ, available_cores(), cores_by_affinity())
