"""Slots: the places of this machine where the runs of a sweep work, one run in each.

A slot is a GPU, a share of a GPU, or a share of the processor's cores.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resvar.errors import UserError
from resvar.limits import available_cores, available_memory

MEMORY_PER_JOB = 4 * 2**30
"""Bytes; ResNet-164 at batch 128 in micro-batches of 64 needs less."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

MPS_CONTROL = "nvidia-cuda-mps-control"

MPS_TIMEOUT = 5.0
"""Seconds for an answer of the multi-process service, which otherwise takes milliseconds."""


@dataclass(frozen=True)
class Slot:
    """Where one run works, with the environment variables of its process."""

    name: str
    threads: int
    device: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpu(self) -> str | None:
        """The GPU as `CUDA_VISIBLE_DEVICES` names it; None: the processor."""
        return self.environment.get(VISIBLE)


def make_slots(jobs: int | None, per_gpu: int | None, device: str, runs: int) -> list[Slot]:
    """The slots of this machine, each with its own name.

    With GPUs: `jobs` slots, spread over all GPUs, with at most `per_gpu` on each; by default one on
    each. Without: `jobs` shares of the cores; by default one core each, as far as memory allows,
    because several runs on one core each do more work than one run on all cores.

    Args:
        runs: the number of runs; there are no more slots than runs.

    Raises:
        UserError: a number below 1, or no such device.
    """
    require_positive(jobs, per_gpu)
    cores = available_cores()
    gpus = _visible_gpus(device)
    if gpus:
        limit = len(gpus) * per_gpu if per_gpu else jobs or len(gpus)
        count = max(1, min(jobs or limit, limit, runs))
        return [_gpu_slot(number, gpus, max(1, cores // count)) for number in range(count)]
    by_memory = max(1, available_memory() // MEMORY_PER_JOB)
    count = max(1, min(jobs or min(cores, by_memory), runs))
    return [Slot(f"cpu {number}", max(1, cores // count), "cpu") for number in range(count)]


def require_positive(jobs: int | None, per_gpu: int | None) -> None:
    """Check `--jobs` and `--per-gpu`.

    Raises:
        UserError: a number below 1.
    """
    for name, value in (("--jobs", jobs), ("--per-gpu", per_gpu)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")


def mps_advice(slots: Sequence[Slot]) -> str | None:
    """What to do about runs that share a GPU without NVIDIA's multi-process service, if any do.

    They then alternate on the GPU and are slower together than one alone (docs/performance.md).
    """
    gpus = [slot.gpu for slot in slots if slot.gpu is not None]
    if len(set(gpus)) == len(gpus):
        return None
    why = _why_no_mps()
    return why and f"Runs that share a GPU are faster only under NVIDIA's multi-process {why}."


def _why_no_mps() -> str | None:
    """Why the multi-process service does not work here; None if its daemon answers.

    Its files prove nothing: they outlive a daemon that was killed. The program looks for the daemon
    in `CUDA_MPS_PIPE_DIRECTORY`, as CUDA does.
    """
    try:
        asked = subprocess.run(
            [MPS_CONTROL], input="get_server_list\n", capture_output=True,
            timeout=MPS_TIMEOUT, check=False, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        return f"service, whose program {MPS_CONTROL} is not on the PATH"
    except OSError as error:
        return f"service, but {MPS_CONTROL} cannot be started ({error.strerror})"
    except subprocess.TimeoutExpired:
        return (
            f"service, which has not answered for {MPS_TIMEOUT:.0f} s: end its processes, then "
            f"start it with `{MPS_CONTROL} -d`"
        )
    if asked.returncode == 0 and all(map(str.isdecimal, asked.stdout.split())):
        return None  # it lists the processes of its servers, which start with the first client
    return f"service: start it with `{MPS_CONTROL} -d`"


def _gpu_slot(number: int, gpus: Sequence[str], threads: int) -> Slot:
    """Slots go round the GPUs: the next slot is on the next GPU."""
    turn, index = divmod(number, len(gpus))
    name = f"gpu {gpus[index][:16]}" + (f", {turn + 1}" if turn else "")  # a UUID is long
    return Slot(name, threads, "cuda", {VISIBLE: gpus[index]})


def _visible_gpus(device: str) -> list[str]:
    """The GPUs to use, as `CUDA_VISIBLE_DEVICES` names them; none for `cpu`.

    A value of that variable is the user's choice, by number or UUID: only those GPUs are used, and
    `cuda:1` is the second of them.
    """
    if device == "cpu":
        return []
    from resvar.training.machine import choose_device

    if choose_device(device).type == "cpu":
        return []
    import torch

    count = torch.cuda.device_count()  # CUDA ignores every GPU after a wrong name
    chosen = os.environ.get(VISIBLE)
    visible = chosen.split(",") if chosen else map(str, range(count))
    gpus = [name.strip() for name in visible][:count]
    return [gpus[int(device.partition(":")[2])]] if ":" in device else gpus
