"""Likelihoods of counts: densities for the `rows` walk, with the formulas of vaefast/reference/counts.py.

The data come as numbers: no density writes their gradient. Every value is what Stirling's formula leaves of a sum of
ln Γ, plus logarithms of ratios, each near 1 where the count is near its mean: what is large cancels on paper.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.gamma import digamma_difference, digamma_parts, shape, stirling
from vaefast.kernels.density.math import (
    INF,
    at_least,
    at_most,
    exponentials,
    log1p_parts,
    log_normal,
    log_parts,
    logistic,
    product,
)

_TWO_PI = tl.constexpr(6.283185307179586)
_HALF_LOG_TWO_PI = tl.constexpr(0.9189385332046727)


# Poisson


@triton.jit
def poisson_nll_forward(inputs, row_inputs, eps, params):
    log_rate, x = inputs
    # delta = log_rate - ln(x + 1), in two steps, so that it is exact where large rate and count agree
    high, low = log_parts(x + 1)
    exp, expm1, excess = exponentials(log_rate - high - low)
    rest = 0.5 * (high + low) + (stirling(1 / (x + 1)) + _HALF_LOG_TWO_PI)
    nll = tl.where(x == 0, exp, x * excess + (expm1 + rest))
    return (tl.where(x < 0, INF, nll),)


@triton.jit
def poisson_nll_backward(inputs, row_inputs, eps, params):
    log_rate, x = inputs
    rate, _, _ = exponentials(log_rate)
    return (row_inputs[0] * (rate - x),)


# Negative binomial


@triton.jit
def _negative_binomial(mu, x, log_theta):
    """With X = x + 1, A = theta + 1, N = x + theta + 1, the nll is

      x ln(X (mu + theta) / (mu N)) + theta ln(A (mu + theta) / (theta N))
      + ln(2 pi X A / N) / 2 + ln((x + theta) / theta) - 1 + stirling(1/X) + stirling(1/A) - stirling(1/N),

    of which x = 0 leaves the second term alone.
    """
    theta = shape(log_theta)
    total, X, A = x + theta, x + 1, theta + 1
    t, inverse_theta, inverse_mu, inverse = 1 / (total + 1), 1 / theta, 1 / mu, 1 / (X * A)
    excess, scaled_mean = x - mu, mu * inverse_theta

    ratio = X * t * (mu + theta) * inverse_mu
    u, v = (excess + 1) * inverse_mu * (theta * t), (scaled_mean - excess) * t
    log_u, excess_u = log1p_parts(u, ratio)
    log_v, excess_v = log1p_parts(v, A * t * (scaled_mean + 1))
    zero_nll = theta * log_v
    # near the mean x u + theta v is written out, and no first order is left to cancel
    linear = (excess * excess + x) * inverse_mu * (theta * t) + mu * t
    near = (tl.abs(u) < 0.25) & (tl.abs(v) < 0.25)
    logs = tl.where(near, linear - (x * excess_u + theta * excess_v), x * log_u + zero_nll)

    below_1 = theta < 1  # then ln((x + theta) / theta) is taken apart, for a theta of any smallness
    factor = tl.where(below_1, total, total * inverse_theta)
    rest = 0.5 * log_normal(X * A * t * (factor * factor)) - tl.where(below_1, log_theta, 0.0)
    rest += stirling(A * inverse) + stirling(X * inverse) - stirling(t) + (_HALF_LOG_TWO_PI - 1)

    nll = tl.where(x == 0, zero_nll, logs + rest)
    nll = tl.where((at_most(x, mu) < 0) | ((ratio == INF) & (x > 0)), INF, nll)
    return tl.where(mu < INF, nll, mu)  # inf, and NaN


@triton.jit
def _negative_binomial_gradient(mu, x, log_theta):
    """d/dmu = (1 - x / mu) theta / (mu + theta); d/dlog_theta = theta (v - ln(1 + v)) - digamma_difference(x, theta)
    with v = (x - mu) / (mu + theta), where the two logarithms are one, of (1 + v) (1 - p); and the nll at 0,
    theta ln(1 + mu / theta), right where x is 0."""
    theta, excess = shape(log_theta), x - mu
    inverse = 1 / (mu + theta)
    p, rest, t, s, _ = digamma_parts(x, theta)
    v, u = excess * inverse, (theta * excess - mu) * (inverse * t)
    log, log_excess = log1p_parts(u, theta * inverse * (t * s))
    zero = x == 0
    grad_log_theta = theta * (log_excess + tl.where(zero, x, v * p - rest)) - p
    surplus = tl.where(zero, 1.0, -excess / mu)
    return surplus * (theta * inverse), grad_log_theta, -theta * log


@triton.jit
def negative_binomial_nll_forward(inputs, row_inputs, eps, params):
    mu, x, log_theta = inputs
    return (_negative_binomial(mu, x, log_theta),)


@triton.jit
def negative_binomial_nll_backward(inputs, row_inputs, eps, params):
    mu, x, log_theta = inputs
    grad_nll = row_inputs[0]
    grad_mu, grad_log_theta, _ = _negative_binomial_gradient(mu, x, log_theta)
    return grad_nll * grad_mu, grad_nll * grad_log_theta


# Zero-inflated negative binomial


@triton.jit
def _zero_inflation(gate_logits, b):
    """p(0) = gate + (1 - gate) e^-b, where b is the negative binomial's own nll at 0. Where both terms are below e^-40
    they come times e^scale, so that their ratio is right however small they are; what they are added to is then 1
    anyway.

    Returns gate e^scale (for gate < 1/2), 1 - gate, e^(scale - b), the same less 1, p(0) e^scale, scale, and
    t = e^-|gate_logits| with 1 / (1 + t).
    """
    scale = at_least(at_most(b, -gate_logits) - 40, 0.0)
    t, _, _ = exponentials(scale - tl.abs(gate_logits))
    inverse = 1 / (t + 1)
    exp, expm1, _ = exponentials(scale - b)
    positive = gate_logits > 0
    gate, rest = tl.where(positive, inverse, t * inverse), tl.where(positive, t * inverse, inverse)
    return gate, rest, exp, expm1, gate + rest * exp, scale, t, inverse


@triton.jit
def zero_inflated_negative_binomial_nll_forward(inputs, row_inputs, eps, params):
    mu, x, log_theta, gate_logits = inputs
    b = _negative_binomial(mu, x, log_theta)
    zero = x == 0
    # where x > 0, the nll is b - ln(1 - gate), and 1 - gate = (1 - t / (1 + t)) e^-max(gate_logits, 0)
    _, rest, _, expm1, p0, scale, t, inverse = _zero_inflation(gate_logits, tl.where(zero, b, 0.0))
    log, _ = log1p_parts(tl.where(zero, rest * expm1, -t * inverse), tl.where(zero, p0, inverse))
    return (tl.where(zero, scale, b + at_least(gate_logits, 0.0)) - log,)


@triton.jit
def zero_inflated_negative_binomial_nll_backward(inputs, row_inputs, eps, params):
    mu, x, log_theta, gate_logits = inputs
    grad_nll = row_inputs[0]
    grad_mu, grad_log_theta, zero_nll = _negative_binomial_gradient(mu, x, log_theta)
    zero = x == 0
    gate, rest, exp, expm1, p0, _, _, _ = _zero_inflation(gate_logits, tl.where(zero, zero_nll, 0.0))
    inverse = 1 / p0
    scale = grad_nll * tl.where(zero, rest * exp * inverse, 1.0)  # the probability that x came from the binomial
    grad_gate = gate * tl.where(zero, rest * expm1 * inverse, 1.0)
    return scale * grad_mu, scale * grad_log_theta, grad_nll * grad_gate


# Binomial


@triton.jit
def binomial_nll_forward(inputs, row_inputs, eps, params):
    """With y = total - x, X = x + 1, Y = y + 1, S = X + Y and delta = logits - ln(X / Y), the nll is

      total ln(Y / S + X / S e^delta) - x delta
      + ln(2 pi X Y (total + 1)^2 / S^3) / 2 + stirling(1/X) + stirling(1/Y) - stirling(1/S).

    x and y are exchanged where y is less, or where the less one has become near certain (e^delta would overflow).
    x = 0 and y = 0 leave total softplus(+-logits).
    """
    logits, x, total = inputs
    y = total - x
    X, Y = x + 1, y + 1
    t, inverse = 1 / (X + Y), 1 / (X * Y)
    high, low = log_parts(X * X * inverse)
    delta = logits - high - low
    x_least = x <= y
    by_x = x_least == (tl.where(x_least, delta, -delta) < 30)
    A, B, a = tl.where(by_x, X, Y), tl.where(by_x, Y, X), tl.where(by_x, x, y)
    delta = tl.where(by_x, delta, -delta)

    none = x == 0
    edge = none | (y == 0)
    exp, expm1, excess = exponentials(tl.where(edge, -tl.abs(logits), delta))
    u, ratio = tl.where(edge, exp, A * expm1 * t), tl.where(edge, exp + 1, (B + A * exp) * t)
    spread, spread_excess = log1p_parts(u, ratio)
    # near the mean total u - a delta is written out, and no first order is left to cancel
    linear = (total - (a + a)) * t * delta + total * (A * t) * excess
    logs = tl.where(tl.abs(delta) < 1, linear - total * spread_excess, total * spread - a * delta)

    choose = 0.5 * log_normal((X * t) * (Y * t) * ((total + 1) * t * (total + 1)) * _TWO_PI)
    choose += stirling(Y * inverse) + stirling(X * inverse) - stirling(t)
    certain = product(total, at_least(tl.where(none, logits, -logits), 0.0) + spread)
    nll = tl.where(edge, certain, logs + choose)
    return (tl.where((x < 0) | (y < 0), INF, nll),)


@triton.jit
def binomial_nll_backward(inputs, row_inputs, eps, params):
    logits, x, total = inputs
    sigmoid, complement, _, _ = logistic(logits)
    return (row_inputs[0] * ((total - x) * sigmoid - x * complement),)


# Beta-binomial


@triton.jit
def _beta_shapes(sigmoid, complement, log_concentration):
    """alpha = c sigmoid(logits) and beta = c sigmoid(-logits) for the concentration c, and their sum."""
    lowest: tl.constexpr = 5.148200222412013e-131 if sigmoid.dtype == tl.float64 else 1.7587922e-25  # of `shape`
    c = shape(log_concentration)
    least = c * 0 + lowest  # a literal would pass through float32
    alpha, beta = at_least(c * sigmoid, least), at_least(c * complement, least)
    return alpha, beta, alpha + beta


@triton.jit
def beta_binomial_nll_forward(inputs, row_inputs, eps, params):
    """With y = total - x, X = x + 1, Y = y + 1, S = X + Y, A = alpha + 1, B = beta + 1, P = A + B, M = S + alpha +
    beta, the nll is

      x ln(X M / (S (X + alpha))) + y ln(Y M / (S (Y + beta)))
      + alpha ln(A M / (P (X + alpha))) + beta ln(B M / (P (Y + beta)))
      + ln(2 pi X Y A B M^3 / (S^3 (X + alpha) (Y + beta) P^3)) / 2
      + stirling of 1/X, 1/Y, 1/A, 1/B, 1/M, less that of 1/S, 1/P, 1/(X + alpha), 1/(Y + beta)
      + ln((total + 1) (x + alpha) (y + beta) c (c + 1) / (alpha beta (total + c) (total + c + 1))),

    where the last logarithm's factors below 1 (alpha, beta, c) are taken out, for shapes of any smallness.
    """
    logits, x, total, log_c = inputs
    y = total - x
    sigmoid, complement, softplus, log_sigmoid = logistic(logits)
    alpha, beta, c = _beta_shapes(sigmoid, complement, log_c)
    X, Y, A, B = x + 1, y + 1, alpha + 1, beta + 1
    P, M = A + B, X + Y + c
    inverse_counts, inverse_shapes = 1 / (X * Y), 1 / (A * B)
    t_total, t_sum, t_alpha, t_beta = 1 / (X + Y), 1 / P, 1 / (X + alpha), 1 / (Y + beta)

    off = tl.fma(X, beta, -(Y * alpha))  # shared: its rounding cancels to second order
    off_shapes = off + ((x - y) + (alpha - beta))
    ratio_x, ratio_y = X * t_alpha * (M * t_total), Y * t_beta * (M * t_total)
    log_x, _ = log1p_parts(off * t_total * t_alpha, ratio_x)
    log_y, _ = log1p_parts(-off * t_total * t_beta, ratio_y)
    log_alpha, _ = log1p_parts(-off_shapes * t_sum * t_alpha, A * t_alpha * (M * t_sum))
    log_beta, _ = log1p_parts(off_shapes * t_sum * t_beta, B * t_beta * (M * t_sum))
    nll = x * log_x + y * log_y + alpha * log_alpha + beta * log_beta

    nll += stirling(Y * inverse_counts) + stirling(X * inverse_counts) - stirling(t_total)
    nll += stirling(B * inverse_shapes) + stirling(A * inverse_shapes) - stirling(t_sum)
    nll += stirling(1 / M) - stirling(t_alpha) - stirling(t_beta)

    take_alpha, take_beta, take_c = (x > 0) & (alpha < 1), (y > 0) & (beta < 1), c < 1
    factor = (total + 1) * ((c + 1) / (total + c + 1))
    factor *= tl.where(take_c, 1.0, c) / (total + c)
    factor *= tl.where(x == 0, 1.0, (x + alpha) / tl.where(take_alpha, 1.0, alpha))
    factor *= tl.where(y == 0, 1.0, (y + beta) / tl.where(take_beta, 1.0, beta))
    ratios = ratio_x * ratio_y * (A * t_sum) * (B * t_sum) * (M * t_sum * t_total)
    nll += 0.5 * log_normal(ratios * (factor * factor) * _TWO_PI)
    times = tl.where(take_alpha, 1.0, 0.0) + tl.where(take_beta, 1.0, 0.0) - tl.where(take_c, 1.0, 0.0)
    times = times.to(nll.dtype)
    nll -= product(times, log_c) + tl.where(take_alpha, log_sigmoid, 0.0) - tl.where(take_beta, softplus, 0.0)

    nll = tl.where(total == 0, 0.0, nll)
    return (tl.where((x < 0) | (y < 0), INF, nll),)


@triton.jit
def beta_binomial_nll_backward(inputs, row_inputs, eps, params):
    """With D = x beta - y alpha, u = -D / (c (x + alpha)) and v = D / (c (y + beta)), and h = digamma_difference:

    d/dlog_concentration = alpha ln(1 + u) + beta ln(1 + v) - h(x, alpha) - h(y, beta) + h(total, c), and
    d/dlogits = c p (1 - p) (ln(1 + u) - ln(1 + v)) + p h(y, beta) - (1 - p) h(x, alpha), p = sigmoid(logits).
    """
    logits, x, total, log_c = inputs
    y = total - x
    sigmoid, complement, _, _ = logistic(logits)
    alpha, beta, c = _beta_shapes(sigmoid, complement, log_c)
    inverse_x, inverse_y, inverse_c = 1 / (x + alpha), 1 / (y + beta), 1 / c
    off, grown = tl.fma(x, beta, -(y * alpha)) * inverse_c, (total + c) * inverse_c
    u, v = -off * inverse_x, off * inverse_y
    log_u, excess_u = log1p_parts(u, alpha * inverse_x * grown)
    log_v, excess_v = log1p_parts(v, beta * inverse_y * grown)
    # near 0 what alpha u + beta v leaves is written out, and no first order is left to cancel
    near = (tl.abs(u) < 0.25) & (tl.abs(v) < 0.25)
    second_order = (off * inverse_x) * (off * inverse_y) * c - (alpha * excess_u + beta * excess_v)
    ratios = tl.where(near, second_order, alpha * log_u + beta * log_v)
    x_part, y_part = digamma_difference(x, alpha), digamma_difference(y, beta)
    part = digamma_difference(total, c) - (x_part + y_part)
    grad_logits = alpha * complement * (log_u - log_v) + (sigmoid * y_part - complement * x_part)
    return row_inputs[0] * grad_logits, row_inputs[0] * (ratios + part)
