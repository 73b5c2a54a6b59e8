"""One run on several devices: `torchrun --nproc-per-node 2 -m resvar train …`.

Each process (rank) trains on its shard of every batch. After each iteration the ranks add up their
gradients, BN statistics and losses, so that all of them are in the same state at every moment: the
state of a run on one device, to rounding. Rank 0 alone reads and writes the run directory and
prints; it broadcasts results and refusals to the others.

The rest of the package knows this as `Ranks`. Without torchrun it is `SINGLE_PROCESS`.
"""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resvar.data.memory import Shard
from resvar.errors import BrokenOffError, PeerFailure, RunError, Stopped, UserError
from resvar.settings import Settings
from resvar.training.machine import choose_device, device_name

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each process."""

ALIGNMENT = 16
"""Elements: each tensor in a buffer begins at a multiple of 64 bytes, as kernels prefer."""

CONNECTION = re.compile(r"gloo|nccl|connection|socket|broken pipe|timed? ?out|store", re.IGNORECASE)
"""In the message of a RuntimeError from a collective whose peer is gone or silent."""


class LostError(BrokenOffError):
    """Another process of the run ended, or does not answer."""

    def __init__(self) -> None:
        super().__init__("another process of this run has ended or does not answer.")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: this is number `rank` of `size`, and `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """From torchrun's environment variables; `SINGLE_PROCESS` unless all of them are set.

        Raises:
            UserError: one of them has an impossible value.
        """
        if any(name not in os.environ for name in VARIABLES):
            return cls()
        size = _number("WORLD_SIZE", 1)
        rank, local_rank = _number("RANK", 0, size - 1), _number("LOCAL_RANK", 0, size - 1)
        if size > 1:
            _number("MASTER_PORT", 1, 65_535)
            if not os.environ["MASTER_ADDR"].strip():
                raise UserError(
                    "the environment variable MASTER_ADDR is empty, but must be the address of "
                    "process 0; start the processes with torchrun."
                )
        return cls(rank, size, local_rank)

    @property
    def first(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.size)

    # --- decisions in common ----------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any rank. Waits for the other hosts, but for no device."""
        return flag if self.size == 1 else bool(self.all_reduce(torch.tensor(int(flag))))

    def all_reduce(self, values: Tensor) -> Tensor:
        """Add up `values` over all ranks, in place; returns them."""
        if self.size > 1:
            with _peer_failures():
                dist.all_reduce(values)
        return values

    def all_gather(self, value: T) -> list[T]:
        """The `value` of each rank."""
        found = [value] * self.size
        if self.size > 1:
            with _peer_failures():
                dist.all_gather_object(found, value)
        return found

    def on_rank0(self, action: Callable[[], T]) -> T:
        """Call `action` on rank 0 only; its return value, on every rank.

        Raises:
            PeerFailure: on the other ranks, where `action` raised on rank 0.
        """
        if self.size == 1:
            return action()
        if not self.first:
            code, value = self._of_first(None)
            if code is not None:
                raise PeerFailure(code)
            return cast(T, value)
        try:
            value = action()
        except BaseException as error:
            with suppress(LostError):
                self._of_first((_exit_code(error), None))
            raise
        self._of_first((None, value))
        return value

    def on_all_ranks(self, action: Callable[[], T]) -> T:
        """Call `action` on every rank; if it raises on one of them, all raise.

        Raises:
            PeerFailure: on all ranks but rank 0, which raises the error itself.
        """
        if self.size == 1:
            return action()
        try:
            value, error = action(), None
        except Exception as problem:
            value, error = None, problem
        said = self.all_gather(None if error is None else _said(error))
        for rank, (code, sentence) in (
            (rank, failed) for rank, failed in enumerate(said) if failed
        ):
            if not self.first:
                raise PeerFailure(code) from error
            if error is not None:
                raise error
            kind = UserError if code == UserError.exit_code else RunError
            raise kind(f"process {rank}: {sentence}")
        return cast(T, value)

    def agree_on(self, facts: Mapping[str, Any]) -> None:
        """Make sure that all ranks were started alike.

        Raises:
            UserError: a fact differs between ranks.
            PeerFailure: on all ranks but rank 0.
        """
        everywhere = self.all_gather({**facts, "machine": socket.gethostname()})
        for rank, theirs in enumerate(everywhere):
            for name in facts:
                ours = everywhere[0][name]
                if theirs[name] == ours:
                    continue
                if not self.first:
                    raise PeerFailure(UserError.exit_code)
                raise UserError(
                    f"process {rank} on {theirs['machine']} has {name} {theirs[name]} where "
                    f"process 0 has {ours}: start all with the same command, on identical machines."
                )

    def _of_first(self, value: tuple[int | None, Any] | None) -> tuple[int | None, Any]:
        held: list[Any] = [value]
        with _peer_failures():
            dist.broadcast_object_list(held)
        return cast(tuple[int | None, Any], held[0])

    # --- what each works on ---------------------------------------------------------------------

    def device(self, name: str) -> torch.device:
        """The device of this rank: `name` as in `choose_device`, but one GPU per rank.

        Raises:
            UserError: there is no such device, or not one for each rank.
        """
        device = choose_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if ":" in name:
            raise UserError(
                f"--device {name}: each of the {self.size} processes uses its own GPU; use "
                "--device cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES."
            )
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise UserError(
                f"there is no GPU for process number {self.local_rank} of this machine, which "
                f"has {count}: start one process per GPU (--nproc-per-node {count})."
            )
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    def describe(self, device: torch.device) -> str:
        """The devices of all ranks, such as `2 × NVIDIA A100`; a single one by its name."""
        counted = Counter(self.all_gather(device_name(device)))
        if self.size == 1:
            return next(iter(counted))
        return " + ".join(f"{number} × {name}" for name, number in counted.items())

    def check_divides(self, settings: Settings) -> None:
        """Refuse a batch whose micro-batches do not divide among the ranks.

        Raises:
            UserError: they do not.
        """
        micro_batches = settings.batch_size // settings.bn_batch_size
        if micro_batches % self.size:
            raise UserError(
                f"a batch of {settings.batch_size} images is {micro_batches} × "
                f"{settings.bn_batch_size} ('batch_size', 'bn_batch_size'), which does not divide "
                f"among {self.size} processes: start a divisor of {micro_batches}, or change "
                "one of the two with --set."
            )


