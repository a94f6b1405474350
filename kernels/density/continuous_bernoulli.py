"""Continuous Bernoulli likelihood from logits: densities for the `rows` walk, with the formulas of
vaefast/reference/continuous_bernoulli.py.

params: (scale,), what x is multiplied by.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.math import INF, exponentials, log_normal, polynomial, product


@triton.jit
def _log_sinhc(square):
    """ln(sinh(x / 2) / (x / 2)) / x^2 for |x| <= 1, of x^2: the sum of B_2k / (2k)! x^(2k - 2) / 2k."""
    if square.dtype == tl.float64:
        p = polynomial(square, (
            77683 / 14101100039391805440000 / 22, -174611 / 802857662698291200000 / 20,
            43867 / 5109094217170944000 / 18, -3617 / 10670622842880000 / 16, 1 / 74724249600 / 14,
            -691 / 1307674368000 / 12, 1 / 47900160 / 10, -1 / 1209600 / 8, 1 / 30240 / 6, -1 / 720 / 4, 1 / 12 / 2,
        ))  # fmt: skip
    else:
        p = polynomial(square, (1 / 47900160 / 10, -1 / 1209600 / 8, 1 / 30240 / 6, -1 / 720 / 4, 1 / 12 / 2))
    return p


@triton.jit
def _sinhc_slope(square):
    """The derivative of ln(sinh(x / 2) / (x / 2)), over x, for |x| <= 1, of x^2: the sum of B_2k / (2k)! x^(2k - 2)."""
    if square.dtype == tl.float64:
        p = polynomial(square, (
            77683 / 14101100039391805440000, -174611 / 802857662698291200000, 43867 / 5109094217170944000,
            -3617 / 10670622842880000, 1 / 74724249600, -691 / 1307674368000, 1 / 47900160, -1 / 1209600,
            1 / 30240, -1 / 720, 1 / 12,
        ))  # fmt: skip
    else:
        p = polynomial(square, (1 / 47900160, -1 / 1209600, 1 / 30240, -1 / 720, 1 / 12))
    return p


@triton.jit
def continuous_bernoulli_nll_forward(inputs, row_inputs, eps, params):
    logits, x = inputs
    x = x * params[0]
    a, square = tl.abs(logits), logits * logits
    around_0 = (0.5 - x) * logits + _log_sinhc(square) * square
    linear = product(tl.where(logits > 0, 1 - x, -x), logits)
    _, expm1, _ = exponentials(-a)
    normaliser = tl.where(a < INF, log_normal(a / -expm1), a)  # inf and NaN
    away = tl.where(tl.abs(linear) == INF, linear, linear - normaliser)
    return (tl.where(a <= 1, around_0, away),)


@triton.jit
def continuous_bernoulli_nll_backward(inputs, row_inputs, eps, params):
    logits, x = inputs
    grad_nll = row_inputs[0]
    x = x * params[0]
    a = tl.abs(logits)
    exp, expm1, _ = exponentials(-a)
    # 1 - mean, for positive logits: 1 / a - e^-a / (1 - e^-a); past the bound e^-a is 0, and inf * 0 would be NaN
    rest = (expm1 + tl.minimum(a, 746.0) * exp) / (a * expm1)
    away = tl.where(logits > 0, 1 - x - rest, rest - x)
    around_0 = _sinhc_slope(logits * logits) * logits + (0.5 - x)
    return product(grad_nll, tl.where(a <= 1, around_0, away)), product(grad_nll, logits * -params[0])
