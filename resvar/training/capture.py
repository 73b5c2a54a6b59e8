"""`capture: iteration`: on a GPU, updates and evaluations are captured as CUDA graphs.

An update of a deep network on small images is thousands of kernels, each shorter than its launch
from Python, and a batch of an evaluation is hundreds. A CUDA graph contains all of them and starts
with one launch: the same kernels on the same numbers, and so the same bits.

A graph reads and writes the memory that it was captured with. So its inputs (images, labels,
learning rates) are copied to fixed tensors before each replay, its outputs are overwritten by the
next one, and weights, statistics and meters are never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

Evaluated = tuple[Tensor, Tensor]
"""Of one batch: the sum of its losses, and the predicted classes int64 [B]."""

WARM_UPS = 3
"""First calls in each process that are launched kernel by kernel, while units compile, cuDNN
chooses its algorithms and the momenta are created. They count like all others."""


class Graph(Protocol):
    """Work that can be captured and then replayed."""

    def capture(self, work: Callable[[], T]) -> T:
        """Record the work; returns its outputs, whose memory each replay writes."""

    def replay(self) -> None: ...

    def beside(self) -> Graph:
        """Another graph, for other work; the two are never replayed at the same time."""


class CudaGraph:
    """The kernels that some work launches; `capture` records them and runs none.

    Graphs that are beside each other use the same memory for their intermediate tensors: a replay
    starts from its inputs alone, so what another one leaves there is of no use.
    """

    def __init__(self, pool: Any = None) -> None:
        self._pool = torch.cuda.graph_pool_handle() if pool is None else pool
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture(self, work: Callable[[], T]) -> T:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as a data loader's, may use the device meanwhile.
        with torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
            outputs = work()
        self._graph = graph  # an earlier one keeps the pool alive until here
        return outputs

    def replay(self) -> None:
        assert self._graph is not None
        self._graph.replay()

    def beside(self) -> CudaGraph:
        return CudaGraph(self._pool)


class Captured(Generic[T]):
    """The calls of a function in one process: the first ones direct, the rest from a graph.

    Apart from its arguments, the function uses the same memory each time. A call with tensors of
    another shape than those of the first call, such as a last, smaller batch, is direct too.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.restart()

    def restart(self) -> None:
        """Begin anew with warm-ups, after memory that the function uses was replaced."""
        self._warm_ups = WARM_UPS
        self._shapes: list[torch.Size] | None = None
        self._captured: tuple[list[Tensor], T] | None = None

    def __call__(self, work: Callable[..., T], *arguments: Tensor | float) -> T:
        """`work(*arguments)`, the first a tensor. In a graph, numbers become fp32 tensors, and the
        outputs are valid until the next call."""
        shapes = [given.shape for given in arguments if isinstance(given, Tensor)]
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            return work(*arguments)
        if self._warm_ups:
            self._warm_ups -= 1
            return work(*arguments)
        if self._captured is None:
            device = next(given.device for given in arguments if isinstance(given, Tensor))
            fixed = [
                given.clone() if isinstance(given, Tensor) else torch.tensor(given, device=device)
                for given in arguments
            ]
            self._captured = fixed, self._graph.capture(lambda: work(*fixed))
        fixed, outputs = self._captured
        for own, given in zip(fixed, arguments, strict=True):
            if isinstance(given, Tensor):
                own.copy_(given)
            else:
                own.fill_(given)
        self._graph.replay()
        return outputs

    def beside(self) -> Captured[Evaluated]:
        """For the evaluations between updates, in the same memory."""
        return Captured(self._graph.beside())


class CapturedUpdates:
    """The updates of one network in one process."""

    def __init__(self, graph: Graph) -> None:
        self.calls = Captured[None](graph)

    def __call__(
        self,
        work: Callable[[Tensor, Tensor], None],
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
    ) -> None:
        """Do `work(images, labels)`, which ends with a step of the optimizer at the rates of its
        groups. The groups keep their numbers; a graph reads tensors."""
        groups = optimizer.param_groups
        numbers = [group["lr"] for group in groups]

        def with_rates(images: Tensor, labels: Tensor, *rates: Tensor | float) -> None:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
            work(images, labels)

        try:
            self.calls(with_rates, images, labels, *numbers)
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number
