"""Bernoulli likelihood from logits: densities for the `rows` walk, with the formulas of vaefast/reference/bernoulli.py.

params: (scale,), what x is multiplied by.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vaefast.kernels.density.math import exponentials, log1p_unit, logistic, product


@triton.jit
def bernoulli_nll_forward(inputs, row_inputs, eps, params):
    logits, x = inputs
    x = x * params[0]
    t, _, _ = exponentials(-tl.abs(logits))
    return (product(tl.where(logits > 0, 1 - x, -x), logits) + log1p_unit(t),)


@triton.jit
def bernoulli_nll_backward(inputs, row_inputs, eps, params):
    logits, x = inputs
    grad_nll = row_inputs[0]
    sigmoid, _, _, _ = logistic(logits)
    return grad_nll * (sigmoid - x * params[0]), grad_nll * (logits * -params[0])


@triton.jit
def bernoulli_nll_with_gradient(inputs, row_inputs, eps, params):
    return bernoulli_nll_backward(inputs, row_inputs, eps, params) + bernoulli_nll_forward(
        inputs, row_inputs, eps, params
    )
