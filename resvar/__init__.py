"""resvar: where should BatchNorm and ReLU stand in a residual unit?

    import resvar
    model = resvar.build_model("full-preact", depth=164)
    run = resvar.load_run("runs/quick/full-preact-164/seed-0")
    model = resvar.load_model("full-preact-164.safetensors")

The names load on first use, so that `import resvar` and `resvar --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resvar.api import load_run as load_run
    from resvar.export.safetensors_file import load_model as load_model
    from resvar.models.network import build_model as build_model
    from resvar.models.ordering import Ordering as Ordering

__version__ = "0.1.0"
__all__ = ["Ordering", "__version__", "build_model", "load_model", "load_run"]

_HOMES = {
    "build_model": "resvar.models.network",
    "Ordering": "resvar.models.ordering",
    "load_model": "resvar.export.safetensors_file",
    "load_run": "resvar.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resvar' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
