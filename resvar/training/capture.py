"""`capture: iteration`: on a GPU an update is recorded once as a CUDA graph, then replayed.

An update of a deep network on small images is thousands of kernels, each shorter than its launch
from Python. A CUDA graph contains all of them, from the micro-batches to the optimizer, and starts
with one launch: the same kernels on the same numbers, and so the same bits.

A graph reads and writes the memory that it was captured with. So images, labels and learning rates
are copied to fixed tensors before each replay, and the meters are never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UPS = 3
"""Updates of each process that are launched kernel by kernel, while units compile, cuDNN chooses
its algorithms and the momenta are created. They count like all others."""

Work = Callable[[Tensor, Tensor], None]


class Graph(Protocol):
    """Work that can be recorded once and replayed."""

    def capture(self, work: Callable[[], None]) -> None: ...
    def replay(self) -> None: ...


class CudaGraph:
    """The kernels that some work launches; `capture` records them and runs none."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], None]) -> None:
        # Other threads, such as a data loader's, may use the device meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            work()

    def replay(self) -> None:
        self._graph.replay()


class CapturedUpdates:
    """The updates of one network in one process: the first ones directly, the rest from a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._warm_ups = graph, WARM_UPS
        self._inputs: tuple[Tensor, Tensor, list[Tensor]] | None = None

    def __call__(
        self, work: Work, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
    ) -> None:
        """Do `work(images, labels)`, which ends with a step of the optimizer at the rates of its
        groups. The work is the same each time; images and labels keep their shape."""
        if self._warm_ups:
            self._warm_ups -= 1
            work(images, labels)
            return
        groups = optimizer.param_groups
        if self._inputs is None:
            rates = [torch.tensor(group["lr"], device=images.device) for group in groups]
            self._inputs = images.clone(), labels.clone(), rates
            self._graph.capture(lambda: self._with_tensor_rates(work, groups))
        own_images, own_labels, rates = self._inputs
        own_images.copy_(images)
        own_labels.copy_(labels)
        for rate, group in zip(rates, groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()

    def _with_tensor_rates(self, work: Work, groups: list[dict[str, Any]]) -> None:
        """The work, with rates that the graph reads when it runs; the groups keep their numbers."""
        assert self._inputs is not None
        images, labels, rates = self._inputs
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        work(images, labels)
        for group, number in zip(groups, numbers, strict=True):
            group["lr"] = number
