"""The Gaussian latent: densities for the `rows` walk, with the formulas of vaefast/reference/gaussian.py.

A density is called with the elementwise inputs and the row inputs in the order of its op, the noise, and the bounds of
logvar; it returns its elementwise outputs, then the terms of its row sums.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exponentials(x):
    """exp(x), exp(x) - 1 and exp(x) - 1 - min(x, 100), each to a few units in its own last place.

    x = n log 2 + r and exp(r) = 1 + r + r^2 P(r) (Cephes expf; for float64 the Taylor series). Where n is 0 the
    terms that cancel are left out instead of subtracted. libdevice has expm1, but the interpreter has no libdevice.
    """
    if x.dtype == tl.float64:
        bounded = tl.clamp(x, -746.0, 710.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = bounded * 1.4426950408889634 + 6755399441055744.0  # 1.5 * 2^52: rounds, and the bits hold n
        n = shifted - 6755399441055744.0
        r = (bounded - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6
        p = r * 1.1470745597729725e-11 + 1.6059043836821613e-10
        p = p * r + 2.08767569878681e-9
        p = p * r + 2.505210838544172e-8
        p = p * r + 2.755731922398589e-7
        p = p * r + 2.7557319223985893e-6
        p = p * r + 2.48015873015873e-5
        p = p * r + 1.984126984126984e-4
        p = p * r + 1.388888888888889e-3
        p = p * r + 8.333333333333333e-3
        p = p * r + 4.1666666666666664e-2
        p = p * r + 1.6666666666666666e-1
        p = p * r + 0.5
        bits = shifted.to(tl.int64, bitcast=True)  # its low bits are n's, whatever the shifts below drop
        small = bits == 0x4338000000000000
        # 2^n in two factors: n may be 1024, or below the normal range
        scale = ((bits >> 1 << 52) + 0x3FF0000000000000).to(tl.float64, bitcast=True)
        rest = ((bits - (bits >> 1) << 52) + 0x3FF0000000000000).to(tl.float64, bitcast=True)
        q = r * r * p
        m = r + q
        exp = (m * scale + scale) * rest
    else:
        bounded = tl.clamp(x, -104.0, 89.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = tl.fma(bounded, 1.44269504, 12582912.0)  # 1.5 * 2^23: rounds, and the bits hold n
        n = shifted - 12582912.0
        r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, bounded))
        p = tl.fma(r, 1.9875691500e-4, 1.3981999507e-3)
        p = tl.fma(p, r, 8.3334519073e-3)
        p = tl.fma(p, r, 4.1665795894e-2)
        p = tl.fma(p, r, 1.6666665459e-1)
        p = tl.fma(p, r, 5.0000001201e-1)
        bits = shifted.to(tl.int32, bitcast=True)
        small = bits == 0x4B400000
        scale = ((bits >> 1 << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        rest = ((bits - (bits >> 1) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        q = r * r * p
        m = r + q
        exp = tl.fma(m, scale, scale) * rest
    expm1 = tl.where(small, m, exp - 1)
    # past 100 the linear term no longer counts; without the bound inf - inf is NaN
    return exp, expm1, tl.where(small, q, expm1 - tl.minimum(x, 100.0))


@triton.jit
def _bounded(logvar, lo, hi):
    return tl.clamp(logvar, lo, hi, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _inside(grad, logvar, lo, hi):
    return tl.where((logvar < lo) | (logvar > hi), 0.0, grad)


@triton.jit
def _product(a, b):
    # an output that nobody used has no gradient, even where the derivative is inf
    return tl.where(a == 0, 0.0, a * b)


@triton.jit
def _standardised(difference, logvar):
    # equal means are at distance 0 however small the variance: 0 * inf would be NaN
    inverse, _, _ = exponentials(-0.5 * logvar)
    return tl.where(difference == 0, difference, difference * inverse)


@triton.jit
def _kl_term(mu, expm1_half, excess_half):
    # exp(l) - 1 - l = (exp(l/2) - 1)^2 + 2 (exp(l/2) - 1 - l/2): sigma and the KL share one exponential
    return tl.fma(0.5, tl.fma(mu, mu, expm1_half * expm1_half), excess_half)


@triton.jit
def rsample_forward(inputs, row_inputs, eps, lo, hi):
    mu, logvar = inputs
    sigma, _, _ = exponentials(0.5 * _bounded(logvar, lo, hi))
    return (tl.fma(sigma, eps, mu),)


@triton.jit
def rsample_backward(inputs, row_inputs, eps, lo, hi):
    grad_z, logvar = inputs
    sigma, _, _ = exponentials(0.5 * _bounded(logvar, lo, hi))
    return (_inside(_product(grad_z, 0.5 * sigma * eps), logvar, lo, hi),)


@triton.jit
def rsample_kl_forward(inputs, row_inputs, eps, lo, hi):
    mu, logvar = inputs
    sigma, expm1, excess = exponentials(0.5 * _bounded(logvar, lo, hi))
    return tl.fma(sigma, eps, mu), _kl_term(mu, expm1, excess)


@triton.jit
def rsample_kl_backward(inputs, row_inputs, eps, lo, hi):
    grad_z, mu, logvar = inputs
    grad_kl = row_inputs[0]
    sigma, expm1, _ = exponentials(0.5 * _bounded(logvar, lo, hi))
    grad_logvar = _product(grad_z, 0.5 * sigma * eps) + _product(grad_kl, 0.5 * expm1 * (expm1 + 2))
    return grad_z + _product(grad_kl, mu), _inside(grad_logvar, logvar, lo, hi)


@triton.jit
def kl_standard_normal_forward(inputs, row_inputs, eps, lo, hi):
    mu, logvar = inputs
    _, expm1, excess = exponentials(0.5 * _bounded(logvar, lo, hi))
    return (_kl_term(mu, expm1, excess),)


@triton.jit
def kl_standard_normal_backward(inputs, row_inputs, eps, lo, hi):
    mu, logvar = inputs
    grad_kl = row_inputs[0]
    _, expm1, _ = exponentials(_bounded(logvar, lo, hi))
    return _product(grad_kl, mu), _inside(_product(grad_kl, 0.5 * expm1), logvar, lo, hi)


@triton.jit
def kl_normal_forward(inputs, row_inputs, eps, lo, hi):
    mu_q, logvar_q, mu_p, logvar_p = inputs
    logvar_p = _bounded(logvar_p, lo, hi)
    distance = _standardised(mu_q - mu_p, logvar_p)
    _, _, excess = exponentials(_bounded(logvar_q, lo, hi) - logvar_p)
    return (0.5 * (distance * distance + excess),)


@triton.jit
def kl_normal_backward(inputs, row_inputs, eps, lo, hi):
    mu_q, logvar_q, mu_p, logvar_p = inputs
    grad_kl = row_inputs[0]
    bounded_p = _bounded(logvar_p, lo, hi)
    distance = _standardised(mu_q - mu_p, bounded_p)
    _, expm1, _ = exponentials(_bounded(logvar_q, lo, hi) - bounded_p)
    grad_mu = _product(grad_kl, _standardised(distance, bounded_p))
    grad_q = _inside(_product(grad_kl, 0.5 * expm1), logvar_q, lo, hi)
    grad_p = _inside(_product(grad_kl, -0.5 * (expm1 + distance * distance)), logvar_p, lo, hi)
    return grad_mu, grad_q, -grad_mu, grad_p
