"""Discretised logistic likelihood: densities for the `rows` walk, with the formulas of vaefast/reference/logistic.py.

params: x's factor, coarse and fine; x's offset; half a bin; the least log-scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.math import at_least, exponentials, log1p_positive, product


@triton.jit
def _bin(inputs, params):
    """The mass of a bin of half width h at distance c from mu, in scales, is sinh(h) / (cosh(c) + cosh(h)); with
    near = e^-|c - h| and far = e^-(c + h) that is (1 - e^-2h) e^-max(c - h, 0) / ((1 + near) (1 + far)).

    Of the outermost bins, sigmoid(h - c) where mu lies inwards of them, near's side alone is left, and sigmoid(h + c)
    where mu lies beyond, far's. So what is not there is set to 0, and one formula serves all.
    """
    mu, log_scale, x = inputs
    coarse, fine_factor, offset, half_bin, floor = params
    position, fine = tl.fma(x, coarse, offset), x * fine_factor
    x = position + fine
    lowest, highest = x < half_bin - 1, x > 1 - half_bin
    edge = lowest | highest
    log_scale = at_least(log_scale, floor)
    inverse_scale, _, _ = exponentials(-log_scale)
    z = (position - mu + fine) * inverse_scale
    right = (z > 0) | (highest & (z == 0))  # mu lies left of the bin's centre
    beyond = (lowest & (z > 0)) | (highest & (z < 0))
    c = tl.abs(z)
    # past a log-scale of 60 the density is flat over a bin
    h = at_least(inverse_scale, 8.7565107626965203e-27) * half_bin
    exp_c, expm1_c, _ = exponentials(-c)
    exp_h, expm1_h, _ = exponentials(-h)
    near, _, _ = exponentials(-tl.abs(c - h))
    near = tl.where(beyond, 0.0, near)
    far = tl.where(edge & (beyond == 0), 0.0, exp_c * exp_h)
    e2h = tl.where(edge, 0.0, exp_h * exp_h)
    one_minus_e2h = tl.where(edge, 1.0, -expm1_h * (expm1_h + 2))
    e2c = tl.where(edge, 0.0, exp_c * exp_c)
    one_minus_e2c = tl.where(edge, 1.0, -expm1_c * (expm1_c + 2))
    return log_scale, inverse_scale, c, h, near, far, e2h, one_minus_e2h, e2c, one_minus_e2c, edge, beyond, right


@triton.jit
def discretized_logistic_nll_forward(inputs, row_inputs, eps, params):
    log_scale, _, c, h, near, far, e2h, one_minus_e2h, _, _, edge, beyond, _ = _bin(inputs, params)
    # (1 + near) (1 + far) / (1 - e^-2h), less 1: a sum of terms that are not negative
    odds = (near + far + near * far + e2h) / one_minus_e2h
    linear = tl.where(beyond, 0.0, at_least(c - h, 0.0))
    flat = tl.where(edge, 0.0, at_least(log_scale - 60, 0.0))
    return (linear + log1p_positive(odds) + flat,)


@triton.jit
def discretized_logistic_nll_backward(inputs, row_inputs, eps, params):
    _, inverse_scale, c, h, near, far, e2h, one_minus_e2h, e2c, one_minus_e2c, _, beyond, right = _bin(inputs, params)
    grad_nll = row_inputs[0]
    sides = (near + 1) * (far + 1)
    inverse = 1 / (sides * one_minus_e2h)
    one_over_sides = one_minus_e2h * inverse
    outside = tl.where(c > h, 1.0, near)
    # the derivatives by c and by -h
    by_c = tl.where(beyond, -far, outside * one_minus_e2c) * one_over_sides
    by_h = tl.where(beyond, far, outside * (e2c + 1 + far * 2)) * one_over_sides + e2h * 2 * sides * inverse
    grad_mu = product(grad_nll, tl.where(right, -inverse_scale, inverse_scale) * by_c)
    by_log_scale = tl.where(inputs[1] < params[4], 0.0, h * by_h - product(by_c, c))
    return grad_mu, product(grad_nll, by_log_scale), -grad_mu * (params[0] + params[1])
