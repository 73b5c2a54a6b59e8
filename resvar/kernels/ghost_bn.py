"""Ghost batch normalisation on a GPU: each group of images is normalised by its own statistics.

The paper's two GPUs saw 64 images each. Here one GPU takes all 128 at once, and BN still sees 64
at a time (Hoffer et al. 2017, arXiv:1705.08741): the same function as micro-batches, in half the
kernels. A launch costs about 2.35 µs whatever the kernel does, so BN with ReLU, the addition that
follows and the gradient of a fork is two kernels forward and two backward
(`ghost_bn_kernels.py`). The shape alone decides how the work is split: nothing is tuned at run
time, and the same input gives the same bits.

Importing this file does not need Triton.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from resvar.errors import is_out_of_memory

Relu = Literal["none", "before", "after"]

CHANNELS = 16
"""Channels of a program: 32 bytes of bf16, a whole sector of memory."""

TILE = 512
"""Rows that a program loads at a time, if it has as many."""

WARPS = 8
"""Of a program. With this tile it needs at most 128 registers a thread, so that a multiprocessor
can run two programs at once, of one run or of two."""


def accepts(x: Tensor) -> bool:
    """Whether `ghost_batch_norm` takes x: memory format, type, number of channels and device.

    The device is a GPU; a processor only if Triton's interpreter runs the kernels, as in tests.
    Whether a group size divides the number of images is up to the caller.
    """
    return (
        x.ndim == 4
        and x.numel() > 0
        and x.shape[1] % CHANNELS == 0
        and x.dtype in (torch.bfloat16, torch.float32, torch.float64)
        and x.is_contiguous(memory_format=torch.channels_last)
        and find_spec("triton") is not None
        and (x.device.type == "cuda" or _interpreted())
    )


def ghost_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    group: int,
    momentum: float,
    eps: float,
    relu: Relu = "none",
    added: Tensor | None = None,
    fork: bool = False,
) -> tuple[Tensor, Tensor]:
    """BN in training mode for every `group` images, then ReLU and an addition.

    Args:
        x: [N, C, H, W], for which `accepts` is true.
        weight: [C], fp32; with x in fp64, fp64.
        bias: like weight.
        running_mean: [C], updated in place as if BN had seen the groups one after another; None
            (with running_var) to keep none. Batches are not counted here.
        running_var: like running_mean; the variance in it is unbiased.
        group: images that are normalised together; divides N.
        momentum: weight of a new group in the running statistics; 0 leaves them as they are.
        eps: added to the variance.
        relu: "before" or "after" the addition; without `added` both are the same.
        added: like x.
        fork: also return x as a second output, whose gradient BN's backward pass adds to its own
            while writing it.

    Returns:
        y, like x; and x, with `fork` as an output of its own.

    Raises:
        ValueError: N is not a multiple of `group`, or a group has one value per channel.
    """
    groups, rest = divmod(x.shape[0], group)
    rows = group * x.shape[2] * x.shape[3]
    if rest:
        raise ValueError(f"{x.shape[0]} images are not a multiple of a group of {group}")
    if rows == 1:
        raise ValueError("BN in training mode needs more than one value per channel in a group")
    split = split_rows(x.shape[1], groups, rows)
    if added is not None:
        added = added.contiguous(memory_format=torch.channels_last)
    elif relu == "after":
        relu = "before"
    out = _GhostBatchNorm.apply(
        x, weight, bias, added, running_mean, running_var, momentum, eps, relu, fork, split
    )
    return out if fork else (out, x)


def trial_failure(device: torch.device) -> str | None:
    """Why the kernels do not run on this device; the text is a clause. None if they do.

    Triton compiles at first use, which takes seconds once on a machine. It needs a C compiler and
    Python's headers, which no Python package installs.

    Raises:
        RuntimeError: the memory of the device is full.
    """
    x = torch.zeros(2, CHANNELS, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.ones(CHANNELS, device=device, requires_grad=True) for _ in range(2))
    try:
        with torch.enable_grad():
            y, _ = ghost_batch_norm(
                x, weight, bias, None, None, group=1, momentum=0.0, eps=1.0, relu="before"
            )
            (gradient,) = torch.autograd.grad(y.sum(), bias)
        right = bool((gradient == 8).all())  # waits for the device
    except Exception as error:  # Triton raises many kinds
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return f"Triton cannot compile or run them here ({reason[:300]})"
    return None if right else "they compute wrong numbers on this device"


class RowSplit(NamedTuple):
    """How the rows and channels of a tensor are split among programs."""

    channels: int
    groups: int
    rows: int
    """Rows of a group."""
    parts: int
    """Programs that share a group's rows, for the same channels."""
    each: int
    """Rows of a part; the last one may have fewer."""
    tile: int
    """Rows that a program loads at a time."""


