"""One run on several devices: `torchrun --nproc-per-node 2 -m resvar train …`.

Each process trains on its share of every batch, and after each iteration they add up what they
found: gradients, BN's statistics, losses. So all of them hold the same run at every moment, and it
is the run that one device would make, to rounding. The first process alone touches the run
directory and speaks; what it reads there, or refuses, it tells the others.

`World` is what the rest of the package knows of this. Outside torchrun it is `SINGLE_PROCESS`,
which asks nobody.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resvar.config import Settings
from resvar.data.memory import Shard
from resvar.errors import PeerFailure, RunError, Stopped, UserError
from resvar.training.machine import choose_device, describe

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""How long a process waits for one that does not answer; a checkpoint is written meanwhile."""

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each process."""

SPOKEN, GONE = "resvar/the first has spoken", "resvar/others that are gone"
"""Keys in the common store: nobody leaves before the first has said what there is to say, and it
waits a moment for the others, since the store may be its own."""

ALIGNED = 16
"""Numbers: each tensor begins at a multiple of 64 bytes, as kernels like it."""


class LostError(RunError):
    """Another process of the run ended, or does not answer."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run has ended or does not answer; the last checkpoint is "
            "kept, and the same command goes on."
        )


@dataclass(frozen=True)
class World:
    """The processes of a run: this is number `rank` of `size`, and `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def found(cls) -> World:
        """As torchrun says in the environment; `SINGLE_PROCESS` without torchrun."""
        if any(name not in os.environ for name in VARIABLES):
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def share(self) -> Shard:
        return Shard(self.rank, self.size)

    # --- what is decided together ---------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. Waits for the others' hosts, for no device."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(int(flag))))

    def total(self, values: Tensor) -> Tensor:
        """Add up `values` over all processes, in place; returns them."""
        if self.size > 1:
            with _losses_told():
                dist.all_reduce(values)
        return values

    def all_gather(self, value: T) -> list[T]:
        """The `value` of each process."""
        found = [value] * self.size
        if self.size > 1:
            with _losses_told():
                dist.all_gather_object(found, value)
        return found

    def on_rank0(self, action: Callable[[], T]) -> T:
        """What `action` returns, or raises, in the first process; it is called nowhere else.

        Raises:
            PeerFailure: in the others, where it raised.
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
        """What `action` returns here; if it raises anywhere, it does so everywhere.

        Raises:
            PeerFailure: in all processes but the first, which raises what went wrong.
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
        """Make sure that all processes were started alike.

        Raises:
            UserError: a fact is another in another process.
            PeerFailure: in all processes but the first.
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
                    f"process 0 has {ours}: give all the same command, on machines that are alike."
                )

    def _of_first(self, value: tuple[int | None, Any] | None) -> tuple[int | None, Any]:
        held: list[Any] = [value]
        with _losses_told():
            dist.broadcast_object_list(held)
        return cast(tuple[int | None, Any], held[0])

    # --- what each works on ---------------------------------------------------------------------

    def device(self, name: str) -> torch.device:
        """The device of this process: `name` as in `choose_device`, but a GPU for each.

        Raises:
            UserError: there is no such device, or not one for each process.
        """
        device = choose_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if ":" in name:
            raise UserError(
                f"--device {name}: each of the {self.size} processes takes a GPU of its own; write "
                "--device cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES."
            )
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise UserError(
                f"there is no GPU for the process number {self.local_rank} of this machine, which "
                f"has {count}: start one process per GPU (--nproc-per-node {count})."
            )
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    def describe(self, device: torch.device) -> str:
        """All devices in words, such as `2 × NVIDIA A100`; one alone by its name."""
        counted = Counter(self.all_gather(describe(device)))
        if self.size == 1:
            return next(iter(counted))
        return " + ".join(f"{number} × {name}" for name, number in counted.items())

    def check_divides(self, settings: Settings) -> None:
        """Refuse a batch that does not divide among the processes.

        Raises:
            UserError: it does not come out even.
        """
        micro_batches = settings.batch_size // settings.bn_batch_size
        if micro_batches % self.size:
            raise UserError(
                f"a batch of {settings.batch_size} images is {micro_batches} × "
                f"{settings.bn_batch_size} ('batch_size', 'bn_batch_size'), which does not divide "
                f"among {self.size} processes: start as many as go into {micro_batches}, or change "
                "one of the two with --set."
            )


SINGLE_PROCESS = World()


# --- what they add up -----------------------------------------------------------------------------


