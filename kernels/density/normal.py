"""The normal distribution by location and scale: densities for the `rows` walk, with the formulas of
vaefast/reference/normal.py."""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.math import exponentials, log, product, standardised


@triton.jit
def normal_rsample_forward(inputs, row_inputs, eps, params):
    loc, scale = inputs
    return (tl.fma(scale, eps, loc),)


@triton.jit
def normal_rsample_backward(inputs, row_inputs, eps, params):
    return (inputs[0] * eps,)


@triton.jit
def normal_kl_forward(inputs, row_inputs, eps, params):
    loc_q, scale_q, loc_p, scale_p = inputs
    inverse = 1 / scale_p
    distance = standardised(loc_q - loc_p, inverse)
    _, _, excess = exponentials(2 * log(scale_q * inverse))
    return (0.5 * (distance * distance + excess),)


@triton.jit
def normal_kl_backward(inputs, row_inputs, eps, params):
    grad_kl, loc_q, scale_q, loc_p, scale_p = inputs
    inverse = 1 / scale_p
    ratio, distance = scale_q * inverse, standardised(loc_q - loc_p, inverse)
    scaled = grad_kl * inverse
    grad_loc = product(scaled, distance)
    grad_q, grad_p = product(scaled, ratio - 1 / ratio), product(scaled, 1 - ratio * ratio - distance * distance)
    return grad_loc, grad_q, -grad_loc, grad_p
