"""What a pair of points counts, given q = |x - y|^2: densities for the `pairs` walk, with the formulas of
vaefast/reference/pairs.py. Each returns its value and the derivative by q, summed over the scales, floats.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """exp(x) to some |x| units in its last place; below the normal range 0."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def imq(q, scales):
    """Inverse multiquadrics: s / (s + q)."""
    value, slope = tl.zeros_like(q), tl.zeros_like(q)
    for i in tl.static_range(len(scales)):
        inverse = 1 / (q + scales[i])
        term = inverse * scales[i]
        value += term
        slope -= term * inverse
    return value, slope


@triton.jit
def rbf(q, scales):
    """Radial basis functions: exp(-q / s)."""
    value, slope = tl.zeros_like(q), tl.zeros_like(q)
    for i in tl.static_range(len(scales)):
        inverse = 1 / scales[i]
        term = exp(-q * inverse)
        value += term
        slope -= term * inverse
    return value, slope
