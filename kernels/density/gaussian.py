"""The Gaussian latent and likelihood: densities for the `rows` walk, with the formulas of
vaefast/reference/gaussian.py.

The latent's params are (lo, hi), the bounds of logvar; a likelihood's begin with what x is multiplied by.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.math import INF, exponentials, product, standardised


@triton.jit
def bounded(logvar, params):
    return tl.clamp(logvar, params[0], params[1], propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def inside(grad, logvar, params):
    return tl.where((logvar < params[0]) | (logvar > params[1]), 0.0, grad)


@triton.jit
def _kl_term(mu, expm1_half, excess_half):
    # exp(l) - 1 - l = (exp(l/2) - 1)^2 + 2 (exp(l/2) - 1 - l/2): sigma and the KL share one exponential
    return tl.fma(0.5, tl.fma(mu, mu, expm1_half * expm1_half), excess_half)


@triton.jit
def rsample_forward(inputs, row_inputs, eps, params):
    mu, logvar = inputs
    sigma, _, _ = exponentials(0.5 * bounded(logvar, params))
    return (tl.fma(sigma, eps, mu),)


@triton.jit
def rsample_backward(inputs, row_inputs, eps, params):
    grad_z, logvar = inputs
    sigma, _, _ = exponentials(0.5 * bounded(logvar, params))
    return (inside(product(grad_z, 0.5 * sigma * eps), logvar, params),)


@triton.jit
def rsample_kl_forward(inputs, row_inputs, eps, params):
    mu, logvar = inputs
    sigma, expm1, excess = exponentials(0.5 * bounded(logvar, params))
    return tl.fma(sigma, eps, mu), _kl_term(mu, expm1, excess)


@triton.jit
def rsample_kl_backward(inputs, row_inputs, eps, params):
    grad_z, mu, logvar = inputs
    grad_kl = row_inputs[0]
    sigma, expm1, _ = exponentials(0.5 * bounded(logvar, params))
    grad_logvar = product(grad_z, 0.5 * sigma * eps) + product(grad_kl, 0.5 * expm1 * (expm1 + 2))
    return grad_z + product(grad_kl, mu), inside(grad_logvar, logvar, params)


@triton.jit
def kl_standard_normal_forward(inputs, row_inputs, eps, params):
    mu, logvar = inputs
    _, expm1, excess = exponentials(0.5 * bounded(logvar, params))
    return (_kl_term(mu, expm1, excess),)


@triton.jit
def kl_standard_normal_backward(inputs, row_inputs, eps, params):
    mu, logvar = inputs
    grad_kl = row_inputs[0]
    _, expm1, _ = exponentials(bounded(logvar, params))
    return product(grad_kl, mu), inside(product(grad_kl, 0.5 * expm1), logvar, params)


@triton.jit
def kl_normal_forward(inputs, row_inputs, eps, params):
    mu_q, logvar_q, mu_p, logvar_p = inputs
    logvar_p = bounded(logvar_p, params)
    inverse_sigma, _, _ = exponentials(-0.5 * logvar_p)
    distance = standardised(mu_q - mu_p, inverse_sigma)
    _, _, excess = exponentials(bounded(logvar_q, params) - logvar_p)
    return (0.5 * (distance * distance + excess),)


@triton.jit
def kl_normal_backward(inputs, row_inputs, eps, params):
    mu_q, logvar_q, mu_p, logvar_p = inputs
    grad_kl = row_inputs[0]
    bounded_p = bounded(logvar_p, params)
    inverse_sigma, _, _ = exponentials(-0.5 * bounded_p)
    distance = standardised(mu_q - mu_p, inverse_sigma)
    _, expm1, _ = exponentials(bounded(logvar_q, params) - bounded_p)
    grad_mu = product(grad_kl, standardised(distance, inverse_sigma))
    grad_q = inside(product(grad_kl, 0.5 * expm1), logvar_q, params)
    grad_p = inside(product(grad_kl, -0.5 * (expm1 + distance * distance)), logvar_p, params)
    return grad_mu, grad_q, -grad_mu, grad_p


@triton.jit
def kl_normal_with_gradient(inputs, row_inputs, eps, params):
    return kl_normal_backward(inputs, row_inputs, eps, params) + kl_normal_forward(inputs, row_inputs, eps, params)


@triton.jit
def log_scale_beside(distance, log_scale):
    # where it is inf the density is 0, also at scale 0, whose logarithm would make it NaN
    return tl.where(distance == INF, 0.0, log_scale)


@triton.jit
def gaussian_nll_forward(inputs, row_inputs, eps, params):
    mu, logvar, x = inputs
    inverse_sigma, _, _ = exponentials(-0.5 * logvar)
    distance = standardised(x * params[0] - mu, inverse_sigma)
    square = distance * distance
    return (0.5 * (square + log_scale_beside(square, logvar)) + 0.9189385332046727,)


@triton.jit
def gaussian_nll_backward(inputs, row_inputs, eps, params):
    mu, logvar, x = inputs
    grad_nll = row_inputs[0]
    inverse_sigma, _, _ = exponentials(-0.5 * logvar)
    distance = standardised(x * params[0] - mu, inverse_sigma)
    grad_mu = product(grad_nll, -standardised(distance, inverse_sigma))
    return grad_mu, product(grad_nll, 0.5 - 0.5 * distance * distance), -grad_mu * params[0]


# of a variance that is one number; params: x's factor, log-variance, what is added


@triton.jit
def squared_error_forward(inputs, row_inputs, eps, params):
    mu, x = inputs
    inverse_sigma, _, _ = exponentials(-0.5 * params[1])
    distance = standardised(x * params[0] - mu, inverse_sigma)
    return (0.5 * distance * distance + params[2],)


@triton.jit
def squared_error_backward(inputs, row_inputs, eps, params):
    mu, x = inputs
    inverse_sigma, _, _ = exponentials(-0.5 * params[1])
    distance = standardised(x * params[0] - mu, inverse_sigma)
    grad_mu = product(row_inputs[0], -standardised(distance, inverse_sigma))
    return grad_mu, -grad_mu * params[0]
