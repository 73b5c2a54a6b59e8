"""Count on a processor the kernels that an update would launch on a GPU.

    python scripts/count_launches.py [--depth 110] [--variant full-preact]

A GPU needs about 2.35 µs per kernel of these networks whatever the kernel does, so their number
decides the speed. The count is a lower bound. Each operation counts once; those that only make or
view a tensor, never; the gradient of a convolution once for the signal and once for the weights; an
operation for many tensors once for as many as torch passes to one kernel. cuDNN launches more for
some convolutions, and torch for BN. On a GPU, `resvar bench` prints what was launched.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resvar.config import resolve
from resvar.errors import UserError
from resvar.kernels import ghost_bn
from resvar.settings import Settings
from resvar.training.execution import Execution
from resvar.training.multi_tensor import CastWeights
from resvar.training.step import Updater

NO_KERNEL = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like",
    "empty_strided", "expand", "new_empty", "new_empty_strided", "permute", "select", "slice",
    "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip

TENSORS_OF_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36}
"""Number of lists → tensors of each that one kernel takes (`depth_to_max_tensors` in torch's
MultiTensorApply.cuh)."""

GHOST_BN = ("moments", "apply", "sums", "through")


def main() -> None:
    """Print the number of launches of an update, by what is done at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, default=110, help="layers; default: 110")
    parser.add_argument("--variant", default="full-preact", help="ordering; default: full-preact")
    options = parser.parse_args()
    try:
        settings = settings_of(options.variant, options.depth)
    except UserError as error:
        parser.error(str(error))
    print(f"{options.variant}, ResNet-{options.depth}, two micro-batches in bf16:")
    for name, make in UPDATES.items():
        launches = launches_of(make(settings))
        most = ", ".join(f"{count} {op}" for op, count in launches.most_common(3))
        print(f"{launches.total():6,}  {name}\n{'':8}{most}, …")


def settings_of(variant: str, depth: int) -> Settings:
    """Four images in two micro-batches: the number of images changes no count."""
    return resolve(
        options={"variant": variant, "depth": depth},
        overrides=["precision=bf16", "kernels=plain", "batch_size=4", "bn_batch_size=2"],
    )


def micro_batches(settings: Settings) -> Updater:
    """An operation for the cast of each weight and for the counter of each BN."""
    return Updater(Execution.resolve(settings, torch.device("cpu")))


def multi_tensor(settings: Settings, ghost: bool = False) -> Updater:
    """`kernels=plain` on a GPU: all weights cast, and all batches counted, by one operation."""
    plan = Execution.resolve(settings, torch.device("cpu"))
    updater = Updater(replace(plan, multi_tensor=True, ghost=ghost))
    updater.cast_weights = CastWeights(updater.network, torch.bfloat16)
    return updater


def ghost_bn_updates(settings: Settings) -> Updater:
    """`kernels=fused` on a GPU: also the whole batch in one pass, with BN over groups of it."""
    return multi_tensor(settings, ghost=True)


UPDATES: dict[str, Callable[[Settings], Updater]] = {
    "one cast per weight and one counter per BN": micro_batches,
    "all casts and all counters at once (kernels=plain on a GPU)": multi_tensor,
    "also the whole batch at once, with ghost BN (kernels=fused on a GPU)": ghost_bn_updates,
}


def launches_of(updater: Updater) -> Counter[str]:
    """Launches by operation, of the second update: the first creates momenta."""
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    launches = Launches()
    with _triton_counted(launches.count):
        updater(images, labels)
        launches.count.clear()
        with launches:
            updater(images, labels)
    return launches.count


class Launches(TorchDispatchMode):
    """Counts the launches of the operations within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        name = str(func.overloadpacket).removeprefix("aten.")
        self.count[name] += _launches(name, args)
        return func(*args, **(kwargs or {}))


def _launches(name: str, args: tuple[Any, ...]) -> int:
    if name in NO_KERNEL or name.startswith("profiler."):
        return 0
    if name.startswith(("_foreach_", "_fused_")):
        lists = sum(isinstance(each, list | tuple) and bool(each) for each in args)
        return -(-len(args[0]) // TENSORS_OF_A_LAUNCH[lists])
    if name == "convolution_backward":
        return sum(args[-1])  # one of the gradients that are asked for
    return 1


@contextmanager
def _triton_counted(count: Counter[str]) -> Iterator[None]:
    """Within it, Triton's kernels are counted instead of launched; their output is anything."""

    def launch(kernel: str, *_args: Any, **_constants: Any) -> None:
        count[kernel] += 1

    kernels = SimpleNamespace(**{name: name for name in GHOST_BN})
    with (
        patch.object(ghost_bn, "_triton_kernels", lambda: kernels),
        patch.object(ghost_bn, "_interpreted", lambda: True),
        patch.object(ghost_bn, "_launch", launch),
    ):
        yield


if __name__ == "__main__":
    main()
