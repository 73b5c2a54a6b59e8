"""How the processes of a run find each other at its start, and how they leave at its end."""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from resvar.console import log
from resvar.errors import PeerFailure, RunError, Stopped
from resvar.training.distributed import VARIABLES, Ranks
from resvar.training.stop import second_signal_ends

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for a silent one, which may be writing a checkpoint."""

NOTICE_AFTER, NOTICE_EVERY = 4.0, 60.0
"""Seconds of waiting at the start before a line says for whom, and between two such lines."""

PRINTED, LEFT = "resvar/rank 0 has printed", "resvar/ranks that left"
"""Keys in the common store: no rank leaves before rank 0 has printed what there is to print, and
rank 0 waits a moment for the others, since the store may live in its process."""

JOINED = "resvar/joined/{}"
"""Key in the common store that each rank sets when it has come."""


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Connect the processes that torchrun started; `SINGLE_PROCESS` without torchrun.

    Rank 0 alone prints the error that ends all of them. It leaves first, since torchrun ends the
    others as soon as it sees one leave with an error.

    Raises:
        UserError: a variable of torchrun's has an impossible value.
        RunError: they cannot connect.
        Stopped: this process was asked to stop while it waited for the others.
        PeerFailure: on the other ranks, where rank 0 prints the error.
    """
    ranks = Ranks.from_environment()
    if ranks.size == 1:
        _note_incomplete_variables()
        yield ranks
        return
    with second_signal_ends(), _membership(ranks):
        yield ranks


@contextmanager
def _membership(ranks: Ranks) -> Iterator[None]:
    """Join the other ranks, and leave them at the end of the block."""
    store = _join(ranks)
    try:
        yield
    except (PeerFailure, Stopped, RunError) as error:
        if ranks.first:
            raise
        _leave()
        _wait_for_ranks(lambda: store.check([PRINTED]), PATIENCE.total_seconds())
        raise PeerFailure(error.exit_code) from error
    except KeyboardInterrupt as error:
        if ranks.first:
            raise
        raise PeerFailure(Stopped.exit_code) from error
    finally:
        _leave()
        if not ranks.first:
            with suppress(Exception):  # the store may be gone
                store.add(LEFT, 1)


def _note_incomplete_variables() -> None:
    """A launcher may use the names of some of torchrun's variables for its own purposes."""
    missing = [name for name in VARIABLES if name not in os.environ]
    asked = os.environ.get("WORLD_SIZE", "1")
    if missing and asked != "1":
        log(
            f"Note: WORLD_SIZE={asked} is set, but {', '.join(missing)} not: this process trains "
            "alone."
        )


# --- joining --------------------------------------------------------------------------------------


def _join(ranks: Ranks) -> Store:
    """Connect to the other ranks; returns the store that all share."""
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store = _connect(ranks)
        store.set(JOINED.format(ranks.rank), "")
        others = {rank for rank in range(ranks.size) if rank != ranks.rank}

        def missing() -> str:
            others.difference_update(
                [rank for rank in others if store.check([JOINED.format(rank)])]
            )
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            return f"process {min(others)}{more}" if others else ""

        _await(missing, ranks)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo",  # gloo for decisions between hosts
            store=store,
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"the {ranks.size} processes could not connect: {reason}") from error
    if ranks.first:
        atexit.register(_announce_end, store, ranks.size - 1)
    return store


def _connect(ranks: Ranks) -> Store:
    """The store at MASTER_ADDR:MASTER_PORT; rank 0 opens it, unless torchrun has done so.

    Nothing here waits inside of torch, which would answer no signal.
    """
    from torch.distributed.rendezvous import rendezvous  # some builds of torch lack it

    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Store
    if ranks.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store = dist.TCPStore(  # type: ignore[attr-defined]
            "localhost", address[1], is_master=True, wait_for_workers=False, timeout=PATIENCE
        )
        return store

    def missing() -> str:
        with suppress(OSError), socket.create_connection(address, timeout=1.0):
            return ""
        return "process 0"

    _await(missing, ranks)
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return store


def _await(missing: Callable[[], str], ranks: Ranks) -> None:
    """Wait until all have joined; after a while, print who is missing.

    Args:
        missing: the missing processes in words.

    Raises:
        RunError: they did not come within `PATIENCE`.
        Stopped: Ctrl-C or SIGTERM arrived.
    """
    begun, limit, notice = time.monotonic(), PATIENCE.total_seconds(), NOTICE_AFTER
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    cause = f"the environment says WORLD_SIZE={ranks.size}; unset that to train with one process"
    who = "the other processes"
    try:
        while who := missing():
            waited = time.monotonic() - begun
            if waited >= limit:
                raise RunError(f"{who} did not come to {place} in {limit:.0f} s; {cause}.")
            if waited >= notice:
                notice += NOTICE_EVERY
                log(
                    f"Process {ranks.rank} of {ranks.size} waits at {place} for {who}, "
                    f"{waited:.0f} s of {limit:.0f} s so far ({cause})."
                )
            time.sleep(0.05)
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped while waiting for {who or 'others'}; nothing was changed."
        ) from None


# --- leaving --------------------------------------------------------------------------------------


def _leave() -> None:
    """Close the connections, whatever their state."""
    with suppress(Exception):
        dist.destroy_process_group()


def _announce_end(store: Store, others: int) -> None:
    """The last act of rank 0: it has printed everything."""
    with suppress(Exception):
        store.set(PRINTED, "")
        _wait_for_ranks(lambda: store.add(LEFT, 0) >= others, 1.0)


def _wait_for_ranks(condition: Callable[[], bool], seconds: float) -> None:
    """Until the condition holds, the store is gone, or torchrun ends this process."""
    until = time.monotonic() + seconds
    with suppress(Exception, KeyboardInterrupt):
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)