SINGLE_PROCESS = Ranks()


def _number(name: str, low: int, high: int | None = None) -> int:
    """The value of an environment variable.

    Raises:
        UserError: it is not a whole number from `low` to `high`.
    """
    text = os.environ[name]
    with suppress(ValueError):
        if low <= (value := int(text)) and (high is None or value <= high):
            return value
    allowed = f"from {low}" if high is None else f"from {low} to {high}"
    raise UserError(
        f"the environment variable {name} is {text!r:.40}, but must be a whole number {allowed}: "
        f"start the processes with torchrun, or unset {name} to train with one process."
    )


# --- the sums of an iteration ---------------------------------------------------------------------


class AllReduceBuffer:
    """The sums over all ranks in an iteration, in one buffer and therefore one call.

    Each weight's `grad` is a view of this buffer; losses and errors follow the gradients. BN's
    running statistics become those of one device that saw all micro-batches in turn: with momentum
    m, each micro-batch does R → (1 - m) R + m S. This is linear, so a rank contributes the change
    of its n micro-batches, C = R' - (1 - m)ⁿ R, times (1 - m)ⁿ for each rank after it.

    Not DistributedDataParallel: it keeps the statistics of rank 0 alone, and it sorts gradients
    into other buckets after its first iteration, so that sums over three ranks and more may round
    differently in a resumed run. For networks of this size its overlap of communication and
    computation gains no more than its hooks for hundreds of small weights cost.

    Args:
        network: on its device; its gradients and BN buffers become views of these buffers.
        micro_batches: of each rank in an iteration.
    """

    def __init__(self, network: nn.Module, ranks: Ranks, micro_batches: int) -> None:
        self.ranks, self.micro_batches = ranks, micro_batches
        weights = list(network.parameters())
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        (momentum,) = {norm.momentum for norm in norms}
        assert momentum is not None
        self.kept = (1.0 - momentum) ** micro_batches
        buffers = [(norm.running_mean, norm.running_var) for norm in norms]
        self.statistics = _share_buffer([held for pair in buffers for held in pair])
        self.counts = _share_buffer([norm.num_batches_tracked for norm in norms])
        self.before = self.statistics.clone()
        figures = torch.zeros(2, device=self.statistics.device)
        self.buffer, views = _buffer_with_views([*weights, self.statistics, figures])
        *gradients, self.added, self.figures = views
        for held, gradient in zip(weights, gradients, strict=True):
            held.grad = gradient

    def zero(self) -> None:
        """Start an iteration."""
        self.buffer.zero_()
        self.before.copy_(self.statistics)

    def all_reduce(self, loss: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """After this rank's micro-batches: the gradients and statistics of all ranks.

        Returns:
            The sums of `loss` and of `wrong` over all ranks.
        """
        after = self.ranks.size - 1 - self.ranks.rank
        torch.sub(self.statistics, self.before, alpha=self.kept, out=self.added)
        self.added.mul_(self.kept**after)
        self.figures.copy_(torch.stack([loss, wrong]))
        self.ranks.all_reduce(self.buffer)
        kept = self.kept**self.ranks.size
        torch.add(self.added, self.before, alpha=kept, out=self.statistics)
        self.counts.add_(self.micro_batches * (self.ranks.size - 1))
        summed, errors = self.figures.double()
        return summed, errors.long()


def _share_buffer(tensors: Sequence[Tensor | None]) -> Tensor:
    """Move tensors into one buffer, which is returned; the tensors become views of it."""
    held = [tensor for tensor in tensors if tensor is not None]
    buffer, views = _buffer_with_views(held)
    for tensor, view in zip(held, views, strict=True):
        tensor.data = view.copy_(tensor)
    return buffer


def _buffer_with_views(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A buffer of zeros, and for each tensor a view of it with the same shape and strides."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    buffer = torch.zeros(end, dtype=tensors[0].dtype, device=tensors[0].device)
    views = [
        buffer.as_strided(tensor.size(), tensor.stride(), start)
        for tensor, start in zip(tensors, starts, strict=True)
    ]
    return buffer, views


# --- failures of others ---------------------------------------------------------------------------


@contextmanager
def _peer_failures() -> Iterator[None]:
    """Turn a broken connection or a missing answer into `LostError`; pass on other errors."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or CONNECTION.search(str(error)):
            raise LostError from error
        raise


def _said(error: Exception) -> tuple[int, str]:
    return _exit_code(error), str(error) or type(error).__name__


def _exit_code(error: BaseException) -> int:
    interrupted = isinstance(error, KeyboardInterrupt)
    code: int = getattr(error, "exit_code", Stopped.exit_code if interrupted else 1)
    return code
