"""Categorical likelihood from logits: the density for the `planes` walk, with the formulas of
vaefast/reference/categorical.py."""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.math import NAN, exponentials, log, product
from vaefast.kernels.operands import plane, put


@triton.jit
def no_exp(stack):
    """A sum of no exponentials for every element, as `add_exp` has it; its exponent is finite, so that -inf adds 0."""
    zero = stack[3]
    lowest: tl.constexpr = -1.7976931348623157e308 if zero.dtype == tl.float64 else -3.4028234663852886e38
    return zero + lowest, zero


@triton.jit
def add_exp(highest, total, x):
    """The sum e^highest total, highest being the largest exponent met, with e^x added."""
    smaller, _, _ = exponentials(-tl.abs(x - highest))
    above = x > highest
    return tl.where(above, x, highest), tl.where(above, total * smaller + 1, total + smaller)


@triton.jit
def log_sum_exp(stack, COUNT: tl.constexpr):
    """ln sum_k e^(number k), of the first COUNT."""
    highest, total = no_exp(stack)
    for k in tl.range(0, COUNT, loop_unroll_factor=4):  # four loads under way at a time
        highest, total = add_exp(highest, total, plane(stack, k))
    return highest + log(total)


@triton.jit
def categorical_nll(inputs, outputs, row_inputs, params, PLANES: tl.constexpr):
    logits = inputs[0]
    x = plane(inputs[1], 0)
    is_class = (x >= 0) & (x < PLANES[0])  # what is none counts NaN and has no gradient
    log_total = log_sum_exp(logits, PLANES[0])
    if len(outputs) > 0:
        grad = tl.where(is_class, row_inputs[0], 0.0)
        for k in tl.range(0, PLANES[0], loop_unroll_factor=4):
            probability, _, _ = exponentials(plane(logits, k) - log_total)
            put(outputs[0], k, product(grad, tl.where(x == k, probability - 1, probability)))
    return (tl.where(is_class, log_total - plane(logits, tl.where(is_class, x, 0)), NAN),)
