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


# A tensor, or (tensor, dim, which) for `tensor.chunk(2, dim)[which]`, without the 3 microseconds that views take.
Argument = torch.Tensor | tuple[torch.Tensor, int, int]


def halves(tensor: torch.Tensor, dim: int) -> tuple[Argument, Argument]:
    return (tensor, dim, 0), (tensor, dim, 1)


def view(argument: Argument) -> torch.Tensor:
    if isinstance(argument, tuple):
        tensor, dim, which = argument
        return tensor.chunk(2, dim)[which]
    return argument


def readable(argument: Argument, batch_ndim: int, cols: int, row_levels: int = 2) -> tuple[torch.Tensor, Layout]:
    """An argument of a walk as a tensor, copied only where its strides need more levels, and its layout.

    row_levels: 1 for a walk that knows `row_stride` alone.
    """
    tensor = view(argument)
    if tensor.is_contiguous():
        return tensor, contiguous(cols)
    layout = _merge(tuple(tensor.shape), tensor.stride(), batch_ndim)
    if layout is None or (row_levels == 1 and layout.row_segment != ALL_ROWS):
        return tensor.contiguous(), contiguous(cols)
    return tensor, layout


def rows_and_cols(tensor: torch.Tensor, batch_ndim: int) -> tuple[int, int]:
    return math.prod(tensor.shape[:batch_ndim]), math.prod(tensor.shape[batch_ndim:])
