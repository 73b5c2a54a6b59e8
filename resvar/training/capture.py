"""`capture: iteration`: on a GPU an update is recorded once as a CUDA graph, and then replayed.

An update of a deep network on small images is a thousand kernels, each shorter than it takes Python
to launch it. A CUDA graph holds all of them, from the micro-batches to the optimizer, and starts
with one launch: the same kernels on the same numbers, so that the bits stay what they were.

What a graph reads and writes lies where it lay at the capture: images, labels and learning rates
are therefore copied to places of their own before each replay, and the sums are never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from resvar.config import Settings
from resvar.errors import UserError

WARM_UPS = 3
"""Updates of each process that are launched kernel by kernel: meanwhile units are compiled, cuDNN
chooses its algorithms and the momenta come into being. They count like all others."""

Work = Callable[[Tensor, Tensor], None]


class Graph(Protocol):
    """What can be recorded once and done again."""

    def capture(self, work: Callable[[], None]) -> None: ...
    def replay(self) -> None: ...


class CudaGraph:
    """The kernels that a piece of work launches; `capture` records them and runs none."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], None]) -> None:
        # Other threads (of a data loader, say) may go on talking to the device meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            work()

    def replay(self) -> None:
        self._graph.replay()


class CapturedUpdates:
    """The updates of one network in one process: the first as they are, the rest from a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._warm_ups = graph, WARM_UPS
        self._held: tuple[Tensor, Tensor, list[Tensor]] | None = None

    def __call__(
        self, work: Work, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
    ) -> None:
        """Do `work(images, labels)`, which ends with a step of the optimizer at the rates that its
        groups hold. The work is the same each time; images and labels keep their shape."""
        if self._warm_ups:
            self._warm_ups -= 1
            work(images, labels)
            return
        groups = optimizer.param_groups
        if self._held is None:
            rates = [torch.tensor(group["lr"], device=images.device) for group in groups]
            self._held = images.clone(), labels.clone(), rates
            self._graph.capture(lambda: self._at_held_rates(work, groups))
        own_images, own_labels, rates = self._held
        own_images.copy_(images)
        own_labels.copy_(labels)
        for rate, group in zip(rates, groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()

    def _at_held_rates(self, work: Work, groups: list[dict[str, Any]]) -> None:
        """The work, with rates that are read when the graph runs; the groups keep their numbers."""
        assert self._held is not None
        images, labels, rates = self._held
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        work(images, labels)
        for group, number in zip(groups, numbers, strict=True):
            group["lr"] = number


def choose_capture(
    settings: Settings, device: torch.device, processes: int = 1
) -> Literal["none", "iteration"]:
    """`auto` is `iteration` on a GPU, for a run that one process has to itself.

    Raises:
        UserError: `iteration` was asked for and cannot be had.
    """
    obstacle = None
    if device.type != "cuda":
        obstacle = "a graph is captured on a GPU only"
    elif processes > 1:
        obstacle = "a run that several processes share waits for the others within an update"
    if obstacle is not None and settings.capture == "iteration":
        raise UserError(f"'capture' iteration: {obstacle}; leave it at auto.")
    return "none" if obstacle is not None or settings.capture == "none" else "iteration"


def captured_updates(settings: Settings) -> CapturedUpdates | None:
    """Where the settings say so (`auto` decided already); None: each update by itself."""
    return CapturedUpdates(CudaGraph()) if settings.capture == "iteration" else None
