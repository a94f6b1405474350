"""The `rows` walk in Triton: map the elements of [rows, cols], with noise from the counter, and sum each row.

One kernel serves every density. A program owns a tile of ROWS rows by COLS columns; a row that is wider than its
tile is cut into chunks, whose partial sums PyTorch adds in a fixed order, so nothing needs an atomic.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vaefast._layout import readable, rows_and_cols, view
from vaefast.kernels.density import gaussian, noise

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _standard_normal(inputs, row_inputs, eps, lo, hi):
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
def _load(pointers, mask):
    x = tl.load(pointers, mask=mask, other=0.0)
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def _store(pointers, x, mask):
    dtype: tl.constexpr = pointers.dtype.scalar.element_ty
    if _INTERPRETED and dtype == tl.bfloat16:
        # the interpreter truncates: round to nearest even here, so that its cast is exact
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, rounded, 0x7FC00000).to(tl.float32, bitcast=True)
    tl.store(pointers, x.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["rows", "cols"], do_not_specialize_on_alignment=["chunks"])
def rows_kernel(
    density: tl.constexpr,
    inputs,  # of operands, see _operand
    row_inputs,  # of (pointer, row stride)
    outputs,  # of operands
    row_outputs,  # of pointers to [rows, chunks]
    seed,  # pointer to two int64, or None
    lo: tl.float64,  # unannotated, a Python float arrives as float32
    hi: tl.float64,
    rows,
    cols,
    chunks,  # tiles a row takes
    VECTOR: tl.constexpr,  # divides cols and every dense row stride: accesses of that many elements are aligned
    ONE_ROW: tl.constexpr,  # rows == 1, so every program is a chunk
    SHIFTED: tl.constexpr,  # rows begin inside a quad of normals
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
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
    x = [_load(_pointers(operand, row[:, None], col, narrow, VECTOR), mask) for operand in inputs]
    r = [_load(operand[0] + row * operand[1], row_mask)[:, None] for operand in row_inputs]
    if len(inputs) > 0:
        lo, hi = tl.full([1, 1], lo, x[0].dtype), tl.full([1, 1], hi, x[0].dtype)
    values = density(x, r, eps, lo, hi)
    for i in tl.static_range(len(outputs)):
        _store(_pointers(outputs[i], row[:, None], col, narrow, VECTOR), values[i], mask)
    for i in tl.static_range(len(row_outputs)):
        total = tl.sum(tl.where(mask, values[len(outputs) + i], 0.0), axis=1)
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

    (pointer, row stride / VECTOR)                                     dense rows
    (pointer, row stride, stride)                                      one stride along the event, as in a transpose
    (pointer, row stride, segment, segment stride, stride)             two, as in channels-last
    """
    tensor, layout = readable(tensor, batch_ndim, cols)
    if cols == 1 or (layout.segment == cols and layout.stride == 1):
        if layout.row_stride % vector == 0:
            return tensor, layout.row_stride // vector
        return tensor, layout.row_stride, 1
    if layout.segment == cols:
        return tensor, layout.row_stride, layout.stride
    return tensor, *layout


def _row_operand(tensor: torch.Tensor, batch_ndim: int) -> tuple[torch.Tensor, int]:
    tensor, layout = readable(tensor, batch_ndim, 1)
    return tensor, layout.row_stride


def launch(density, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params):
    """How `rows` launches the kernel: (grid, arguments, options), and the partial sums, empty where the kernel writes
    the row outputs itself."""
    elements = inputs + outputs
    head = elements[0]
    rows, cols = rows_and_cols(head, batch_ndim)
    if not row_inputs and not row_outputs and all([t.is_contiguous() for t in elements]):
        rows, cols, batch_ndim = 1, rows * cols, 0
    tile = tiling(rows, cols, head.element_size(), seed is not None, bool(row_outputs))
    partials = tuple([t.new_empty((rows, tile.chunks)) for t in row_outputs]) if tile.chunks > 1 else ()
    lo, hi = params or (0.0, 0.0)
    arguments = (
        DENSITIES[density],
        tuple([_operand(t, batch_ndim, cols, tile.vector) for t in inputs]),
        tuple([_row_operand(t, batch_ndim) for t in row_inputs]),
        tuple([_operand(t, batch_ndim, cols, tile.vector) for t in outputs]),
        partials or row_outputs,
        seed,
        lo,
        hi,
        rows,
        cols,
        tile.chunks,
        *tile[:5],
    )
    # contraction would change the noise's bits
    return (tile.programs,), arguments, {"num_warps": tile.num_warps, "enable_fp_fusion": False}, partials


def rows(density, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params) -> None:
    """Run a density over [rows, cols] elements, the first `batch_ndim` dimensions being the rows.

    Args:
        density: a name in DENSITIES.
        inputs, outputs: tuples of tensors of one shape [*batch, *event] and one dtype, of any strides, or of halves
            as _layout.halves names them.
        row_inputs, row_outputs: tuples of tensors of shape [*batch]; the outputs contiguous.
        seed: int64 [2] for a density with noise, else None.
        params: (lo, hi), the bounds of logvar, where the density has them, else ().
    """
    inputs, outputs = tuple([view(t) for t in inputs]), tuple([view(t) for t in outputs])
    head = outputs[0] if outputs else inputs[0]
    if head.numel() == 0:
        for total in row_outputs:
            total.zero_()  # rows of no elements
        return
    # keeps the copies that unreadable strides need alive until the launch
    grid, arguments, options, partials = launch(
        density, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params
    )
    if head.is_cuda and head.device.index != torch.cuda.current_device():
        with torch.cuda.device(head.device):
            rows_kernel[grid](*arguments, **options)
    else:
        rows_kernel[grid](*arguments, **options)
    for i, partial in enumerate(partials):
        torch.sum(partial, 1, out=row_outputs[i].view(-1))
