"""Micro-batches abreast: on a processor each goes through the network on threads of its own.

Threads that share every operator wait for each other at the end of each, hundreds of times in an
iteration. Where each takes a micro-batch for itself, they meet once. The price is memory: what the
backward pass needs of several micro-batches is held at the same time.

BN's batch statistics are those of a micro-batch either way, and gradients are added up in the order
of the micro-batches: so losses, gradients and weights have the bits that fewer threads give, one
micro-batch after the other. Running statistics, which training never reads, agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resvar.config import Settings
from resvar.models.complexity import describe

LARGEST = 2 * 2**30
"""Bytes that the further micro-batches may hold on to, for more speed."""

Score = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def workers(settings: Settings, device: torch.device, threads: int, processes: int = 1) -> int:
    """How many micro-batches go through the network at a time; 1: one after the other.

    As many as there are, as the threads can be divided among, and as memory is meant for: not with
    `recompute`, for which one asks who has too little of it.

    Args:
        settings: with `precision` and `kernels` decided. `plain` kernels do what they always did.
        threads: of this process.
        processes: that share the run; these are abreast already.
    """
    possible = (
        settings.micro_batches == "auto"
        and device.type == "cpu"
        and settings.kernels == "fused"
        and settings.recompute == "none"
        and processes == 1
    )
    if not possible:
        return 1
    micro_batches = settings.batch_size // settings.bn_batch_size
    most = 1 + LARGEST // held_bytes(settings)
    fitting = range(1, min(threads, micro_batches, most) + 1)
    return max(n for n in fitting if threads % n == micro_batches % n == 0)


def held_bytes(settings: Settings) -> int:
    """About what the backward pass needs of a micro-batch: of each unit its input, and what its
    convolutions put out."""
    table = describe(settings.ordering, settings.architecture)
    numbers = sum(
        row.units * row.size**2 * (row.channels + sum(conv.channels for conv in row.convolutions))
        for row in table.stages
    )
    side = settings.image_size if settings.dataset == "folder" else 32
    numbers = numbers * side**2 // table.input[1] ** 2
    return numbers * settings.bn_batch_size * (2 if settings.precision == "bf16" else 4)


@dataclass(frozen=True)
class Found:
    """Of one micro-batch: summed loss, wrong predictions, gradients as the parameters lie."""

    loss: Tensor
    wrong: Tensor
    gradients: tuple[Tensor, ...]


class Abreast:
    """Workers that each have a twin of the network: its weights, but statistics of its own.

    Args:
        network: whose gradients and running statistics the workers make.
        twins: more networks of the same kind, one per further worker; they get its weights.
        score: of a network for images and labels, the summed loss and how many are wrong.
        threads: of each worker.
    """

    def __init__(
        self, network: nn.Module, twins: list[nn.Module], score: Score, threads: int
    ) -> None:
        self.network, self.score = network, score
        self.networks = [network, *twins]
        for twin in twins:
            _share_weights(network, twin)
        self.norms = [_norms(each) for each in self.networks]
        for norm in (norm for norms in self.norms[1:] for norm in norms):
            norm.momentum = 1.0  # keeps the statistics of the last micro-batch as they are
        mine = torch.get_num_threads()
        self.workers = [
            ThreadPoolExecutor(1, initializer=_use_threads, initargs=(threads,))
            for _ in self.networks
        ]
        for worker in self.workers:
            worker.submit(torch.get_num_threads).result()
        torch.set_num_threads(mine)

    def add_gradients(self, images: Tensor, labels: Tensor, micro: int) -> list[Found]:
        """The gradients of the mean loss over all images, in `grad`; what was found of each
        micro-batch of `micro` images, in order."""
        pieces = list(zip(torch.split(images, micro), torch.split(labels, micro), strict=True))
        size, found = len(self.networks), []
        for network in self.networks:
            network.train()
        for first in range(0, len(pieces), size):
            asked = [
                worker.submit(self._found, network, *piece, len(labels))
                for worker, network, piece in zip(
                    self.workers, self.networks, pieces[first : first + size], strict=False
                )
            ]
            for number, answer in enumerate(asked):
                found.append(answer.result())
                self._add(found[-1].gradients)
                if number:
                    self._move_statistics(number)
        return found

    def _found(self, network: nn.Module, images: Tensor, labels: Tensor, batch: int) -> Found:
        loss, wrong = self.score(network, images, labels)
        gradients = torch.autograd.grad(loss / batch, list(network.parameters()))
        return Found(loss.detach(), wrong, gradients)

    @torch.no_grad()
    def _add(self, gradients: tuple[Tensor, ...]) -> None:
        for weights, gradient in zip(self.network.parameters(), gradients, strict=True):
            if weights.grad is None:  # laid out as the weights are, as the optimizer needs it
                weights.grad = torch.empty_like(weights).copy_(gradient)
            else:
                weights.grad.add_(gradient)

    @torch.no_grad()
    def _move_statistics(self, number: int) -> None:
        """Take up what a twin's BN layers have seen, as if the network's had."""
        for norm, twin in zip(self.norms[0], self.norms[number], strict=True):
            for name in ("running_mean", "running_var"):
                getattr(norm, name).lerp_(getattr(twin, name), norm.momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)


def _use_threads(count: int) -> None:
    """So many for what the calling thread does, in torch and in the fused operators."""
    if hasattr(torch.ops.resvar, "set_threads"):
        torch.ops.resvar.set_threads(count)
    else:
        torch.set_num_threads(count)


def _share_weights(network: nn.Module, twin: nn.Module) -> None:
    for module, other in zip(network.modules(), twin.modules(), strict=True):
        for name, weights in module.named_parameters(recurse=False):
            setattr(other, name, weights)


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
