"""What torch's profiler recorded: the shares of an iteration's time, and a GPU's kernels.

An event's own time (without its children) counts for the innermost operator around it that has a
heading. All time inside the creation of a batch or an optimizer step counts as data or optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

HEADINGS = (
    "convolution", "BN", "ReLU", "fused", "addition", "optimizer", "data", "other",
)  # fmt: skip

AROUND = {"bench::data": "data", "Optimizer.": "optimizer", "AccumulateGrad": "optimizer"}
"""Part of a name → heading, for an event and all its children. The optimizer includes the sums of
the weights' gradients over micro-batches."""

OPERATORS = (
    ("ghost", "fused"),  # the operator of kernels/ghost_bn.py, and its backward pass
    ("resvar::weight_gradient", "convolution"),
    ("resvar::", "fused"),
    ("CompiledFunction", "fused"),
    ("Torch-Compiled", "fused"),
    ("conv", "convolution"),
    ("batchnorm", "BN"),
    ("batch_norm", "BN"),
    ("relu", "ReLU"),
    ("threshold_backward", "ReLU"),
    ("clamp_min", "ReLU"),
    ("fused_sgd", "optimizer"),
)
"""Part of an operator's name → heading; the first match decides."""

ADDITIONS = ("aten::add", "aten::add_")  # `aten::addmm` is the linear layer


def shares(events: Iterable[Any], own_time: Callable[[Any], float]) -> dict[str, float]:
    """The share of each heading, adding up to 1; headings without time are left out.

    Args:
        events: of torch.profiler, each with `name` and `cpu_parent`.
        own_time: an event's time without its children's, in any unit.
    """
    sums = dict.fromkeys(HEADINGS, 0.0)
    for event in events:
        sums[heading_of(_upwards(event))] += own_time(event)
    total = sum(sums.values())
    return {name: time / total for name, time in sums.items() if time} if total else {}


NOT_KERNELS = ("Memcpy", "Memset")
"""How the names of a GPU's copies and fills begin. They are not kernels."""


@dataclass(frozen=True)
class DeviceWork:
    """What a GPU does under one name in an update: how often, and its time in all, in µs."""

    name: str
    count: float
    microseconds: float

    @property
    def is_kernel(self) -> bool:
        return not self.name.startswith(NOT_KERNELS)


def device_work(events: Iterable[Any], updates: int) -> list[DeviceWork]:
    """The kernels, copies and fills of an update by name, the longest in all first.

    The profiler also shows each named range of the host as an event of the GPU, from its first
    kernel to its last; it is left out.

    Args:
        events: of torch.profiler, from this many `updates`.
    """
    times: dict[str, list[float]] = {}
    for event in events:
        if event.device_type.name == "CUDA" and not _is_range(event):
            times.setdefault(event.name, []).append(event.time_range.elapsed_us())
    found = [
        DeviceWork(name, len(each) / updates, sum(each) / updates) for name, each in times.items()
    ]
    return sorted(found, key=lambda work: work.microseconds, reverse=True)


def launches(work: Sequence[DeviceWork]) -> dict[str, int | None]:
    """Kernels of an update, and copies and fills; None if the profiler recorded no kernels.

    Rounded: a session may lose its first kernels (https://github.com/pytorch/pytorch/issues/192021).
    """
    kernels = sum(one.count for one in work if one.is_kernel)
    copies = sum(one.count for one in work if not one.is_kernel)
    if not kernels:
        return {"kernels": None, "copies": None}
    return {"kernels": round(kernels), "copies": round(copies)}


def _is_range(event: Any) -> bool:
    # Older versions of torch do not mark ranges; those of an update have these names.
    return getattr(event, "is_user_annotation", False) or any(part in event.name for part in AROUND)


def heading_of(names: list[str]) -> str:
    """The heading of an event, from its name and those of the events around it, innermost first."""
    for name in names:
        for part, found in AROUND.items():
            if part in name:
                return found
    for name in names:
        if name in ADDITIONS:
            return "addition"
        for part, found in OPERATORS:
            if part.lower() in name.lower():
                return found
    return "other"


def _upwards(event: Any) -> list[str]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names
