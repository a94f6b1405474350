"""The `pairs` walk in Triton: every row's point against every col's, summed over the cols, or the logarithm of a sum.

A program owns OWN points of one side, a thread one of them, and the points of the other side stream past, STREAM at a
time, the same for all threads: what is summed stays in a thread. Forward, a log-sum-exp is rescaled once for STREAM
cols; the sum of each dimension on its own is another program's. Backward makes each pair again from the forward's
results, twice: the cols stream past the rows, and the rows past the cols, for the gradients of those; a program adds
these up in memory that is its own. No pair is stored and nothing needs an atomic: where one side is too short to fill a
GPU, the other is cut into parts, and `finish` adds up theirs in order.

`pack_kernel` makes, once, what depends on a row or a col alone, and lays each number's points side by side:

    rows [.., padded]   points [dims]; backward, values and their gradients [dims each, where dimensions are also summed
                        on their own], value and its gradient
    cols [.., padded]   mu, 1 / (sqrt(2) sigma), -(logvar + log(2 pi)) / 2 [dims each; of points mu alone], weight

A side is padded to whole programs, by cols of weight 0 and rows of gradient 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vaefast.kernels.density.math import at_least, at_most, exponentials, log, log1p_unit
from vaefast.kernels.density.pairs import exp, imq, rbf
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

OWN = 128  # points of a program, one for each thread of its warps; what a side is padded to
STREAM = {torch.float32: 32, torch.float64: 8}  # points that stream past at once
_WARPS = OWN // 32
_PROGRAMS = 256  # that fill a GPU, with the 32 independent pairs of a thread
_MOST_PARTS = 16  # backward, where each takes room as the side's gradients do
_PACKED = 32  # points of a program that packs or finishes, and dimensions that it takes at once


@triton.jit
def _read(tensor, at, count, d, dims, other):
    """[P, D] of a tensor [count, dims]."""
    there = (at < count)[:, None] & (d < dims)[None, :]
    return tl.load(tensor + at[:, None] * dims + d[None, :], mask=there, other=other)


@triton.jit
def _write(to, x, at, d, padded, dims):
    """[P, D] to packed numbers."""
    tl.store(to + d[None, :] * padded + at[:, None], x, mask=(d < dims)[None, :])


@triton.jit
def _pack_points(to, points, at, count, d, padded, dims, largest, BACKWARD: tl.constexpr):
    """Of gradients, where nothing times infinity is nothing, no two points are infinitely far from each other."""
    x = _read(points, at, count, d, dims, 0)
    if BACKWARD:
        x = at_least(at_most(x, largest * 0.5), largest * -0.5)
    _write(to, x, at, d, padded, dims)


@triton.jit(do_not_specialize=["numbers", "row_count", "col_count", "dims"])
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
    BACKWARD: tl.constexpr = grad_value is not None
    largest, every = as_float(numbers[0], COMPUTE), as_float(numbers[1], COMPUTE)
    row_padded, col_padded, dims = row_padded.to(tl.int64), col_padded.to(tl.int64), dims.to(tl.int64)
    program = tl.program_id(0).to(tl.int64)
    if program < row_padded // POINTS:
        at = program * POINTS + tl.arange(0, POINTS)
        there = at < row_count
        for first in range(0, dims, POINTS):
            d = first + tl.arange(0, POINTS)
            _pack_points(rows, points, at, row_count, d, row_padded, dims, largest, BACKWARD)
            if values is not None:
                x = at_least(_read(values, at, row_count, d, dims, INF) - every, -largest)
                _write(rows + dims * row_padded, x, at, d, row_padded, dims)
                grad = _read(grad_values, at, row_count, d, dims, 0)
                _write(rows + 2 * dims * row_padded, grad, at, d, row_padded, dims)
        to = rows + (dims if values is None else 3 * dims) * row_padded + at
        if value is not None:
            x = tl.load(value + at, mask=there, other=INF)[None, :]
            tl.store(to[None, :], at_least(x - every, -largest))
        if BACKWARD:
            tl.store(to + row_padded, tl.load(grad_value + at, mask=there, other=0))
    else:
        at = (program - row_padded // POINTS) * POINTS + tl.arange(0, POINTS)
        there = at < col_count
        weight = tl.zeros([POINTS], COMPUTE)
        for first in range(0, dims, POINTS):
            d = first + tl.arange(0, POINTS)
            _pack_points(cols, centres, at, col_count, d, col_padded, dims, largest, BACKWARD)
            if logvar is not None:
                half = _read(logvar, at, col_count, d, dims, 0) * -0.5
                inverse_sigma, _, _ = exponentials(half)
                scale = at_most(inverse_sigma * 0.7071067811865476, largest)
                _write(cols + dims * col_padded, scale, at, d, col_padded, dims)
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
def _row_or_col(pointers, OF_ROW: tl.constexpr, OF_ROWS: tl.constexpr):
    """Numbers of the rows or cols, as [1, OWN] where the program owns that side, else as [STREAM, 1]."""
    x = tl.load(pointers)
    return x[None, :] if OF_ROW == OF_ROWS else x[:, None]


@triton.jit
def _distance(rows, cols, d, dims, row_padded, col_padded, SCALED: tl.constexpr, OF_ROWS: tl.constexpr):
    """The difference in dimension d and its scale: the square of their product is d's share of q."""
    difference = _row_or_col(rows + d * row_padded, True, OF_ROWS)
    difference = difference - _row_or_col(cols + d * col_padded, False, OF_ROWS)
    scale = 1.0
    if SCALED:
        scale = _row_or_col(cols + (dims + d) * col_padded, False, OF_ROWS)
    return difference, scale


