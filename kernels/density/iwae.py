"""Importance-weighted latents: densities for the `rows` walk, with the formulas of vaefast/reference/iwae.py.

params: (lo, hi), the bounds of logvar; 1 for the gradient through z alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.gaussian import bounded, inside
from vaefast.kernels.density.math import exponentials, product


@triton.jit
def rsample_log_ratio_forward(inputs, row_inputs, eps, params):
    mu, logvar = inputs
    logvar = bounded(logvar, params)
    sigma, _, _ = exponentials(0.5 * logvar)
    z = tl.fma(sigma, eps, mu)
    return z, 0.5 * (eps * eps + logvar - z * z)


@triton.jit
def rsample_log_ratio_backward(inputs, row_inputs, eps, params):
    grad_z, mu, logvar = inputs
    grad_log_ratio, path = row_inputs[0], params[2]
    half = 0.5 * bounded(logvar, params)
    sigma, _, _ = exponentials(half)
    inverse_sigma, _, _ = exponentials(-half)
    spread = sigma * eps
    grad = grad_z - product(grad_log_ratio, mu + spread) + product(grad_log_ratio * path, inverse_sigma * eps)
    grad_logvar = 0.5 * (product(grad, spread) + grad_log_ratio * (1 - path))
    return grad, inside(grad_logvar, logvar, params)
