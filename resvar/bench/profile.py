"""The shares of an iteration's time: the profiler's events sorted by heading.

An event's own time (without its children) counts for the innermost operator around it that has a
heading. All time inside the creation of a batch or an optimizer step counts as data or optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

HEADINGS = (
    "convolution", "BN", "ReLU", "fused", "addition", "optimizer", "data", "other",
)  # fmt: skip

AROUND = {"bench::data": "data", "Optimizer.": "optimizer", "AccumulateGrad": "optimizer"}
"""Part of a name → heading, for an event and all its children. The optimizer includes the sums of
the weights' gradients over micro-batches."""

OPERATORS = (
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
