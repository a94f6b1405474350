"""Mixture of discretised logistics: the density for the `planes` walk, with the formulas of
vaefast/reference/logistic_mixture.py.

params: those of the discretised logistic (logistic.py), whose densities every component is made of.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.categorical import add_exp, log_sum_exp, no_exp
from vaefast.kernels.density.logistic import discretized_logistic_nll_backward, discretized_logistic_nll_forward
from vaefast.kernels.density.math import exponentials, log, product, tanh
from vaefast.kernels.operands import plane, put


@triton.jit
def _channel(mixture, k, n, x, shift, CHANNEL: tl.constexpr, params):
    """-log p of a channel in component k, whose mean is shifted, and its derivatives by mean and log-scale."""
    first = k + n * (1 + 3 * CHANNEL)
    inputs = plane(mixture, first) + shift, plane(mixture, first + n), x
    (nll,) = discretized_logistic_nll_forward(inputs, (), None, params)
    by_mean, by_log_scale, _ = discretized_logistic_nll_backward(inputs, (tl.full([1, 1], 1, x.dtype),), None, params)
    return nll, by_mean, by_log_scale


@triton.jit
def _coefficient(mixture, k, n, CHANNEL: tl.constexpr):
    """tanh of a coefficient, and 1 - tanh^2, each to its own relative accuracy."""
    coefficient = plane(mixture, k + n * (3 + 3 * CHANNEL))
    e, _, _ = exponentials(tl.abs(coefficient) * -2)
    return tanh(coefficient), e * 4 / ((e + 1) * (e + 1))


@triton.jit
def _component(mixture, k, n, x, values, params):
    """Component k's -log p, what `_channel` says of each channel and `_coefficient` of each coefficient."""
    red = _channel(mixture, k, n, x[0], 0, 0, params)
    if len(x) == 1:
        nll, channels, coefficients = red[0], (red,), ()
    else:
        c0, c1, c2 = _coefficient(mixture, k, n, 0), _coefficient(mixture, k, n, 1), _coefficient(mixture, k, n, 2)
        green = _channel(mixture, k, n, x[1], c0[0] * values[0], 1, params)
        blue = _channel(mixture, k, n, x[2], c1[0] * values[0] + c2[0] * values[1], 2, params)
        nll, channels, coefficients = red[0] + green[0] + blue[0], (red, green, blue), (c0, c1, c2)
    return nll, channels, coefficients


@triton.jit
def _put_gradients(stack, k, n, weight, channels, coefficients, values):
    for c in tl.static_range(len(channels)):
        put(stack, k + n * (1 + 3 * c), product(weight, channels[c][1]))
        put(stack, k + n * (2 + 3 * c), product(weight, channels[c][2]))
    if len(coefficients) > 0:
        put(stack, k + n * 3, product(weight, channels[1][1] * values[0] * coefficients[0][1]))
        put(stack, k + n * 6, product(weight, channels[2][1] * values[0] * coefficients[1][1]))
        put(stack, k + n * 9, product(weight, channels[2][1] * values[1] * coefficients[2][1]))


@triton.jit
def discretized_logistic_mixture_nll(inputs, outputs, row_inputs, params, PLANES: tl.constexpr):
    mixture, pixel = inputs
    slope = params[0] + params[1]
    n: tl.constexpr = PLANES[0] // (10 if PLANES[1] == 3 else 3)
    x = (plane(pixel, 0),)
    if PLANES[1] == 3:
        x = x[0], plane(pixel, 1), plane(pixel, 2)
    values = [tl.fma(level, params[0], params[2]) + level * params[1] for level in x]
    highest, total = no_exp(mixture)
    for k in range(n):
        nll, _, _ = _component(mixture, k, n, x, values, params)
        highest, total = add_exp(highest, total, plane(mixture, k) - nll)
    log_prior, log_joint = log_sum_exp(mixture, n), highest + log(total)
    if len(outputs) > 0:
        by_red, by_green, by_blue = mixture[3], mixture[3], mixture[3]
        for k in range(n):
            nll, channels, coefficients = _component(mixture, k, n, x, values, params)
            logit = plane(mixture, k)
            prior, _, _ = exponentials(logit - log_prior)
            posterior, _, _ = exponentials(logit - nll - log_joint)
            weight = product(row_inputs[0], posterior)
            put(outputs[0], k, product(row_inputs[0], prior - posterior))
            _put_gradients(outputs[0], k, n, weight, channels, coefficients, values)
            by_red -= product(weight, channels[0][1])
            if len(x) == 3:
                green, blue = product(weight, channels[1][1]), product(weight, channels[2][1])
                by_red += product(green, coefficients[0][0]) + product(blue, coefficients[1][0])
                by_green += product(blue, coefficients[2][0]) - green
                by_blue -= blue
        put(outputs[1], 0, by_red * slope)
        if len(x) == 3:
            put(outputs[1], 1, by_green * slope)
            put(outputs[1], 2, by_blue * slope)
    return (log_prior - log_joint,)
