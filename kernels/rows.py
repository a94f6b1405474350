"""The `rows` walk in Triton: map the elements of [rows, cols], with noise from the counter, and sum each row.

One kernel serves every density. A program owns a tile of ROWS rows by COLS columns; a row that is wider than its
tile is cut into chunks, whose partial sums PyTorch adds in a fixed order, so nothing needs an atomic.

A density is a function `density(inputs, row_inputs, eps, params)` of tuples: the elementwise inputs and the numbers of
the row in the order of its op, the noise (None where it takes none), and its floats, all in the compute type. It
returns its elementwise outputs, then the terms of its row sums. What is the same all along a row may come as [R, 1].
An output that nobody asked for is not stored, and the compiler leaves out what only it needs.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vaefast._layout import readable, rows_and_cols, view
from vaefast.kernels.density import bernoulli, continuous_bernoulli, gaussian, laplace, logistic, noise

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _standard_normal(inputs, row_inputs, eps, params):
    return (eps,)


DENSITIES = {
    "standard_normal": _standard_normal,
    "rsample_forward": gaussian.rsample_forward,
    "rsample_backward": gaussian.rsample_backward,
    "rsample_kl_forward": gaussian.rsample_kl_forward,
    "rsample_kl_backward": gaussian.rsample_kl_backward,
    "kl_standard_normal_forward": gaussian.kl_standard_normal_forward,
    "kl_standard_normal_backward": gaussian.kl_standard_normal_backward,
    "kl_normal_forward": gaussian.kl_normal_forward,
    "kl_normal_backward": gaussian.kl_normal_backward,
    "bernoulli_nll_forward": bernoulli.bernoulli_nll_forward,
    "bernoulli_nll_backward": bernoulli.bernoulli_nll_backward,
    "gaussian_nll_forward": gaussian.gaussian_nll_forward,
    "gaussian_nll_backward": gaussian.gaussian_nll_backward,
    "squared_error_forward": gaussian.squared_error_forward,
    "squared_error_backward": gaussian.squared_error_backward,
    "laplace_nll_forward": laplace.laplace_nll_forward,
    "laplace_nll_backward": laplace.laplace_nll_backward,
    "continuous_bernoulli_nll_forward": continuous_bernoulli.continuous_bernoulli_nll_forward,
    "continuous_bernoulli_nll_backward": continuous_bernoulli.continuous_bernoulli_nll_backward,
    "discretized_logistic_nll_forward": logistic.discretized_logistic_nll_forward,
    "discretized_logistic_nll_backward": logistic.discretized_logistic_nll_backward,
}


@triton.jit
def _pointers(operand, row, col, narrow, VECTOR: tl.constexpr):
    """Where an operand's elements lie: (pointer, …) as `_operand` describes it. row: int64 [R, 1]; col: int64 [1, C]
    or [R, C]; narrow: col in the type of cols, in which division is cheap."""
    if len(operand) == 2:
        pointers = operand[0] + row * operand[1] * VECTOR + col
    elif len(operand) == 3:
        pointers = operand[0] + row * operand[1] + col * operand[2]
    else:
        pointers = operand[0] + row * operand[1] + (narrow // operand[2]).to(tl.int64) * operand[3]
        pointers += (narrow % operand[2]).to(tl.int64) * operand[4]
    return pointers


@triton.jit
def _read_row(operand, row, row_mask, COMPUTE: tl.constexpr):
    """One number per row, [R, 1]."""
    return tl.load(operand[0] + row * operand[1], mask=row_mask, other=0)[:, None].to(COMPUTE)


@triton.jit
def _read(operand, row, row_mask, col, narrow, mask, VECTOR: tl.constexpr, COMPUTE: tl.constexpr):
    """An operand's elements, [R, C], or [R, 1] where they are the same along the row."""
    if operand[-1] is None:
        x = _read_row(operand, row, row_mask, COMPUTE)
    else:
        x = tl.load(_pointers(operand, row[:, None], col, narrow, VECTOR), mask=mask, other=0).to(COMPUTE)
    return x


@triton.jit
def _weighed(x, weight):
    # a weight of 0 leaves nothing, not even of inf and NaN
    return x if weight is None else tl.where(weight == 0, 0.0, x * weight)


@triton.jit
def _float(bits, COMPUTE: tl.constexpr):
    return tl.full([1, 1], bits.to(tl.int64).to(tl.float64, bitcast=True), COMPUTE)


