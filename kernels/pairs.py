"""The `pairs` walk in Triton: every row's point against every col's, summed over the cols, or the logarithm of a sum.

A program owns OWN points of one side and streams those of the other past them, TILE at a time: a tile is
[BATCH, OWN, LANES], of which a thread holds whole batches, so that what is summed over a batch stays in the thread and
what is summed over the lanes is summed rarely. Forward, every lane has a log-sum-exp of its own, rescaled once a batch;
the sum over each dimension on its own is another program's. Backward makes each pair again from the forward's results,
twice: the rows stream past the cols, for the gradients of those, and the cols past the rows. No pair is stored and
nothing needs an atomic: where one side is too short to fill a GPU, the other is cut into parts, whose sums PyTorch adds
in their order.

`pack_kernel` makes, once, what depends on a row or a col alone, each number's points side by side:

    rows [.., padded]   points [dims]; backward, values and their gradients [dims each, where a dimension is also summed
                        on its own], value and its gradient
    cols [.., padded]   mu, 1 / (sqrt(2) sigma), -(logvar + log(2 pi)) / 2 [dims each; points: mu alone], weight

Points that are not there fill the last tile: cols of weight 0, rows of gradient 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vaefast.kernels.density.math import at_least, at_most, exponentials, log
from vaefast.kernels.density.pairs import imq, rbf
from vaefast.kernels.operands import as_float
from vaefast.kernels.rows import as_bits, start

INF = tl.constexpr(float("inf"))


class Density(NamedTuple):
    """kernel: what a pair counts; None for exp(weight - q) of normals, and then the sum's logarithm is wanted.
    dimensions: each is also summed over the cols on its own."""

    kernel: triton.JITFunction | None
    dimensions: bool


_DENSITIES = {
    "mixture_log_prob": Density(None, False),
    "total_correlation": Density(None, True),
    "imq_mmd": Density(imq, False),
    "rbf_mmd": Density(rbf, False),
}
DENSITIES = {f"{name}_{way}": density for name, density in _DENSITIES.items() for way in ("forward", "backward")}

OWN = 16  # points of a program: 4 for each of its warps
LANES = 32
TILE = 256  # points that stream past at once, and what a side is padded to
_WARPS = 4
_PROGRAMS = 512  # that fill a GPU: 4 on each of 132 multiprocessors
_PACKED = 32  # points of a program that packs, and dimensions that it takes at once




@triton.jit
def _read(tensor, at, count, d, dims, other):
    """[P, D] of a tensor [count, dims]."""
    there = (at < count)[:, None] & (d < dims)[None, :]
    return tl.load(tensor + at[:, None] * dims + d[None, :], mask=there, other=other)


@triton.jit
def _write(to, x, at, d, padded, dims):
    """[P, D] to packed numbers."""
    tl.store(to + d[None, :] * padded + at[:, None], x, mask=(d < dims)[None, :])


@triton.jit(do_not_specialize=["numbers", "row_count", "col_count", "row_padded", "col_padded", "dims"])
def pack_kernel(
    kernel: tl.constexpr,
    rows,  # packed, as the next
    cols,
    points,
    value,  # None where it is not read, as the next three
    values,
    grad_value,
    grad_values,
    centres,
    logvar,
    log_weights,
    numbers,  # as the bits of float64: the largest finite number, the weight of every pair
    row_count,
    col_count,
    row_padded,
    col_padded,
    dims,
    POINTS: tl.constexpr,  # of a program, and dimensions that it takes at once
    COMPUTE: tl.constexpr,
):
    largest, every = as_float(numbers[0], COMPUTE), as_float(numbers[1], COMPUTE)
    row_padded, col_padded, dims = row_padded.to(tl.int64), col_padded.to(tl.int64), dims.to(tl.int64)
    program = tl.program_id(0).to(tl.int64)
    if program < row_padded // POINTS:
        at = program * POINTS + tl.arange(0, POINTS)
        there = at < row_count
        for first in range(0, dims, POINTS):
            d = first + tl.arange(0, POINTS)
            _write(rows, _read(points, at, row_count, d, dims, 0), at, d, row_padded, dims)
            if values is not None:
                x = at_least(_read(values, at, row_count, d, dims, INF) - every, -largest)
                _write(rows + dims * row_padded, x, at, d, row_padded, dims)
                grad = _read(grad_values, at, row_count, d, dims, 0)
                _write(rows + 2 * dims * row_padded, grad, at, d, row_padded, dims)
        to = rows + (dims if values is None else 3 * dims) * row_padded + at
        if value is not None:
            x = tl.load(value + at, mask=there, other=INF)[None, :]
            tl.store(to[None, :], at_least(x - every, -largest))
        if grad_value is not None:
            tl.store(to + row_padded, tl.load(grad_value + at, mask=there, other=0))
    else:
        at = (program - row_padded // POINTS) * POINTS + tl.arange(0, POINTS)
        there = at < col_count
        weight = tl.zeros([POINTS], COMPUTE)
        for first in range(0, dims, POINTS):
            d = first + tl.arange(0, POINTS)
            _write(cols, _read(centres, at, col_count, d, dims, 0), at, d, col_padded, dims)
            if logvar is not None:
                half = _read(logvar, at, col_count, d, dims, 0) * -0.5
                exp, _, _ = exponentials(half)
                _write(cols + dims * col_padded, at_most(exp * 0.7071067811865476, largest), at, d, col_padded, dims)
                term = half - 0.9189385332046727  # log(2 pi) / 2
                weight += tl.sum(tl.where((d < dims)[None, :], term, 0.0), axis=1)
                term = tl.where(there[:, None], term, -INF)
                _write(cols + 2 * dims * col_padded, term, at, d, col_padded, dims)
        if kernel is not None:
            weight = tl.where(there, weight + tl.reshape(every, [1]), 0.0)
        else:
            if log_weights is not None:
                weight += tl.load(log_weights + at, mask=there, other=0)
            weight = tl.where(there, weight, -INF)
        tl.store(cols + (dims if logvar is None else 3 * dims) * col_padded + at, weight)


@triton.jit
def _distance(rows, row, row_padded, cols, col, col_padded, d, dims, SCALED: tl.constexpr):
    """u, whose square is dimension d's share of q, and the scale that it was multiplied by."""
    u = tl.load(rows + d * row_padded + row) - tl.load(cols + d * col_padded + col)
    scale = 1.0
    if SCALED:
        scale = tl.load(cols + (dims + d) * col_padded + col)
        u = u * scale
    return u, scale