def split_rows(channels: int, groups: int, rows: int) -> RowSplit:
    """A split of `groups` × `rows` rows, the same on every machine.

    A program merges 8 bytes from each of `parts` parts per channel, and at least 8 × parts of its
    own rows follow. On the three stages of a CIFAR ResNet, two groups of 64 images make 128
    programs of each kernel; an H100 has 132 multiprocessors.
    """
    parts = 1 << (max(rows // 8, 1).bit_length() - 1) // 2  # largest with 8 · parts² ≤ rows
    parts = min(parts, 128 if groups == 1 else 64)
    each = -(-rows // parts)
    tile = min(TILE, 1 << (each - 1).bit_length())
    return RowSplit(channels, groups, rows, parts, each, tile)


class _GhostBatchNorm(Function):
    """Two kernels each way; none if y gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        relu: Relu,
        fork: bool,
        split: RowSplit,
    ) -> Tensor | tuple[Tensor, Tensor]:
        k, y = _triton_kernels(), torch.empty_like(x)
        partials, statistics = _pairs(x, split.groups * split.parts), _pairs(x, split.groups)
        before, after = relu == "before", relu == "after"
        _launch(k.moments, _programs(split), x, partials, **_constants(split))
        _launch(
            k.apply, _programs(split, 1), x, added, weight, bias, partials, y, statistics,
            running_mean, running_var, momentum, eps,
            **_constants(split), GROUPS=split.groups, BEFORE=before, AFTER=after,
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, statistics, y if after else None)
        ctx.split, ctx.before, ctx.added = split, before, added is not None
        return (y, x) if fork else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, raw: Tensor | None = None) -> tuple[Any, ...]:
        nothing = (None,) * 7
        if dy is None:
            return raw, None, None, None, *nothing
        k, split = _triton_kernels(), ctx.split
        x, weight, bias, statistics, y = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        if raw is not None:
            raw = raw.contiguous(memory_format=torch.channels_last)
        g = dy if y is None else torch.empty_like(x)
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        partials = _pairs(x, split.groups * split.parts)
        _launch(
            k.sums, _programs(split), x, dy, y, weight, bias, statistics,
            None if y is None else g, partials, **_constants(split), BEFORE=ctx.before,
        )  # fmt: skip
        _launch(
            k.through, _programs(split, 1), x, g, raw, weight, bias, statistics, partials,
            dx, dweight, dbias, **_constants(split), GROUPS=split.groups, BEFORE=ctx.before,
        )  # fmt: skip
        return dx, dweight, dbias, g if ctx.added else None, *nothing


def _launch(kernel: Any, grid: tuple[int, int], *args: Any, **constants: Any) -> None:
    """Start one kernel. All launches pass here, so a test can count them without running any."""
    with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
        kernel[grid](*args, **constants, num_warps=WARPS)


def _programs(split: RowSplit, more: int = 0) -> tuple[int, int]:
    return split.groups * split.parts + more, split.channels // CHANNELS


def _constants(split: RowSplit) -> dict[str, int]:
    """The constants that all kernels take."""
    return {
        "C": split.channels, "ROWS": split.rows, "PARTS": split.parts, "EACH": split.each,
        "TILE": split.tile, "WIDTH": CHANNELS,
    }  # fmt: skip


def _pairs(x: Tensor, rows: int) -> Tensor:
    """Memory for two numbers per channel and row, in the type that sums are computed in."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    return torch.empty(rows, 2, x.shape[1], dtype=wide, device=x.device)


def _triton_kernels() -> ModuleType:
    """The kernels; Triton is imported when they are first used."""
    from resvar.kernels import ghost_bn_kernels

    return ghost_bn_kernels


def _interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels: with TRITON_INTERPRET=1 at their import."""
    from triton import JITFunction

    return not isinstance(_triton_kernels().moments, JITFunction)
