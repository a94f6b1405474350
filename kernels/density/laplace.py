"""Laplace likelihood: densities for the `rows` walk, with the formulas of vaefast/reference/laplace.py.

params: (scale,), what x is multiplied by.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.gaussian import log_scale_beside
from vaefast.kernels.density.math import exponentials, product, standardised


@triton.jit
def laplace_nll_forward(inputs, row_inputs, eps, params):
    mu, log_scale, x = inputs
    inverse_scale, _, _ = exponentials(-log_scale)
    distance = tl.abs(standardised(x * params[0] - mu, inverse_scale))
    return (distance + log_scale_beside(distance, log_scale) + 0.6931471805599453,)


@triton.jit
def laplace_nll_backward(inputs, row_inputs, eps, params):
    mu, log_scale, x = inputs
    grad_nll = row_inputs[0]
    inverse_scale, _, _ = exponentials(-log_scale)
    difference = x * params[0] - mu
    slope = tl.where(difference > 0, -inverse_scale, tl.where(difference < 0, inverse_scale, difference))  # 0, or NaN
    grad_mu = product(grad_nll, slope)
    grad_log_scale = product(grad_nll, 1 - tl.abs(standardised(difference, inverse_scale)))
    return grad_mu, grad_log_scale, -grad_mu * params[0]
