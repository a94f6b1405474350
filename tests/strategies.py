"""Shapes and strides that a caller may pass, as hypothesis strategies."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

_SIZES = st.one_of(st.integers(0, 9), st.sampled_from([16, 31, 64, 67]))
SEEDS = st.integers(-(2**63), 2**63 - 1)


def shapes(min_dims: int = 1, max_dims: int = 4, max_elements: int = 20_000) -> st.SearchStrategy[tuple[int, ...]]:
    sizes = st.lists(_SIZES, min_size=min_dims, max_size=max_dims).map(tuple)
    return sizes.filter(lambda shape: math.prod(shape) <= max_elements)


@st.composite
def strided(draw, values: torch.Tensor, *, may_expand: bool = True) -> torch.Tensor:
    """`values` with drawn strides: dimensions in any order in memory (transposed, channels-last), each one perhaps
    stepped through, part of something longer (sliced, the half of a chunk), or of stride 0 (expanded; the values then
    change). What lies between the elements is NaN."""
    shape = values.shape
    order = draw(st.permutations(range(len(shape))))
    padding = st.one_of(st.just((0, 1, 0)), st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 3)))
    expanded = [may_expand and size > 1 and draw(st.integers(0, 5)) == 0 for size in shape]
    base = values[tuple(slice(0, 1) if e else slice(None) for e in expanded)]
    pads = [draw(padding) for _ in shape]
    lengths = [before + step * size + after for (before, step, after), size in zip(pads, base.shape, strict=True)]
    buffer = values.new_full([lengths[d] for d in order], math.nan).permute([order.index(d) for d in range(len(shape))])
    view = buffer[tuple(slice(b, b + s * n, s) for (b, s, _), n in zip(pads, base.shape, strict=True))]
    view.copy_(base)
    return view.expand(shape)
