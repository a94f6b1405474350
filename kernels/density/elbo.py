"""The reduced loss, and KL by latent dimension: densities for the `rows` walk. Formulas: vaefast/reference/elbo.py.

params: of the loss, (beta, what the sum is multiplied by); of the KL, (lo, hi), the bounds of logvar.
"""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 - the interpreter wants it in sight of every kernel

from vaefast.kernels.density.gaussian import kl_standard_normal_backward, kl_standard_normal_forward


@triton.jit
def elbo_forward(inputs, row_inputs, eps, params):
    nll, kl = inputs
    return ((nll + params[0] * kl) * params[1],)


@triton.jit
def elbo_backward(inputs, row_inputs, eps, params):
    grad_nll = row_inputs[0] * params[1]
    return grad_nll, params[0] * grad_nll


@triton.jit
def kl_by_dimension_forward(inputs, row_inputs, eps, params):
    term = kl_standard_normal_forward(inputs, row_inputs, eps, params)[0]
    return term, term


@triton.jit
def kl_by_dimension_backward(inputs, row_inputs, eps, params):
    grad_term, mu, logvar = inputs
    return kl_standard_normal_backward((mu, logvar), (grad_term + row_inputs[0],), eps, params)
