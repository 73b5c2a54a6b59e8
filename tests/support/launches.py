"""How many kernels an update would launch on a GPU, counted on the processor.

Each operation counts as at least one launch: those that only make or view a tensor as none, the
gradient of a convolution once for the signal and once for the weights, and one operation for many
tensors once for as many of them as torch passes to one kernel. cuDNN may launch more for a
convolution, and torch more for a BN, so the count is a lower bound.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resvar.kernels import ghost_bn

NO_KERNEL = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like",
    "empty_strided", "expand", "new_empty", "new_empty_strided", "permute", "select", "slice",
    "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip

TENSORS_OF_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36}
"""Number of lists → tensors of each list that one kernel takes (depth_to_max_tensors in torch's
MultiTensorApply.cuh)."""


class Launches(TorchDispatchMode):
    """Counts the launches within it by operation; Triton's kernels by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        name = str(func.overloadpacket).removeprefix("aten.")
        self.count[name] += _launches(name, args)
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.count.total()


def _launches(name, args):
    if name in NO_KERNEL or name.startswith("profiler."):
        return 0
    if name.startswith(("_foreach_", "_fused_")):
        lists = sum(isinstance(each, list | tuple) and bool(each) for each in args)
        return -(-len(args[0]) // TENSORS_OF_A_LAUNCH[lists])
    if name == "convolution_backward":
        return sum(args[-1])
    return 1


def count_triton(patch, launches):
    """Let the operators of `ghost_bn` be counted instead of computed; their output is anything."""
    names = ("moments", "apply", "sums", "through")
    patch.setattr(ghost_bn, "_kernels", lambda: SimpleNamespace(**{name: name for name in names}))
    patch.setattr(ghost_bn, "_interpreted", lambda: True)
    patch.setattr(ghost_bn, "_launch", lambda kernel, *_a, **_k: launches.count.update({kernel: 1}))


def launches_of(updater, patch):
    """Those of one update after a first one, with four images."""
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    found = Launches()
    count_triton(patch, found)
    updater(images, labels)
    found.count.clear()
    with found:
        updater(images, labels)
    return found
