"""How a strided tensor is read as [rows, cols]: the batch is the rows, the event in row-major order the cols."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

ALL_ROWS = 2**62  # a segment of the rows that no row lies beyond


class Layout(NamedTuple):
    """Element (row, col) lies at `(col // segment) * segment_stride + (col % segment) * stride` from its row, and the
    row at `(row // row_segment) * row_segment_stride + (row % row_segment) * row_stride`.

    Two levels on either side name every layout that VAEs produce: contiguous, either half of a `chunk`, a transposed
    matrix, channels-last, expanded (stride 0), and data [B, 1, N] that stands for K samples [B, K, N]. What they cannot
    name is copied.
    """

    row_stride: int
    segment: int
    segment_stride: int
    stride: int
    row_segment: int = ALL_ROWS
    row_segment_stride: int = 0


@functools.lru_cache(maxsize=4096)
def _merge(shape: tuple[int, ...], strides: tuple[int, ...], batch_ndim: int) -> Layout | None:
    def merged(dims):
        levels: list[tuple[int, int]] = []
        for size, stride in dims:
            if size == 1:
                continue
            if levels and levels[-1][1] == size * stride:
                levels[-1] = (levels[-1][0] * size, stride)
            else:
                levels.append((size, stride))
        return levels

    dims = list(zip(shape, strides, strict=True))
    batch, event = merged(dims[:batch_ndim]), merged(dims[batch_ndim:])
    if len(batch) > 2 or len(event) > 2:
        return None
    row_stride = batch[-1][1] if batch else 0
    rows = (batch[1][0], batch[0][1]) if len(batch) == 2 else ()
    if not event:
        return Layout(row_stride, 1, 0, 0, *rows)
    segment, stride = event[-1]
    return Layout(row_stride, segment, event[0][1] if len(event) == 2 else 0, stride, *rows)


def contiguous(cols: int) -> Layout:
    return Layout(cols, max(cols, 1), 0, 1)  # cols are divided by the segment, also where there are none


# A tensor; (tensor, dim, which) for `tensor.chunk(2, dim)[which]`, without the 3 microseconds that views take; or
# (tensor, dim) for all its planes along a dimension, an element being the stack of numbers that differ in dim alone.
Argument = torch.Tensor | tuple[torch.Tensor, int, int] | tuple[torch.Tensor, int]


def halves(tensor: torch.Tensor, dim: int) -> tuple[Argument, Argument]:
    return (tensor, dim, 0), (tensor, dim, 1)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its values in memory: not those of a negative that PyTorch has put off (the imaginary part of a
    conjugate), nor no memory at all (the zeros that some gradients are)."""
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.resolve_neg()


def view(argument: Argument) -> torch.Tensor:
    """The argument as one tensor of the walk's shape: of several planes, the first."""
    if not isinstance(argument, tuple):
        return argument
    tensor, dim, *which = argument
    return tensor.chunk(2, dim)[which[0]] if which else tensor.select(dim, 0)


def readable(argument: Argument, batch_ndim: int, cols: int, row_levels: int = 2) -> tuple[torch.Tensor, Layout]:
    """An argument of a walk as a tensor, copied only where its strides need more levels, and its layout; of planes, the
    tensor of them all, and the layout of one.

    row_levels: 1 for a walk that knows `row_stride` alone.
    """
    argument = (plain(argument[0]), *argument[1:]) if isinstance(argument, tuple) else plain(argument)
    tensor = view(argument)
    planes = isinstance(argument, tuple) and len(argument) == 2
    if tensor.is_contiguous() and not planes:
        return tensor, contiguous(cols)
    layout = _merge(tuple(tensor.shape), tensor.stride(), batch_ndim)
    unnamed = layout is None or (row_levels == 1 and layout.row_segment != ALL_ROWS)
    if planes:
        whole, dim = argument
        return readable((whole.contiguous(), dim), batch_ndim, cols, row_levels) if unnamed else (whole, layout)
    return (tensor.contiguous(), contiguous(cols)) if unnamed else (tensor, layout)


def rows_and_cols(tensor: torch.Tensor, batch_ndim: int) -> tuple[int, int]:
    return math.prod(tensor.shape[:batch_ndim]), math.prod(tensor.shape[batch_ndim:])