@triton.jit
def _extra(row_begin, col_begin, col_count, own, next, OF_ROWS: tl.constexpr, STREAM: tl.constexpr, OWN: tl.constexpr):
    """What (i, i) and (i, i + 1 mod cols) have beyond the weight of every pair; most tiles hold neither."""
    extra = tl.zeros([STREAM, OWN], own.dtype)
    row_end = row_begin + (OWN if OF_ROWS else STREAM)
    col_end = col_begin + (STREAM if OF_ROWS else OWN)
    if ((row_begin < col_end) & (col_begin <= row_end)) | ((col_begin == 0) & (row_end >= col_count)):
        if OF_ROWS:
            row, col = row_begin + tl.arange(0, OWN)[None, :], col_begin + tl.arange(0, STREAM)[:, None]
        else:
            row, col = row_begin + tl.arange(0, STREAM)[:, None], col_begin + tl.arange(0, OWN)[None, :]
        following = tl.where(row + 1 == col_count, 0, row + 1)
        extra += tl.where(row == col, own, 0.0) + tl.where(following == col, next, 0.0)
    return extra


@triton.jit(do_not_specialize=["numbers", "row_count", "col_count", "dims", "first", "parts"])
def forward_kernel(
    kernel: tl.constexpr,
    rows,  # packed
    cols,  # packed
    sums,  # [parts, 1 or 1 + dims, padded rows]: of all dimensions, and of each
    numbers,  # as the bits of float64: the largest finite number, every, own, next, the kernel's scales
    row_count,
    col_count,
    row_padded,
    col_padded,
    dims,
    first,  # the col that is row 0's own
    parts,  # of the cols
    DIMENSIONS: tl.constexpr,  # each is also summed on its own
    SPECIAL: tl.constexpr,  # own or next is not 0
    STREAM: tl.constexpr,
    OWN: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    number = [as_float(bits, COMPUTE) for bits in numbers]
    row_padded, col_padded, dims = row_padded.to(tl.int64), col_padded.to(tl.int64), dims.to(tl.int64)
    program = tl.program_id(0)
    tiles = (row_padded // OWN).to(tl.int32)
    which = program // (tiles * parts)  # all dimensions, then each: the longest programs begin first
    part = program // tiles % parts
    row_begin = program % tiles * OWN
    d_begin = tl.where(which > 0, which - 1, 0).to(tl.int64)
    d_end = tl.where(which > 0, which, dims)
    weights = tl.where(which > 0, 2 * dims + which - 1, (3 if kernel is None else 1) * dims)
    rows += row_begin + tl.arange(0, OWN)

    largest = tl.reshape(number[0], [1])
    top = tl.zeros([OWN], COMPUTE) - largest  # finite: -inf less -inf is not met
    total = tl.zeros([OWN], COMPUTE)
    streams = (col_count + STREAM - 1) // STREAM
    for stream in range(streams * part // parts, streams * (part + 1) // parts):
        of_cols = cols + stream * STREAM + tl.arange(0, STREAM)
        weight = tl.zeros([STREAM, OWN], COMPUTE) + tl.load(of_cols + weights * col_padded)[:, None]
        if SPECIAL:
            weight += _extra(first + row_begin, stream * STREAM, col_count, number[2], number[3], True, STREAM, OWN)
        x = weight if kernel is None else tl.zeros_like(weight)
        for d in range(d_begin, d_end):
            difference, scale = _distance(rows, of_cols, d, dims, row_padded, col_padded, kernel is None, True)
            u = difference * scale
            x -= u * u
        if kernel is None:
            before = top
            top = tl.minimum(tl.maximum(top, tl.max(x, axis=0)), largest)
            total = total * exp(before - top) + tl.sum(exp(x - top[None, :]), axis=0)
        else:
            value, _ = kernel(-x, number[4:])
            total += tl.sum(weight * value, axis=0)
    if kernel is None:
        total = top + log(total)
    slots = 1 + dims if DIMENSIONS else 1
    tl.store(sums + (part * slots + which) * row_padded + row_begin + tl.arange(0, OWN), total)


@triton.jit(do_not_specialize=["numbers", "row_count", "parts", "dims"])
def finish_forward_kernel(
    kernel: tl.constexpr,
    sums,
    value,  # [rows]
    values,  # [rows, dims], or None
    numbers,
    row_count,
    row_padded,
    dims,
    parts,
    POINTS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    every = as_float(numbers[1], COMPUTE)
    row_padded, dims = row_padded.to(tl.int64), dims.to(tl.int64)
    slots = 1 if values is None else 1 + dims
    at = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    for first in range(0, slots, POINTS):
        d = first + tl.arange(0, POINTS)
        there = (at < row_count)[:, None] & (d < slots)[None, :]
        begin = sums + d[None, :] * row_padded + at[:, None]
        total = tl.load(begin, mask=there, other=0)
        for part in range(1, parts):
            x = tl.load(begin + part * slots * row_padded, mask=there, other=0)
            if kernel is None:
                top = tl.maximum(total, x)
                rest = exp(-tl.abs(total - x))  # NaN where both are infinite
                total = tl.where(total == x, top + 0.6931471805599453, top + log1p_unit(rest))
            else:
                total += x
        if kernel is None:
            total += every
        if values is not None:
            tl.store(values + at[:, None] * dims + (d - 1)[None, :], total, mask=there & (d > 0)[None, :])
        tl.store(value + at[:, None] + 0 * d[None, :], total, mask=there & (d == 0)[None, :])


@triton.jit
def _add_to(sums, x):
    """Each thread's sum over the points that streamed past, to a number of its own."""
    tl.store(sums, tl.load(sums) + tl.sum(x, axis=0))


@triton.jit(do_not_specialize=["numbers", "row_count", "col_count", "dims", "first", "parts"])
def backward_kernel(
    kernel: tl.constexpr,
    rows,  # packed
    cols,  # packed
    sums,  # [parts, slots, own padded], slots: of rows dims, of cols as below
    numbers,
    row_count,
    col_count,
    row_padded,
    col_padded,
    dims,
    first,
    parts,  # of the side that streams past
    OF_ROWS: tl.constexpr,  # that the program owns; else cols
    DIMENSIONS: tl.constexpr,
    SPECIAL: tl.constexpr,
    STREAM: tl.constexpr,
    OWN: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    SCALED: tl.constexpr = kernel is None
    number = [as_float(bits, COMPUTE) for bits in numbers]
    row_padded, col_padded, dims = row_padded.to(tl.int64), col_padded.to(tl.int64), dims.to(tl.int64)
    program = tl.program_id(0)
    own_padded = row_padded if OF_ROWS else col_padded
    tiles = (own_padded // OWN).to(tl.int32)
    part = program // tiles
    own_begin = program % tiles * OWN
    lane = own_begin + tl.arange(0, OWN)
    slots = _slots(dims, SCALED, DIMENSIONS, OF_ROWS)
    sums += part * slots * own_padded + lane
    for slot in range(0, slots):
        tl.store(sums + slot * own_padded, tl.zeros([OWN], COMPUTE))

    streams = ((col_count if OF_ROWS else row_count) + STREAM - 1) // STREAM
    for stream in range(streams * part // parts, streams * (part + 1) // parts):
        other = stream * STREAM + tl.arange(0, STREAM)
        of_rows, of_cols = rows + (lane if OF_ROWS else other), cols + (other if OF_ROWS else lane)
        weight = tl.zeros([STREAM, OWN], COMPUTE)
        weight += _row_or_col(of_cols + (3 if SCALED else 1) * dims * col_padded, False, OF_ROWS)
        if SPECIAL:
            row_begin, col_begin = (own_begin, stream * STREAM) if OF_ROWS else (stream * STREAM, own_begin)
            extra = _extra(first + row_begin, col_begin, col_count, number[2], number[3], OF_ROWS, STREAM, OWN)
            weight += extra
        x = weight if SCALED else tl.zeros_like(weight)
        for d in range(0, dims):
            difference, scale = _distance(of_rows, of_cols, d, dims, row_padded, col_padded, SCALED, OF_ROWS)
            u = difference * scale
            x -= u * u
        # slope: of the loss by q; for each dimension on its own, by the square of its u
        at = (3 if DIMENSIONS else 1) * dims * row_padded
        grad = _row_or_col(of_rows + at + row_padded, True, OF_ROWS)
        if SCALED:
            slope = -grad * exp(x - _row_or_col(of_rows + at, True, OF_ROWS))
        else:
            value, slope = kernel(-x, number[4:])
            slope = slope * weight * grad
            if OF_ROWS:
                _add_to(sums + dims * own_padded, value * weight)
        if not OF_ROWS:
            _add_to(sums + (slots - 1) * own_padded, slope)
        for d in range(0, dims):
            difference, scale = _distance(of_rows, of_cols, d, dims, row_padded, col_padded, SCALED, OF_ROWS)
            g = slope
            if DIMENSIONS:
                u = difference * scale
                x = _row_or_col(of_cols + (2 * dims + d) * col_padded, False, OF_ROWS) - u * u
                if SPECIAL:
                    x += extra
                share = exp(x - _row_or_col(of_rows + (dims + d) * row_padded, True, OF_ROWS))
                g -= share * _row_or_col(of_rows + (2 * dims + d) * row_padded, True, OF_ROWS)
            moved = g * scale * difference  # in this order: u may be infinite where g is 0
            if OF_ROWS:
                _add_to(sums + d * own_padded, moved * scale)
            else:
                _add_to(sums + d * own_padded, moved)
                if SCALED:
                    _add_to(sums + (dims + d) * own_padded, moved * difference)
                if DIMENSIONS:
                    _add_to(sums + (2 * dims + d) * own_padded, g)


@triton.jit
def _slots(dims, SCALED: tl.constexpr, DIMENSIONS: tl.constexpr, OF_ROWS: tl.constexpr):
    """How many sums a point has: a row's of g u scale by dimension, then of a kernel's value; a col's of g u, of
    g u (z - mu) for normals and of g where it differs by dimension, then of the slope."""
    return dims + (not SCALED) if OF_ROWS else (1 + SCALED + DIMENSIONS) * dims + 1


@triton.jit
def _total(sums, slot, at, d, slots, padded, dims, parts, COMPUTE: tl.constexpr):
    """[P, D] from slots, over all parts."""
    total = tl.zeros([at.shape[0], d.shape[0]], COMPUTE)
    for part in range(0, parts):
        begin = sums + (part * slots + slot) * padded
        total += tl.load(begin + d[None, :] * padded + at[:, None], mask=(d < dims)[None, :], other=0)
    return total


@triton.jit(do_not_specialize=["row_count", "col_count", "row_parts", "col_parts", "dims"])
def finish_backward_kernel(
    kernel: tl.constexpr,
    cols,  # packed
    of_rows,  # the sums; None where nobody asked for them
    of_cols,
    value,  # [rows], where it is not the forward's
    grad_points,  # [rows, dims]
    grad_centres,  # [cols, dims]
    grad_logvar,
    grad_log_weights,
    row_count,
    col_count,
    row_padded,
    col_padded,
    dims,
    row_parts,
    col_parts,
    DIMENSIONS: tl.constexpr,
    SYMMETRIC: tl.constexpr,  # the cols are the rows: a point's part as a col has the same gradient
    POINTS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    SCALED: tl.constexpr = kernel is None
    row_padded, col_padded, dims = row_padded.to(tl.int64), col_padded.to(tl.int64), dims.to(tl.int64)
    program = tl.program_id(0).to(tl.int64)
    if program < row_padded // POINTS:
        if of_rows is not None:
            at = program * POINTS + tl.arange(0, POINTS)
            slots = _slots(dims, SCALED, DIMENSIONS, True)
            if value is not None:
                counted = _total(of_rows, dims, at, tl.arange(0, 1), slots, row_padded, 1, row_parts, COMPUTE)
                tl.store(value + at[:, None], counted, mask=(at < row_count)[:, None])
            if grad_points is not None:
                for first in range(0, dims, POINTS):
                    d = first + tl.arange(0, POINTS)
                    there = (at < row_count)[:, None] & (d < dims)[None, :]
                    total = _total(of_rows, 0, at, d, slots, row_padded, dims, row_parts, COMPUTE)
                    tl.store(grad_points + at[:, None] * dims + d[None, :], (4 if SYMMETRIC else 2) * total, mask=there)
    else:
        if of_cols is not None:
            at = (program - row_padded // POINTS) * POINTS + tl.arange(0, POINTS)
            slots = _slots(dims, SCALED, DIMENSIONS, False)
            whole = _total(of_cols, slots - 1, at, tl.arange(0, 1), slots, col_padded, 1, col_parts, COMPUTE)
            for first in range(0, dims, POINTS):
                d = first + tl.arange(0, POINTS)
                there = (at < col_count)[:, None] & (d < dims)[None, :]
                to = at[:, None] * dims + d[None, :]
                total = _total(of_cols, 0, at, d, slots, col_padded, dims, col_parts, COMPUTE)
                if SCALED:  # du/dmu = -scale, du/dlogvar = -u / 2, and each pair's logarithm has -logvar / 2
                    scale = tl.load(cols + (dims + d)[None, :] * col_padded + at[:, None], mask=there, other=0)
                    total *= scale
                    second = scale * _total(of_cols, dims, at, d, slots, col_padded, dims, col_parts, COMPUTE)
                    all = whole
                    if DIMENSIONS:
                        all = _total(of_cols, 2 * dims, at, d, slots, col_padded, dims, col_parts, COMPUTE)
                    tl.store(grad_logvar + to, all * 0.5 - second, mask=there)
                tl.store(grad_centres + to, -2 * total, mask=there)
            if grad_log_weights is not None:
                tl.store(grad_log_weights + at[:, None], -whole, mask=(at < col_count)[:, None])


def _padded(count: int) -> int:
    return -(-count // OWN) * OWN


def _parts(owned: int, streamed: int, stream: int, most: int) -> int:
    """How many parts the side that streams past is cut into: depends on sizes alone."""
    return max(min(_PROGRAMS // max(owned // OWN, 1), most, -(-streamed // stream)), 1)


def pairs(density, tensors, every=0, own=0, next_=0, scales=(), symmetric=False, first=0) -> None:
    """Run a density over all pairs of a row and a col.

    Args:
        density: a name in DENSITIES.
        tensors: points [rows, dims]; centres, logvar [cols, dims], log_weights [cols]; value [rows], values
            [rows, dims], written forward and read backward, but a kernel's backward writes its value too; the gradients
            of these two; and, written backward, those of the first four. Contiguous, of one type, float32 or float64;
            None for what the density does not have, or nobody asked for.
        every, own, next_: added to the weight of every pair, of (i, i) beyond that, and of (i, i + 1 mod cols).
        scales: the density's floats.
        symmetric: centres are points, and the value's gradient is the same for all: the gradient of points is that of
            both.
        first: the rows' own cols begin here: i is first + row.
    """
    points, centres, logvar, log_weights, value, values, grad_value, grad_values, *grads = tensors
    kernel, dimensions = DENSITIES[density]
    backward = grad_value is not None
    (row_count, dims), col_count = points.shape, len(centres)
    padded = _padded(row_count), _padded(col_count)
    sizes = row_count, col_count, *padded, dims
    stream = STREAM[points.dtype] // (1 if kernel is None else 2)  # a kernel's value and slope take registers too
    compute = tl.float64 if points.dtype == torch.float64 else tl.float32
    numbers = as_bits((torch.finfo(points.dtype).max, every, own, next_, *scales))
    special = own != 0 or next_ != 0
    rows = points.new_empty(((3 if dimensions else 1) * dims + 2 if backward else dims) * padded[0])
    cols = points.new_empty(((3 if kernel is None else 1) * dims + 1) * padded[1])

    def run(function, programs, *arguments):
        if programs > 0:
            start(function, (programs,), (kernel, *arguments), {"num_warps": _WARPS, "maxnreg": 255}, points.device)

    read = (value if kernel is None else None, values, grad_value, grad_values) if backward else (None,) * 4
    pack = rows, cols, points, *read, centres, logvar, log_weights, numbers
    run(pack_kernel, sum(padded) // _PACKED, *pack, *sizes, _PACKED, compute)
    if not backward:
        parts = _parts(padded[0], col_count, stream, _PROGRAMS)
        slots = 1 + dims if dimensions else 1
        sums = points.new_empty((parts, slots, padded[0]))
        programs, constants = padded[0] // OWN * parts * slots, (dimensions, special, stream, OWN, compute)
        run(forward_kernel, programs, rows, cols, sums, numbers, *sizes, first, parts, *constants)
        finish = sums, value, values, numbers, row_count, padded[0], dims, parts
        run(finish_forward_kernel, padded[0] // _PACKED, *finish, _PACKED, compute)
        return

    sums, all_parts = [], []
    for of_rows, owned, streamed in ((True, padded[0], col_count), (False, padded[1], row_count)):
        parts = _parts(owned, streamed, stream, _MOST_PARTS)
        slots = _slots.fn(dims, kernel is None, dimensions, of_rows)
        wanted = grads[0] is not None or kernel is not None if of_rows else grads[1] is not None
        sums.append(points.new_empty((parts, slots, owned)) if wanted else None)
        all_parts.append(parts)
        if wanted:
            constants = of_rows, dimensions, special, stream, OWN, compute
            run(backward_kernel, owned // OWN * parts, rows, cols, sums[-1], numbers, *sizes, first, parts, *constants)
    run(
        finish_backward_kernel,
        sum(padded) // _PACKED,
        *(cols, *sums, value if kernel is not None else None, *grads, *sizes, *all_parts),
        *(dimensions, symmetric, _PACKED, compute),
    )