@triton.jit
def _extra(q, row, col, own_begin, stream_begin, col_count, own, next, OF_ROWS: tl.constexpr):
    """What (i, i) and (i, i + 1 mod cols) have beyond the weight of every pair; most tiles hold neither."""
    OWN: tl.constexpr = q.shape[1]
    TILE: tl.constexpr = q.shape[0] * q.shape[2]
    if OF_ROWS:
        row_begin, row_end, col_begin, col_end = own_begin, own_begin + OWN, stream_begin, stream_begin + TILE
    else:
        row_begin, row_end, col_begin, col_end = stream_begin, stream_begin + TILE, own_begin, own_begin + OWN
    extra = tl.zeros_like(q)
    if ((row_begin < col_end) & (col_begin <= row_end)) | ((col_begin == 0) & (row_end >= col_count)):
        following = tl.where(row + 1 == col_count, 0, row + 1)
        extra += tl.where(row == col, own, 0.0) + tl.where(following == col, next, 0.0)
    return extra


@triton.jit(do_not_specialize=["numbers", "row_count", "col_count", "row_padded", "col_padded", "dims", "parts"])
def forward_kernel(
    kernel: tl.constexpr,
    rows,  # packed
    cols,  # packed
    value,  # [parts, rows]
    values,  # [parts, rows, dims] where each dimension is also summed on its own, else None
    numbers,  # as the bits of float64: the largest finite number, every, own, next, the kernel's scales
    row_count,
    col_count,
    row_padded,
    col_padded,
    dims,
    parts,  # of the cols
    SPECIAL: tl.constexpr,  # own or next is not 0
    BATCH: tl.constexpr,
    OWN: tl.constexpr,
    LANES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    number = [as_float(bits, COMPUTE) for bits in numbers]
    largest = number[0]
    row_padded, col_padded, dims = row_padded.to(tl.int64), col_padded.to(tl.int64), dims.to(tl.int64)
    program = tl.program_id(0)
    tiles = (row_count + OWN - 1) // OWN
    which = program // (tiles * parts)  # all dimensions, then each: the longest programs begin first
    part = (program // tiles) % parts
    d_begin = tl.where(which > 0, which - 1, 0).to(tl.int64)
    d_end = tl.where(which > 0, which, dims)
    weights = tl.where(which > 0, 2 * dims + which - 1, (3 if kernel is None else 1) * dims)
    own_begin = (program % tiles) * OWN
    row = own_begin + tl.arange(0, OWN)[None, :, None]
    lane = tl.arange(0, BATCH)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]

    TILE: tl.constexpr = BATCH * LANES
    stream_tiles = (col_padded // TILE).to(tl.int32)
    top = tl.zeros([OWN, LANES], COMPUTE) - tl.reshape(largest, [1, 1])  # finite: -inf less -inf is not met
    total = tl.zeros([OWN, LANES], COMPUTE)
    for tile in range(stream_tiles * part // parts, stream_tiles * (part + 1) // parts):
        col = tile * TILE + lane
        q = tl.zeros([BATCH, OWN, LANES], COMPUTE)
        for d in range(d_begin, d_end):
            u, _ = _distance(rows, row, row_padded, cols, col, col_padded, d, dims, kernel is None)
            q += u * u
        weight = tl.load(cols + weights * col_padded + col)
        if SPECIAL:
            weight += _extra(q, row, col, own_begin, tile * TILE, col_count, number[2], number[3], True)
        if kernel is None:
            x = weight - q
            before = top
            top = tl.minimum(tl.maximum(top, tl.max(x, axis=0)), largest)
            total = total * tl.exp(before - top) + tl.sum(tl.exp(x - top[None, :, :]), axis=0)
        else:
            pair, _ = kernel(q, number[4:])
            total += tl.sum(weight * pair, axis=0)

    if kernel is None:
        most = tl.max(top, axis=1)
        result = most + log(tl.sum(total * tl.exp(top - most[:, None]), axis=1)) + tl.reshape(number[1], [1])
    else:
        result = tl.sum(total, axis=1)
    row = (own_begin + tl.arange(0, OWN)).to(tl.int64)
    there = row < row_count
    to = part * row_count.to(tl.int64) + row
    if values is None:
        tl.store(value + to, result, mask=there)
    else:
        if which == 0:
            tl.store(value + to, result, mask=there)
        else:
            tl.store(values + to * dims + which - 1, result, mask=there)


@triton.jit(do_not_specialize=["numbers", "row_count", "col_count", "row_padded", "col_padded", "dims", "parts"])
def backward_kernel(
    kernel: tl.constexpr,
    rows,  # packed
    cols,  # packed
    grad_points,  # [parts, rows, dims] where the program owns rows, else None
    grad_centres,  # [parts, cols, dims] where it owns cols, as the next two
    grad_logvar,
    grad_log_weights,
    numbers,
    row_count,
    col_count,
    row_padded,
    col_padded,
    dims,
    parts,  # of the side that streams past
    DIMENSIONS: tl.constexpr,  # each was also summed on its own
    SPECIAL: tl.constexpr,
    BATCH: tl.constexpr,
    OWN: tl.constexpr,
    LANES: tl.constexpr,
    DIMS: tl.constexpr,  # that a program makes the gradients of
    COMPUTE: tl.constexpr,
):
    OF_ROWS: tl.constexpr = grad_points is not None
    SCALED: tl.constexpr = kernel is None
    number = [as_float(bits, COMPUTE) for bits in numbers]
    row_padded, col_padded, dims = row_padded.to(tl.int64), col_padded.to(tl.int64), dims.to(tl.int64)
    count = row_count if OF_ROWS else col_count
    program = tl.program_id(0)
    tiles = (count + OWN - 1) // OWN
    d_begin = (program // (tiles * parts)).to(tl.int64) * DIMS
    part = (program // tiles) % parts
    own_begin = (program % tiles) * OWN
    mine = own_begin + tl.arange(0, OWN)[None, :, None]
    lane = tl.arange(0, BATCH)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]
    value_at = (3 if DIMENSIONS else 1) * dims * row_padded

    TILE: tl.constexpr = BATCH * LANES
    stream_tiles = ((col_padded if OF_ROWS else row_padded) // TILE).to(tl.int32)
    one_d = tl.arange(0, DIMS)[None, :]
    first = tl.zeros([OWN, DIMS], COMPUTE)
    second = tl.zeros([OWN, DIMS], COMPUTE)
    by_dimension = tl.zeros([OWN, DIMS], COMPUTE)
    whole = tl.zeros([OWN], COMPUTE)
    for tile in range(stream_tiles * part // parts, stream_tiles * (part + 1) // parts):
        other = tile * TILE + lane
        row, col = (mine, other) if OF_ROWS else (other, mine)
        q = tl.zeros([BATCH, OWN, LANES], COMPUTE)
        for d in range(0, dims):
            u, _ = _distance(rows, row, row_padded, cols, col, col_padded, d, dims, SCALED)
            q += u * u
        weight = tl.load(cols + (3 if SCALED else 1) * dims * col_padded + col)
        extra = tl.zeros([1, 1, 1], COMPUTE)
        if SPECIAL:
            extra = _extra(q, row, col, own_begin, tile * TILE, col_count, number[2], number[3], OF_ROWS)
        # slope: of the loss by q; for each dimension on its own, by the square of its u
        grad = tl.load(rows + value_at + row_padded + row)
        if kernel is None:
            slope = -grad * tl.exp(weight + extra - q - tl.load(rows + value_at + row))
        else:
            _, slope = kernel(q, number[4:])
            slope = slope * (weight + extra) * grad
        if not OF_ROWS:
            whole += tl.sum(tl.sum(slope, axis=0), axis=1)
        for d in range(d_begin, tl.minimum(d_begin + DIMS, dims)):
            u, scale = _distance(rows, row, row_padded, cols, col, col_padded, d, dims, SCALED)
            g = slope
            if SCALED:  # nothing times infinity is nothing here
                u = at_least(at_most(u, number[0]), -number[0])
            here = one_d == (d - d_begin).to(tl.int32)
            if DIMENSIONS:
                x = tl.load(cols + (2 * dims + d) * col_padded + col) - u * u + extra
                share = tl.exp(x - tl.load(rows + (dims + d) * row_padded + row))
                g = slope - tl.load(rows + (2 * dims + d) * row_padded + row) * share
                if not OF_ROWS:
                    by_dimension += tl.where(here, tl.sum(tl.sum(g, axis=0), axis=1)[:, None], 0.0)
            moved = g * u
            if OF_ROWS:
                first += tl.where(here, tl.sum(tl.sum(moved * scale, axis=0), axis=1)[:, None], 0.0)
            else:
                first += tl.where(here, tl.sum(tl.sum(moved, axis=0), axis=1)[:, None], 0.0)
                if SCALED:
                    second += tl.where(here, tl.sum(tl.sum(moved * u, axis=0), axis=1)[:, None], 0.0)

    at = own_begin + tl.arange(0, OWN)
    there = at < count
    d = d_begin + one_d
    to = part * count.to(tl.int64) + at
    mask = there[:, None] & (d < dims)
    if OF_ROWS:
        tl.store(grad_points + to[:, None] * dims + d, 2 * first, mask=mask)
    else:
        # du/dmu = -scale, du/dlogvar = -u / 2, and each pair's logarithm has -logvar / 2
        if SCALED:
            first *= tl.load(cols + (dims + d) * col_padded + at[:, None], mask=mask, other=0)
            all = by_dimension if DIMENSIONS else whole[:, None]
            tl.store(grad_logvar + to[:, None] * dims + d, all * 0.5 - second, mask=mask)
        tl.store(grad_centres + to[:, None] * dims + d, -2 * first, mask=mask)
        if grad_log_weights is not None:
            if d_begin == 0:
                tl.store(grad_log_weights + to, -whole, mask=there)


def _padded(count: int) -> int:
    return -(-count // TILE) * TILE


def _parts(programs: int, streamed: int) -> int:
    """How many parts the side that streams past is cut into: depends on sizes alone."""
    return max(min(_PROGRAMS // max(programs, 1), streamed // TILE), 1)


def pairs(density, tensors, every=0, own=0, next_=0, scales=()) -> None:
    """Run a density over all pairs of a row and a col.

    Args:
        density: a name in DENSITIES.
        tensors: points [rows, dims]; centres, logvar [cols, dims], log_weights [cols]; value [rows], values
            [rows, dims], written forward and read backward; the gradients of these two; and, written backward, those of
            the first four. Contiguous, of one type, float32 or float64; None for what the density does not have, or
            nobody asked for.
        every, own, next_: added to the weight of every pair, of (i, i) beyond that, and of (i, i + 1 mod cols).
        scales: the density's floats.
    """
    points, centres, logvar, log_weights, value, values, grad_value, grad_values, *grads = tensors
    kernel, dimensions = DENSITIES[density]
    backward = grad_value is not None
    (row_count, dims), col_count = points.shape, len(centres)
    compute = tl.float64 if points.dtype == torch.float64 else tl.float32
    numbers = as_bits((torch.finfo(points.dtype).max, every, own, next_, *scales))
    row_padded, col_padded = _padded(row_count), _padded(col_count)
    sizes = row_count, col_count, row_padded, col_padded, dims
    rows = points.new_empty((dims * (3 if dimensions else 1) + 2 if backward else dims) * row_padded)
    cols = points.new_empty((dims * (3 if kernel is None else 1) + 1) * col_padded)
    batch = TILE // LANES
    special = own != 0 or next_ != 0
    options = {"num_warps": _WARPS}

    def run(function, programs, *arguments):
        if programs > 0:
            start(function, (programs,), (kernel, rows, cols, *arguments), options, points.device)

    read = (value, values, grad_value, grad_values) if backward else (None,) * 4
    run(
        pack_kernel,
        (row_padded + col_padded) // _PACKED,
        *(points, *read, centres, logvar, log_weights, numbers, *sizes, _PACKED, compute),
    )

    if not backward:
        programs = -(-row_count // OWN) * (dims + 1 if dimensions else 1)
        parts = _parts(programs, col_padded)
        outputs = value, values
        results = [t if t is None or parts == 1 else t.new_empty((parts, *t.shape)) for t in outputs]
        run(forward_kernel, programs * parts, *results, numbers, *sizes, parts, special, batch, OWN, LANES, compute)
        add = torch.logsumexp if kernel is None else torch.sum
        for output, result in zip(outputs, results, strict=True):
            if result is not output:
                add(result, 0, out=output)
        return

    width = _width(dims)
    for count, streamed, outputs in (
        (row_count, col_padded, (grads[0], None, None, None)),
        (col_count, row_padded, (None, *grads[1:])),
    ):
        if all([t is None for t in outputs]):
            continue
        programs = -(-count // OWN) * max(-(-dims // width), 1)
        parts = _parts(programs, streamed)
        results = [t if t is None or parts == 1 else t.new_empty((parts, *t.shape)) for t in outputs]
        constants = dimensions, special, batch, OWN, LANES, width, compute
        run(backward_kernel, programs * parts, *results, numbers, *sizes, parts, *constants)
        for output, result in zip(outputs, results, strict=True):
            if result is not output:
                torch.sum(result, 0, out=output)


def _width(dims: int) -> int:
    """Dimensions that a program makes the gradients of."""
    return 32 if dims <= 32 else 64
