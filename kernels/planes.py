"""The walk over elements that are stacks of planes, in Triton: `rows` where an element of a tensor may be many numbers.

A thread owns an element and goes through its planes, whatever their stride. What needs the whole stack first, as the
gradient of a log-sum-exp does, goes through it twice: nothing is kept between.

A density is a function `density(inputs, outputs, row_inputs, params, PLANES)`: the stacks of its op's inputs, which it
reads by `plane`, those of its outputs, which it writes by `put` (none in a forward op), the numbers of the row, its
floats, and how many planes each input has. It returns the terms of its row sums, and the compiler leaves out what only
a sum that nobody asked for needs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vaefast._layout import rows_and_cols, view
from vaefast.kernels.density import categorical, logistic_mixture
from vaefast.kernels.operands import as_float, describe, describe_row, pointers, read, read_row, row_pointers, weighed
from vaefast.kernels.rows import as_bits, start, tiling

# One function serves an op's three directions: `_backward` asks for no sum, `_forward` for no gradient
DENSITIES = {
    f"{name}_{direction}": density
    for name, density in {**vars(categorical), **vars(logistic_mixture)}.items()
    if name.endswith("_nll")
    for direction in ("forward", "backward", "with_gradient")
}


@triton.jit
def _stack(operand, at, along, mask, COMPUTE: tl.constexpr):
    """An operand's stacks, as `plane` and `put` take them; None where nobody asked for it."""
    if operand is None:
        stack = None
    else:
        first = row_pointers(operand, at, 1)[:, None] if operand[2] is None else pointers(operand, at, along, 1)
        stack = first, operand[3], mask, tl.zeros(mask.shape, COMPUTE)
    return stack


@triton.jit(do_not_specialize=["floats", "rows", "cols"], do_not_specialize_on_alignment=["chunks"])
def planes_kernel(
    density: tl.constexpr,
    inputs,  # of operands, see `_operand`
    row_inputs,  # of (pointer, strides of the rows)
    outputs,  # of operands, or None where nobody asked for the output
    row_outputs,  # of pointers to [rows, chunks]
    weight,  # operand or None
    floats,  # the density's, as the bits of float64
    rows,
    cols,
    chunks,  # tiles a row takes
    PLANES: tl.constexpr,  # of each input
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    COMPUTE: tl.constexpr,  # the type to compute in
):
    program = tl.program_id(0)
    chunk = (program % chunks).to(tl.int64)
    row = (program // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    col = (chunk * COLS + tl.arange(0, COLS))[None, :]  # [1, C]
    row_mask = row < rows
    mask = row_mask[:, None] & (col < cols)
    at, along = (row, row.to(rows.dtype)), (col, col.to(cols.dtype))

    w = None
    if weight is not None:
        w = read(weight, at, row_mask, along, mask, 1, COMPUTE)
    x = [_stack(operand, at, along, mask, COMPUTE) for operand in inputs]
    y = [_stack(operand, at, along, mask, COMPUTE) for operand in outputs]
    r = [weighed(read_row(operand, at, row_mask, COMPUTE), w) for operand in row_inputs]
    terms = density(x, y, r, [as_float(number, COMPUTE) for number in floats], PLANES)
    for i in tl.static_range(len(row_outputs)):
        total = tl.sum(tl.where(mask, weighed(terms[i], w), 0.0), axis=1)
        tl.store(row_outputs[i] + row * chunks + chunk, total, mask=row_mask)


def _operand(argument, batch_ndim: int, cols: int) -> tuple:
    """What the kernel needs of an input or output: that of its first plane, and the planes' stride."""
    operand = describe(argument, batch_ndim, cols, 1)
    return *operand, operand[0].stride(argument[1]) if isinstance(argument, tuple) else 0


def planes(density, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, weight=None) -> None:
    """Run a density over [rows, cols] elements, as `vaefast.kernels.rows.rows` does; what is (tensor, dim) is a stack
    of planes along a dimension, the first after the batch."""
    head = view(inputs[0])
    if head.numel() == 0:
        for total in row_outputs:
            total.zero_()  # rows of no elements
        return
    rows, cols = rows_and_cols(head, batch_ndim)
    compute = tl.float64 if head.dtype == torch.float64 else tl.float32
    # an element a thread, of which none is a vector of smaller ones; wider tiles would leave a thread fewer registers
    tile = tiling(rows, cols, 16, 1, False, False)
    partials = tuple([t.new_empty((rows, tile.chunks)) for t in row_outputs]) if tile.chunks > 1 else ()

    def operand(argument):
        return None if argument is None else _operand(argument, batch_ndim, cols)

    arguments = (
        DENSITIES[density],
        tuple([operand(t) for t in inputs]),
        tuple([describe_row(t, batch_ndim) for t in row_inputs]),
        tuple([operand(t) for t in outputs]),
        partials or row_outputs,
        None if weight is None else describe(weight, batch_ndim, cols, 1),
        as_bits(params),
        rows,
        cols,
        tile.chunks,
        tuple([t[0].shape[t[1]] if isinstance(t, tuple) else 1 for t in inputs]),
        tile.tile_rows,
        tile.tile_cols,
        compute,
    )
    # nothing is contracted, so that a GPU computes what the interpreter does; ptxas, left to itself, spills a register
    # of the mixture in float64 to run more threads
    options = {"num_warps": tile.num_warps, "enable_fp_fusion": False, "maxnreg": 255}
    start(planes_kernel, (tile.programs,), arguments, options, head.device)
    for i, partial in enumerate(partials):
        torch.sum(partial, 1, out=row_outputs[i].view(-1))