class Pool:
    """What the processes add up in each iteration: one buffer, and so one call.

    Gradients lie in it for good: each weight's `grad` is a view of it. Like them, losses and errors
    add up. BN's running statistics become what one device would have that saw all micro-batches in
    turn: with momentum m, R → (1 - m) R + m S for each. That is linear, so each process contributes
    what its n micro-batches added, C = R' - (1 - m)ⁿ R, times (1 - m)ⁿ for each process after it.

    Not DistributedDataParallel: it keeps the statistics of the first process alone, and it sorts
    gradients into other buckets after its first iteration, so that sums over three processes and
    more may be rounded otherwise in a run that was resumed. Networks of this size gain nothing from
    its overlap of adding and computing that the hooks for hundreds of small weights do not take.

    Args:
        network: on its device. Gradients and BN's buffers become views of buffers of the pool.
        micro_batches: of each process in an iteration.
    """

    def __init__(self, network: nn.Module, world: World, micro_batches: int) -> None:
        self.world, self.micro_batches = world, micro_batches
        weights = list(network.parameters())
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        (momentum,) = {norm.momentum for norm in norms}
        assert momentum is not None
        self.kept = (1.0 - momentum) ** micro_batches
        buffers = [(norm.running_mean, norm.running_var) for norm in norms]
        self.statistics = _gather_up([held for pair in buffers for held in pair])
        self.counts = _gather_up([norm.num_batches_tracked for norm in norms])
        self.before = self.statistics.clone()
        figures = torch.zeros(2, device=self.statistics.device)
        self.buffer, views = _laid_out([*weights, self.statistics, figures])
        *gradients, self.added, self.figures = views
        for held, gradient in zip(weights, gradients, strict=True):
            held.grad = gradient

    def begin(self) -> None:
        """Before an iteration: nothing is added up yet."""
        self.buffer.zero_()
        self.before.copy_(self.statistics)

    def add_up(self, loss: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """After this process's micro-batches: all processes' gradients and statistics.

        Returns:
            The `loss` and the `wrong` of all.
        """
        after = self.world.size - 1 - self.world.rank
        torch.sub(self.statistics, self.before, alpha=self.kept, out=self.added)
        self.added.mul_(self.kept**after)
        self.figures.copy_(torch.stack([loss, wrong]))
        self.world.total(self.buffer)
        kept = self.kept**self.world.size
        torch.add(self.added, self.before, alpha=kept, out=self.statistics)
        self.counts.add_(self.micro_batches * (self.world.size - 1))
        summed, errors = self.figures.double()
        return summed, errors.long()


def _gather_up(tensors: Sequence[Tensor | None]) -> Tensor:
    """Move tensors into one buffer, which is returned; they become views of it."""
    held = [tensor for tensor in tensors if tensor is not None]
    buffer, views = _laid_out(held)
    for tensor, view in zip(held, views, strict=True):
        tensor.data = view.copy_(tensor)
    return buffer


def _laid_out(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A buffer of zeros, and in it a view with the shape and the strides of each tensor."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() // ALIGNED) * ALIGNED
    buffer = torch.zeros(end, dtype=tensors[0].dtype, device=tensors[0].device)
    views = [
        buffer.as_strided(tensor.size(), tensor.stride(), start)
        for tensor, start in zip(tensors, starts, strict=True)
    ]
    return buffer, views


# --- how they come together, and leave ------------------------------------------------------------


@contextmanager
def process_group() -> Iterator[World]:
    """The processes that torchrun started, in touch with each other; `SINGLE_PROCESS` without it.

    What ends all of them is said once: by the first. It leaves first, since torchrun, seeing one
    leave with an error, ends the others.

    Raises:
        RunError: they do not come together.
        PeerFailure: in the other processes, where the first says what happened.
    """
    world = World.found()
    if world.size == 1:
        yield world
        return
    store = _join(world)
    try:
        yield world
    except (PeerFailure, Stopped, RunError) as error:
        if world.first:
            raise
        _part()
        _wait_for(lambda: store.check([SPOKEN]), PATIENCE.total_seconds())
        raise PeerFailure(error.exit_code) from error
    except KeyboardInterrupt as error:
        if world.first:
            raise
        raise PeerFailure(Stopped.exit_code) from error
    finally:
        _part()
        if not world.first:
            with suppress(Exception):  # nobody may be there any more
                store.add(GONE, 1)


def _join(world: World) -> Store:
    """Meet the others; returns the store that all share."""
    from torch.distributed.rendezvous import rendezvous  # some builds of torch lack it

    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    store: Store
    try:
        store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo",  # gloo for what the hosts decide together
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"the {world.size} processes do not come together: {reason}") from error
    if world.first:
        atexit.register(_say_goodbye, store, world.size - 1)
    return store


def _part() -> None:
    """Close the connections to the others, whatever state they are in."""
    with suppress(Exception):
        dist.destroy_process_group()


def _say_goodbye(store: Store, others: int) -> None:
    """The last that the first process does: it has printed what it had to say."""
    with suppress(Exception):
        store.set(SPOKEN, "")
        _wait_for(lambda: store.add(GONE, 0) >= others, 1.0)


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Until it is so, or nobody is there to ask any more, or torchrun ends this process."""
    until = time.monotonic() + seconds
    with suppress(Exception, KeyboardInterrupt):
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)


@contextmanager
def _losses_told() -> Iterator[None]:
    """Torch's errors about a connection that broke, or an answer that did not come, as ours."""
    try:
        yield
    except RuntimeError as error:
        raise LostError from error


def _said(error: Exception) -> tuple[int, str]:
    return _exit_code(error), str(error) or type(error).__name__


def _exit_code(error: BaseException) -> int:
    interrupted = isinstance(error, KeyboardInterrupt)
    code: int = getattr(error, "exit_code", Stopped.exit_code if interrupted else 1)
    return code