@triton.jit
def _store(pointers, x, mask):
    dtype: tl.constexpr = pointers.dtype.scalar.element_ty
    if _INTERPRETED and dtype == tl.bfloat16:
        # the interpreter truncates: round to nearest even here, so that its cast is exact
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, rounded, 0x7FC00000).to(tl.float32, bitcast=True)
    tl.store(pointers, x.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["floats", "rows", "cols"], do_not_specialize_on_alignment=["chunks"])
def rows_kernel(
    density: tl.constexpr,
    inputs,  # of operands, see _operand
    row_inputs,  # of (pointer, row stride)
    outputs,  # of operands, or None where nobody asked for the output
    row_outputs,  # of pointers to [rows, chunks]
    weight,  # operand or None
    seed,  # pointer to two int64, or None
    floats,  # the density's, as the bits of float64: a float in a tuple would arrive as float32
    rows,
    cols,
    chunks,  # tiles a row takes
    VECTOR: tl.constexpr,  # divides cols and every dense row stride: accesses of that many elements are aligned
    ONE_ROW: tl.constexpr,  # rows == 1, so every program is a chunk
    SHIFTED: tl.constexpr,  # rows begin inside a quad of normals
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    COMPUTE: tl.constexpr,  # the type to compute in
):
    program = tl.program_id(0)
    if ONE_ROW:
        chunk = program.to(tl.int64)
        row = tl.arange(0, ROWS).to(tl.int64)  # [R]
    else:
        chunk = (program % chunks).to(tl.int64)
        row = (program // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = (chunk * COLS + tl.arange(0, COLS))[None, :]  # [1, C]
    first = row * cols  # the index of the row's first element in the draw
    if SHIFTED:
        col = col - (first & 3)[:, None]  # [R, C]
        in_row = (col >= 0) & (col < cols)
    else:
        # compared by vectors, so that one predicate is known to serve a whole one
        in_row = col // VECTOR < cols // VECTOR
    row_mask = row < rows
    mask = row_mask[:, None] & in_row
    narrow = col.to(cols.dtype)

    eps = None
    if seed is not None:
        quad = (first >> 2)[:, None] + (chunk * (COLS // 4) + tl.arange(0, COLS // 4))[None, :]
        eps = noise.standard_normal(seed, quad)
    w = None
    if weight is not None:
        w = _read(weight, row, row_mask, col, narrow, mask, VECTOR, COMPUTE)
    x = [_read(operand, row, row_mask, col, narrow, mask, VECTOR, COMPUTE) for operand in inputs]
    r = [_weighed(_read_row(operand, row, row_mask, COMPUTE), w) for operand in row_inputs]
    values = density(x, r, eps, [_float(bits, COMPUTE) for bits in floats])
    for i in tl.static_range(len(outputs)):
        if outputs[i] is not None:
            y = values[i]
            if len(row_inputs) > 0 and w is not None:  # a gradient: 0 times inf would be left of a weight of 0
                y = tl.where(w == 0, 0.0, y)
            _store(_pointers(outputs[i], row[:, None], col, narrow, VECTOR), y, mask)
    for i in tl.static_range(len(row_outputs)):
        total = tl.sum(tl.where(mask, _weighed(values[len(outputs) + i], w), 0.0), axis=1)
        tl.store(row_outputs[i] + row * chunks + chunk, total, mask=row_mask)


class Tiling(NamedTuple):
    """How [rows, cols] is cut: what `rows_kernel` is specialised for, and its launch."""

    vector: int
    one_row: bool
    shifted: bool
    tile_rows: int
    tile_cols: int
    chunks: int
    programs: int
    num_warps: int


_PER_WARP = 256  # elements: 8 a thread
_TILE = 1024
_WHOLE_ROW = 4096


@functools.lru_cache(maxsize=4096)
def tiling(rows: int, cols: int, itemsize: int, noisy: bool, summed: bool) -> Tiling:
    """Tiles of 1024 elements on 4 warps, so a thread has 32 bytes of each float32 input in flight: at 1024 threads an
    SM two inputs make 64 KiB, against the 25 KiB that latency times bandwidth asks for on an H200. A row of up to
    4096 columns that is summed stays in one program, with as many warps more, which saves the second reduction.
    Predicted from the hardware's figures; not measured."""
    shifted = noisy and rows > 1 and cols % 4 != 0
    vector = 1 if shifted else math.gcd(cols, 16 // itemsize)
    widest = cols + 4 - math.gcd(cols, 4) if shifted else cols  # the quads that a row touches, in elements
    padded = max(triton.next_power_of_2(widest), 4)
    tile_cols = min(padded, _WHOLE_ROW if summed and padded <= _WHOLE_ROW else _TILE)
    tile_rows = min(max(_TILE // tile_cols, 1), triton.next_power_of_2(rows))
    chunks = triton.cdiv(widest, tile_cols)
    programs = triton.cdiv(rows, tile_rows) * chunks
    return Tiling(vector, rows == 1, shifted, tile_rows, tile_cols, chunks, programs, max(tile_cols // _PER_WARP, 4))


def _operand(tensor: torch.Tensor, batch_ndim: int, cols: int, vector: int) -> tuple:
    """What the kernel needs of an elementwise tensor; the number of members says how its elements lie:

    (pointer, row stride, None)                                        one element per row, the same at every column
    (pointer, row stride / VECTOR)                                     dense rows
    (pointer, row stride, stride)                                      one stride along the event, as in a transpose
    (pointer, row stride, segment, segment stride, stride)             two, as in channels-last
    """
    tensor, layout = readable(tensor, batch_ndim, cols, row_levels=1)
    if layout.segment == cols and layout.stride == 0 and cols > 1:
        return tensor, layout.row_stride, None
    if cols == 1 or (layout.segment == cols and layout.stride == 1):
        if layout.row_stride % vector == 0:
            return tensor, layout.row_stride // vector
        return tensor, layout.row_stride, 1
    if layout.segment == cols:
        return tensor, layout.row_stride, layout.stride
    return tensor, *layout[:4]


def _row_operand(tensor: torch.Tensor, batch_ndim: int) -> tuple[torch.Tensor, int]:
    tensor, layout = readable(tensor, batch_ndim, 1, row_levels=1)
    return tensor, layout.row_stride


def launch(density, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, weight):
    """How `rows` launches the kernel: (grid, arguments, options), and the partial sums, empty where the kernel writes
    the row outputs itself."""
    elements = [t for t in (*inputs, *outputs, weight) if t is not None]
    head = elements[0]
    rows, cols = rows_and_cols(head, batch_ndim)
    if not row_inputs and not row_outputs and all([t.is_contiguous() for t in elements]):
        rows, cols, batch_ndim = 1, rows * cols, 0
    tile = tiling(rows, cols, min([t.element_size() for t in elements]), seed is not None, bool(row_outputs))
    partials = tuple([t.new_empty((rows, tile.chunks)) for t in row_outputs]) if tile.chunks > 1 else ()

    def operand(tensor):
        return None if tensor is None else _operand(tensor, batch_ndim, cols, tile.vector)

    arguments = (
        DENSITIES[density],
        tuple([operand(t) for t in inputs]),
        tuple([_row_operand(t, batch_ndim) for t in row_inputs]),
        tuple([operand(t) for t in outputs]),
        partials or row_outputs,
        operand(weight),
        seed,
        struct.unpack(f"{len(params)}q", struct.pack(f"{len(params)}d", *params)),
        rows,
        cols,
        tile.chunks,
        *tile[:5],
        tl.float64 if head.dtype == torch.float64 else tl.float32,
    )
    # contraction would change the noise's bits
    return (tile.programs,), arguments, {"num_warps": tile.num_warps, "enable_fp_fusion": False}, partials


def rows(density, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, weight=None) -> None:
    """Run a density over [rows, cols] elements, the first `batch_ndim` dimensions being the rows.

    Args:
        density: a name in DENSITIES.
        inputs: tuple of tensors of one shape [*batch, *event], of any strides, or of halves as _layout.halves names
            them. They may differ in type, and be uint8, int32, int64 or bool; what is computed is float64 if the
            first is, else float32.
        outputs: tuple of tensors like them, floating, or None for one that nobody asked for.
        row_inputs, row_outputs: tuples of tensors of shape [*batch]; the outputs contiguous.
        seed: int64 [2] for a density with noise, else None.
        params: tuple of the density's floats.
        weight: tensor like the inputs, or None: each element's terms of the sums, or its numbers of the row, are
            multiplied by it, and an element of weight 0 counts nothing.
    """
    inputs, outputs = tuple([view(t) for t in inputs]), tuple([view(t) for t in outputs])
    head = (*inputs, *outputs)[0]
    if head.numel() == 0:
        for total in row_outputs:
            total.zero_()  # rows of no elements
        return
    # keeps the copies that unreadable strides need alive until the launch
    grid, arguments, options, partials = launch(
        density, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, weight
    )
    if head.is_cuda and head.device.index != torch.cuda.current_device():
        with torch.cuda.device(head.device):
            rows_kernel[grid](*arguments, **options)
    else:
        rows_kernel[grid](*arguments, **options)
    for i, partial in enumerate(partials):
        torch.sum(partial, 1, out=row_outputs[i].view(-1))
