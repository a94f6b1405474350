"""How the walks' kernels see tensors of any layout and type: what the host says of one, and how its elements are read
and written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vaefast._layout import ALL_ROWS, Argument, Layout, readable

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def row_pointers(operand, row, VECTOR: tl.constexpr):
    """Where an operand's rows begin, as `describe` has it. row: (int64 [R], the same in a type in which division
    is cheap)."""
    strides = operand[1]
    offset = row[0] * strides[0]
    if len(strides) > 1:
        offset = (row[1] // strides[2]).to(tl.int64) * strides[1] + (row[1] % strides[2]).to(tl.int64) * strides[0]
    return operand[0] + offset * VECTOR


@triton.jit
def pointers(operand, row, col, VECTOR: tl.constexpr):
    """Where an operand's elements lie, as `describe` has it. col: as row, of [1, C] or [R, C]."""
    strides = operand[2]
    at = row_pointers(operand, row, VECTOR if len(strides) == 0 else 1)[:, None]
    if len(strides) == 0:
        at += col[0]
    elif len(strides) == 1:
        at += col[0] * strides[0]
    else:
        at += (col[1] // strides[0]).to(tl.int64) * strides[1] + (col[1] % strides[0]).to(tl.int64) * strides[2]
    return at


@triton.jit
def read_row(operand, row, row_mask, COMPUTE: tl.constexpr):
    """One number per row, [R, 1]."""
    return tl.load(row_pointers(operand, row, 1), mask=row_mask, other=0)[:, None].to(COMPUTE)


@triton.jit
def read(operand, row, row_mask, col, mask, VECTOR: tl.constexpr, COMPUTE: tl.constexpr):
    """An operand's elements, [R, C], or [R, 1] where they are the same along the row."""
    if operand[2] is None:
        x = read_row(operand, row, row_mask, COMPUTE)
    else:
        x = tl.load(pointers(operand, row, col, VECTOR), mask=mask, other=0).to(COMPUTE)
    return x


@triton.jit
def weighed(x, weight):
    # a weight of 0 leaves nothing, not even of inf and NaN
    return x if weight is None else tl.where(weight == 0, 0.0, x * weight)


@triton.jit
def as_float(bits, COMPUTE: tl.constexpr):
    return tl.full([1, 1], bits.to(tl.int64).to(tl.float64, bitcast=True), COMPUTE)


@triton.jit
def store(pointers, x, mask):
    dtype: tl.constexpr = pointers.dtype.scalar.element_ty
    if _INTERPRETED and dtype == tl.bfloat16:
        # the interpreter truncates: round to nearest even here, so that its cast is exact
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, rounded, 0x7FC00000).to(tl.float32, bitcast=True)
    tl.store(pointers, x.to(dtype), mask=mask)


@triton.jit
def plane(stack, k):
    """Number k of each element of a stack, which is (pointers to the first planes, the planes' stride, which elements
    exist, zeros of the type to compute in)."""
    return tl.load(stack[0] + tl.cast(k, tl.int64) * stack[1], mask=stack[2], other=0).to(stack[3].dtype)


@triton.jit
def put(stack, k, x):
    if stack is not None:  # where nobody asked for it
        store(stack[0] + tl.cast(k, tl.int64) * stack[1], x, stack[2])


def describe(tensor: Argument, batch_ndim: int, cols: int, vector: int) -> tuple:
    """What a kernel needs of an elementwise tensor: (pointer, strides of the rows, strides of the columns). Of planes,
    that of the first.

    Rows: (stride,), or (stride, segment stride, segment). Columns:

    None                                 one element per row, the same at every column
    ()                                   dense; the rows' strides are then divided by VECTOR
    (stride,)                            one stride along the event, as in a transpose
    (segment, segment stride, stride)    two, as in channels-last
    """
    tensor, layout = readable(tensor, batch_ndim, cols)
    rows = _row_strides(layout)
    if layout.segment == cols and layout.stride == 0 and cols > 1:
        return tensor, rows, None
    if cols == 1 or (layout.segment == cols and layout.stride == 1):
        if all([stride % vector == 0 for stride in rows[:2]]):
            return tensor, (*[stride // vector for stride in rows[:2]], *rows[2:]), ()
        return tensor, rows, (1,)
    if layout.segment == cols:
        return tensor, rows, (layout.stride,)
    return tensor, rows, (layout.segment, layout.segment_stride, layout.stride)


def describe_row(tensor: torch.Tensor, batch_ndim: int) -> tuple[torch.Tensor, tuple]:
    tensor, layout = readable(tensor, batch_ndim, 1)
    return tensor, _row_strides(layout)


def _row_strides(layout: Layout) -> tuple[int, ...]:
    if layout.row_segment == ALL_ROWS:
        return (layout.row_stride,)
    return layout.row_stride, layout.row_segment_stride, layout.row_segment
