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

from vaefast._layout import rows_and_cols, view
from vaefast.kernels.density import (
    bernoulli,
    continuous_bernoulli,
    counts,
    elbo,
    gaussian,
    iwae,
    laplace,
    logistic,
    noise,
    normal,
)
from vaefast.kernels.operands import as_float, describe, describe_row, pointers, read, read_row, store, weighed


@triton.jit
def _standard_normal(inputs, row_inputs, eps, params):
    return (eps,)


# A family's densities are its functions that are named as ops are
DENSITIES = {"standard_normal": _standard_normal} | {
    name: density
    for family in (gaussian, normal, elbo, iwae, bernoulli, continuous_bernoulli, laplace, logistic, counts)
    for name, density in vars(family).items()
    if name.endswith(("_forward", "_backward", "_with_gradient"))
}

# These would need more registers for 8 elements than a thread has
_HEAVY = {"beta_binomial_nll_forward", "beta_binomial_nll_backward"}


@triton.jit(do_not_specialize=["floats", "rows", "cols"], do_not_specialize_on_alignment=["chunks"])
def rows_kernel(
    density: tl.constexpr,
    inputs,  # of operands, see describe
    row_inputs,  # of (pointer, strides of the rows)
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
    at, along = (row, row.to(rows.dtype)), (col, col.to(cols.dtype))

    eps = None
    if seed is not None:
        quad = (first >> 2)[:, None] + (chunk * (COLS // 4) + tl.arange(0, COLS // 4))[None, :]
        eps = noise.standard_normal(seed, quad).to(COMPUTE)
    w = None
    if weight is not None:
        w = read(weight, at, row_mask, along, mask, VECTOR, COMPUTE)
    x = [read(operand, at, row_mask, along, mask, VECTOR, COMPUTE) for operand in inputs]
    r = [weighed(read_row(operand, at, row_mask, COMPUTE), w) for operand in row_inputs]
    values = density(x, r, eps, [as_float(bits, COMPUTE) for bits in floats])
    for i in tl.static_range(len(outputs)):
        if outputs[i] is not None:
            y = values[i]
            if len(row_inputs) > 0 and w is not None:  # a gradient: 0 times inf would be left of a weight of 0
                y = tl.where(w == 0, 0.0, y)
            store(pointers(outputs[i], at, along, VECTOR), y, mask)
    for i in tl.static_range(len(row_outputs)):
        total = tl.sum(tl.where(mask, weighed(values[len(outputs) + i], w), 0.0), axis=1)
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


_WARPS = 4  # of a tile
_MOST_WARPS = 16  # of a tile that is a row


@functools.lru_cache(maxsize=4096)
def tiling(rows: int, cols: int, itemsize: int, per_thread: int, noisy: bool, summed: bool) -> Tiling:
    """Tiles of 1024 elements on 4 warps, so a thread has 32 bytes of each float32 input in flight: at 1024 threads an
    SM two inputs make 64 KiB, against the 25 KiB that latency times bandwidth asks for on an H200. A row of up to 4096
    columns that is summed stays in one program, with as many warps more, which saves the second reduction. Predicted
    from the hardware's figures; not measured.

    itemsize: of the smallest type that is read or written.
    per_thread: elements; 8, or, with half of all these sizes, 4.
    """
    per_warp = 32 * per_thread
    tile, whole_row = _WARPS * per_warp, _MOST_WARPS * per_warp
    shifted = noisy and rows > 1 and cols % 4 != 0
    vector = 1 if shifted else math.gcd(cols, 16 // itemsize)
    widest = cols + 4 - math.gcd(cols, 4) if shifted else cols  # the quads that a row touches, in elements
    padded = max(triton.next_power_of_2(widest), 4)
    tile_cols = min(padded, whole_row if summed and padded <= whole_row else tile)
    tile_rows = min(max(tile // tile_cols, 1), triton.next_power_of_2(rows))
    chunks = triton.cdiv(widest, tile_cols)
    programs = triton.cdiv(rows, tile_rows) * chunks
    num_warps = max(tile_cols // per_warp, _WARPS)
    return Tiling(vector, rows == 1, shifted, tile_rows, tile_cols, chunks, programs, num_warps)


def as_bits(params: tuple[float, ...]) -> tuple[int, ...]:
    """The density's floats as `as_float` reads them."""
    return struct.unpack(f"{len(params)}q", struct.pack(f"{len(params)}d", *params))


def launch(density, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, weight):
    """How `rows` launches the kernel: (grid, arguments, options), and the partial sums, empty where the kernel writes
    the row outputs itself."""
    elements = [t for t in (*inputs, *outputs, weight) if t is not None]
    head = elements[0]
    rows, cols = rows_and_cols(head, batch_ndim)
    if not row_inputs and not row_outputs and all([t.is_contiguous() for t in elements]):
        rows, cols, batch_ndim = 1, rows * cols, 0
    compute = tl.float64 if head.dtype == torch.float64 else tl.float32
    per_thread = 4 if compute == tl.float64 or density in _HEAVY else 8
    itemsize = min([t.element_size() for t in elements])
    tile = tiling(rows, cols, itemsize, per_thread, seed is not None, bool(row_outputs))
    partials = tuple([t.new_empty((rows, tile.chunks)) for t in row_outputs]) if tile.chunks > 1 else ()

    def operand(tensor):
        return None if tensor is None else describe(tensor, batch_ndim, cols, tile.vector)

    arguments = (
        DENSITIES[density],
        tuple([operand(t) for t in inputs]),
        tuple([describe_row(t, batch_ndim) for t in row_inputs]),
        tuple([operand(t) for t in outputs]),
        partials or row_outputs,
        operand(weight),
        seed,
        as_bits(params),
        rows,
        cols,
        tile.chunks,
        *tile[:5],
        compute,
    )
    # contraction would change the noise's bits
    return (tile.programs,), arguments, {"num_warps": tile.num_warps, "enable_fp_fusion": False}, partials


def start(kernel, grid, arguments, options, device: torch.device) -> None:
    """Launch a kernel on the device."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


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
    start(rows_kernel, grid, arguments, options, head.device)
    for i, partial in enumerate(partials):
        torch.sum(partial, 1, out=row_outputs[i].view(-1))
