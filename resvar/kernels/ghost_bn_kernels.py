"""The four Triton kernels of ghost batch normalisation; `ghost_bn.py` launches them.

All work on rows: a channels_last tensor [N, C, H, W] is a matrix [N·H·W, C], and a group of images
is `ROWS` consecutive rows. A program handles `WIDTH` channels of one of the `PARTS` parts of a
group, `EACH` rows, in tiles of `TILE` rows.

BN needs sums over a whole group before it can write anything, forward and backward, so each
direction needs at least two kernels. The first writes one partial result per part. In the second,
every program merges the partial results of its group: there are few, and a third kernel that
merges them once would cost more than it saves. There are no atomics, and all sums have a fixed
order, so the same input gives the same bits.

Passes over a tensor of x's size, forward: 2 reads and 1 write, and 1 read of what is added; torch's
BN, ReLU and addition: 5 reads and 3 writes. Backward: 4 reads and 1 write, 1 read for a fork, and
1 read and 1 write for ReLU after the addition; torch's: 6 reads and 2 writes, and 2 reads and
1 write for a fork.

All integers are compile-time constants: a network has few shapes, and each is compiled once.
"""
# No `from __future__ import annotations`: Triton reads the annotations.

import triton
import triton.language as tl


@triton.jit
def moments(
    x: tl.tensor, partials: tl.tensor,
    C: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, EACH: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Forward 1 of 2: the mean and the sum of squared deviations of each part. Reads x.

    Deviations are taken from the mean of their tile, and tiles are merged as in Chan et al. (1979),
    so a mean far from zero costs no digits of the variance.

    Grid (groups × PARTS, C / WIDTH). Writes partials [groups × PARTS, 2, C].
    """
    wide: tl.constexpr = partials.dtype.element_ty
    columns, base, count = _own_rows(C, ROWS, PARTS, EACH, WIDTH)
    mean = tl.full((WIDTH,), 0.0, wide)
    squares = tl.full((WIDTH,), 0.0, wide)
    for start in range(0, EACH, TILE):
        inside, at = _tile(start, count, columns, C, TILE)
        values = tl.load(x + base + at, mask=inside, other=0.0).to(wide)
        rows = tl.maximum(tl.minimum(count - start, TILE), 0).to(wide)  # may be 0 in the last part
        tile_mean = tl.sum(values, 0) / tl.maximum(rows, 1.0)
        off = tl.where(inside, values - tile_mean[None, :], 0.0)
        share = rows / (start + rows)
        shift = tile_mean - mean
        mean += shift * share
        squares += tl.sum(off * off, 0) + shift * shift * (start * share)
    _store_pair(partials, tl.program_id(0), columns, mean, squares, C)


@triton.jit
def apply(
    x: tl.tensor, added: tl.tensor, weight: tl.tensor, bias: tl.tensor, partials: tl.tensor,
    y: tl.tensor, statistics: tl.tensor, running_mean: tl.tensor, running_var: tl.tensor,
    momentum: float, eps: float,
    C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    EACH: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
) -> None:  # fmt: skip
    """Forward 2 of 2: BN, ReLU and the addition. Reads x and `added`, writes y.

    ReLU is applied BEFORE or AFTER the addition, or not at all. `added` may be None, and so may
    both running statistics.

    Grid (GROUPS × PARTS + 1, C / WIDTH). The programs of the last row write statistics
    [GROUPS, 2, C], mean and 1/σ for the backward pass, and update the running statistics, one group
    after another.
    """
    wide: tl.constexpr = partials.dtype.element_ty
    columns, base, count = _own_rows(C, ROWS, PARTS, EACH, WIDTH)
    if tl.program_id(0) < GROUPS * PARTS:
        means, squares = _load_parts(partials, tl.program_id(0) // PARTS, columns, C, PARTS)
        if EACH <= TILE:  # one tile, under way while the parts are merged
            inside, at = _tile(0, count, columns, C, TILE)
            values = tl.load(x + base + at, mask=inside, other=0.0)
        mean, squares = _merged_moments(means, squares, ROWS, PARTS, EACH)
        scale = tl.load(weight + columns).to(wide) * _inverse_deviation(squares, ROWS, eps)
        shift = tl.load(bias + columns).to(wide)
        for start in range(0, EACH, TILE):
            inside, at = _tile(start, count, columns, C, TILE)
            if EACH > TILE:
                values = tl.load(x + base + at, mask=inside, other=0.0)
            out = _affine(values, mean, scale, shift)
            if BEFORE:
                out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
            if added is not None:
                out += tl.load(added + base + at, mask=inside, other=0.0).to(wide)
            if AFTER:
                out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
            tl.store(y + base + at, out.to(y.dtype.element_ty), mask=inside)
    else:
        if running_mean is not None:
            average = tl.load(running_mean + columns).to(wide)
            variance = tl.load(running_var + columns).to(wide)
        for group in range(GROUPS):
            means, squares = _load_parts(partials, group, columns, C, PARTS)
            mean, squares = _merged_moments(means, squares, ROWS, PARTS, EACH)
            inverse = _inverse_deviation(squares, ROWS, eps)
            _store_pair(statistics, group, columns, mean, inverse, C)
            if running_mean is not None:
                average = (1.0 - momentum) * average + momentum * mean
                variance = (1.0 - momentum) * variance + momentum * (squares / (ROWS - 1))
        if running_mean is not None:
            tl.store(running_mean + columns, average)
            tl.store(running_var + columns, variance)


@triton.jit
def sums(
    x: tl.tensor, dy: tl.tensor, y: tl.tensor, weight: tl.tensor, bias: tl.tensor,
    statistics: tl.tensor, g: tl.tensor, partials: tl.tensor,
    C: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, EACH: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr, BEFORE: tl.constexpr,
) -> None:  # fmt: skip
    """Backward 1 of 2: Σg and Σg·x̂ of each part. Reads x and dy.

    g is dy where ReLU let the signal pass. For ReLU BEFORE the addition, the mask is recomputed
    from x, which saves storing it. For ReLU after the addition, it is y > 0: y is read too, and g
    is written, for `through` and as the gradient of `added`. Otherwise y and g are None.

    Grid (groups × PARTS, C / WIDTH). Writes partials [groups × PARTS, 2, C].
    """
    wide: tl.constexpr = partials.dtype.element_ty
    columns, base, count = _own_rows(C, ROWS, PARTS, EACH, WIDTH)
    mean, inverse = _load_pair(statistics, tl.program_id(0) // PARTS, columns, C)
    scale = tl.load(weight + columns).to(wide) * inverse
    shift = tl.load(bias + columns).to(wide)
    plain = tl.full((WIDTH,), 0.0, wide)
    weighted = tl.full((WIDTH,), 0.0, wide)
    for start in range(0, EACH, TILE):
        inside, at = _tile(start, count, columns, C, TILE)
        values = tl.load(x + base + at, mask=inside, other=0.0)
        gradient = tl.load(dy + base + at, mask=inside, other=0.0)
        if BEFORE:
            gradient = tl.where(_affine(values, mean, scale, shift) > 0.0, gradient, 0.0)
        if y is not None:
            passed = tl.load(y + base + at, mask=inside, other=0.0) > 0.0
            gradient = tl.where(passed, gradient, 0.0)
            tl.store(g + base + at, gradient, mask=inside)
        plain += tl.sum(gradient.to(wide), 0)
        weighted += tl.sum(gradient.to(wide) * (values.to(wide) - mean[None, :]), 0)
    _store_pair(partials, tl.program_id(0), columns, plain, weighted * inverse, C)


@triton.jit
def through(
    x: tl.tensor, g: tl.tensor, raw: tl.tensor, weight: tl.tensor, bias: tl.tensor,
    statistics: tl.tensor, partials: tl.tensor, dx: tl.tensor, dweight: tl.tensor, dbias: tl.tensor,
    C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    EACH: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, BEFORE: tl.constexpr,
) -> None:  # fmt: skip
    """Backward 2 of 2: dx = γ/σ · (g − mean(g) − x̂ · mean(g·x̂)) + raw. Reads x, g, raw; writes dx.

    BEFORE: g is dy, still to be masked as in `sums`. raw, the gradient of x along the path that
    leaves before BN, may be None; adding it here saves a kernel that reads two tensors and writes
    one.

    Grid (GROUPS × PARTS + 1, C / WIDTH). The programs of the last row write the gradients of weight
    and bias [C], sums over the groups in order.
    """
    wide: tl.constexpr = partials.dtype.element_ty
    columns, base, count = _own_rows(C, ROWS, PARTS, EACH, WIDTH)
    if tl.program_id(0) < GROUPS * PARTS:
        group = tl.program_id(0) // PARTS
        mean, inverse = _load_pair(statistics, group, columns, C)
        plain, weighted = _load_parts(partials, group, columns, C, PARTS)
        if EACH <= TILE:  # one tile, under way while the parts are merged
            inside, at = _tile(0, count, columns, C, TILE)
            values = tl.load(x + base + at, mask=inside, other=0.0)
            gradient = tl.load(g + base + at, mask=inside, other=0.0)
        scale = tl.load(weight + columns).to(wide) * inverse
        shift = tl.load(bias + columns).to(wide)
        plain_mean = tl.sum(plain, 0) / ROWS
        slope = inverse * (tl.sum(weighted, 0) / ROWS)
        for start in range(0, EACH, TILE):
            inside, at = _tile(start, count, columns, C, TILE)
            if EACH > TILE:
                values = tl.load(x + base + at, mask=inside, other=0.0)
                gradient = tl.load(g + base + at, mask=inside, other=0.0)
            if BEFORE:
                gradient = tl.where(_affine(values, mean, scale, shift) > 0.0, gradient, 0.0)
            off = values.to(wide) - mean[None, :]
            out = gradient.to(wide) - plain_mean[None, :] - off * slope[None, :]
            out *= scale[None, :]
            if raw is not None:
                out += tl.load(raw + base + at, mask=inside, other=0.0).to(wide)
            tl.store(dx + base + at, out.to(dx.dtype.element_ty), mask=inside)
    else:
        total = tl.full((WIDTH,), 0.0, wide)
        total_weighted = tl.full((WIDTH,), 0.0, wide)
        for group in range(GROUPS):
            plain, weighted = _load_parts(partials, group, columns, C, PARTS)
            total += tl.sum(plain, 0)
            total_weighted += tl.sum(weighted, 0)
        tl.store(dweight + columns, total_weighted)
        tl.store(dbias + columns, total)


@triton.jit
def _own_rows(
    C: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, EACH: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """This program's columns [WIDTH], the offset of its first row, and its number of rows."""
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    group = (tl.program_id(0) // PARTS).to(tl.int64)  # a tensor may exceed 2³¹ elements
    first = (tl.program_id(0) % PARTS) * EACH
    return columns, (group * ROWS + first) * C, tl.minimum(ROWS - first, EACH)


@triton.jit
def _tile(
    start: tl.tensor, count: tl.tensor, columns: tl.tensor, C: tl.constexpr, TILE: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """Which of TILE rows from `start` on the part contains [TILE, 1], and offsets [TILE, WIDTH]."""
    rows = start + tl.arange(0, TILE)
    return (rows < count)[:, None], rows[:, None] * C + columns[None, :]


@triton.jit
def _affine(
    values: tl.tensor, mean: tl.tensor, scale: tl.tensor, shift: tl.tensor
) -> tl.tensor:  # fmt: skip
    """BN of values [TILE, WIDTH]; the same bits wherever it is computed, so ReLU's mask is too."""
    return (values.to(mean.dtype) - mean[None, :]) * scale[None, :] + shift[None, :]


@triton.jit
def _inverse_deviation(squares: tl.tensor, ROWS: tl.constexpr, eps: float) -> tl.tensor:
    return 1.0 / tl.sqrt(squares / ROWS + eps)


@triton.jit
def _merged_moments(
    means: tl.tensor, squares: tl.tensor,
    ROWS: tl.constexpr, PARTS: tl.constexpr, EACH: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A group's mean [WIDTH] and sum of squared deviations [WIDTH], from those of its parts."""
    counts = tl.minimum(ROWS - tl.arange(0, PARTS) * EACH, EACH).to(means.dtype)[:, None]
    mean = tl.sum(means * counts, 0) / ROWS
    off = means - mean[None, :]
    return mean, tl.sum(squares + counts * off * off, 0)


@triton.jit
def _load_parts(
    partials: tl.tensor, group: tl.tensor, columns: tl.tensor, C: tl.constexpr, PARTS: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """Both partial results [PARTS, WIDTH] of each part of a group."""
    rows = group * PARTS + tl.arange(0, PARTS)[:, None]
    return _load_pair(partials, rows, columns[None, :], C)


@triton.jit
def _load_pair(
    pairs: tl.tensor, row: tl.tensor, columns: tl.tensor, C: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """Both halves of one or more rows of pairs [rows, 2, C]."""
    at = pairs + row * 2 * C + columns
    return tl.load(at), tl.load(at + C)


@triton.jit
def _store_pair(
    pairs: tl.tensor, row: tl.tensor, columns: tl.tensor, first: tl.tensor, second: tl.tensor,
    C: tl.constexpr,
) -> None:  # fmt: skip
    at = pairs + row * 2 * C + columns
    tl.store(at, first)
    tl.store(at + C, second)
