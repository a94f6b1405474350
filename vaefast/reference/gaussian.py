"""The Gaussian: sampling and KL divergences of the latent, with their gradients, and the likelihood, in plain PyTorch.

`eps` is the noise, a tensor of mu's shape; every public function draws it from a seed. Half types are computed in
float32 and rounded once. `logvar` is bounded to [lo, hi], with gradient zero outside.
"""

from __future__ import annotations

import math

import torch

# Past this, `logvar` no longer changes exp(logvar) - 1 - logvar in any dtype; without the bound inf - inf is NaN.
_LINEAR_MAX = 100.0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half types, else the type itself: what values are computed, summed and returned per sample in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.to(compute_dtype(t.dtype)) for t in tensors]


def _bounded(logvar: torch.Tensor, lo: float, hi: float) -> torch.Tensor:
    return logvar if lo == -math.inf and hi == math.inf else logvar.clamp(lo, hi)


def _inside(grad: torch.Tensor, logvar: torch.Tensor, lo: float, hi: float) -> torch.Tensor:
    return grad if lo == -math.inf and hi == math.inf else torch.where((logvar < lo) | (logvar > hi), 0, grad)


def _excess(x: torch.Tensor) -> torch.Tensor:
    """exp(x) - 1 - x; near 0 by its series, since the difference would cancel."""
    near = x.abs() < 0.5
    small, series = torch.where(near, x, 0), 1.0
    for k in range(16, 2, -1):
        series = 1 + series * small / k
    return torch.where(near, 0.5 * small * small * series, torch.expm1(x) - x.clamp(max=_LINEAR_MAX))


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b, and 0 where a is 0 whatever b is: the gradient of an output that nobody used is no gradient."""
    return torch.where(a == 0, 0, a * b)


def _row_sum(values: torch.Tensor, batch_ndim: int) -> torch.Tensor:
    return values.reshape(*values.shape[:batch_ndim], math.prod(values.shape[batch_ndim:])).sum(-1)


def _per_element(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.reshape(rows.shape + (1,) * (like.ndim - rows.ndim))


def rsample(mu, logvar, eps, lo, hi):
    """z = mu + exp(logvar / 2) * eps (Kingma and Welling 2014, section 2.4)."""
    mu_, logvar_, eps = _wide(mu, logvar, eps)
    return (mu_ + torch.exp(0.5 * _bounded(logvar_, lo, hi)) * eps).to(mu.dtype)


def rsample_backward(grad_z, logvar, eps, lo, hi):
    """(dz/dmu = 1, dz/dlogvar = exp(logvar / 2) * eps / 2), times grad_z."""
    grad_z_, logvar_, eps = _wide(grad_z, logvar, eps)
    grad = _product(grad_z_, 0.5 * torch.exp(0.5 * _bounded(logvar_, lo, hi)) * eps)
    return _inside(grad, logvar_, lo, hi).to(logvar.dtype)


def kl_standard_normal(mu, logvar, batch_ndim, lo, hi):
    """KL(N(mu, exp(logvar)) || N(0, 1)) = sum (mu^2 + exp(logvar) - 1 - logvar) / 2 (ibid., appendix B)."""
    mu, logvar = _wide(mu, logvar)
    logvar = _bounded(logvar, lo, hi)
    terms = 0.5 * (mu * mu + _excess(logvar))
    return _row_sum(terms, batch_ndim)


def kl_standard_normal_backward(grad_kl, mu, logvar, batch_ndim, lo, hi):
    """dKL/dmu = mu, dKL/dlogvar = (exp(logvar) - 1) / 2, times grad_kl."""
    mu_, logvar_ = _wide(mu, logvar)
    grad_kl = _per_element(grad_kl, mu)
    grad_logvar = _inside(_product(grad_kl, 0.5 * torch.expm1(_bounded(logvar_, lo, hi))), logvar_, lo, hi)
    return _product(grad_kl, mu_).to(mu.dtype), grad_logvar.to(logvar.dtype)


def rsample_kl(mu, logvar, eps, batch_ndim, lo, hi):
    """`rsample` and `kl_standard_normal` of the same latent."""
    return rsample(mu, logvar, eps, lo, hi), kl_standard_normal(mu, logvar, batch_ndim, lo, hi)


def rsample_kl_backward(grad_z, grad_kl, mu, logvar, eps, batch_ndim, lo, hi):
    """The sum of both gradients, rounded once."""
    grad_z_, mu_, logvar_ = _wide(grad_z, mu, logvar)
    kl_mu, kl_logvar = kl_standard_normal_backward(grad_kl, mu_, logvar_, batch_ndim, lo, hi)
    grad_logvar = rsample_backward(grad_z_, logvar_, eps, lo, hi) + kl_logvar
    return (grad_z_ + kl_mu).to(mu.dtype), grad_logvar.to(logvar.dtype)


def kl_normal(mu_q, logvar_q, mu_p, logvar_p, batch_ndim, lo, hi):
    """KL(q || p) of diagonal Gaussians:
    sum (exp(d) - 1 - d + ((mu_q - mu_p) / sigma_p)^2) / 2 with d = logvar_q - logvar_p."""
    mu_q, logvar_q, mu_p, logvar_p = _wide(mu_q, logvar_q, mu_p, logvar_p)
    logvar_q, logvar_p = _bounded(logvar_q, lo, hi), _bounded(logvar_p, lo, hi)
    difference = logvar_q - logvar_p
    distance = _standardised(mu_q - mu_p, logvar_p)
    terms = 0.5 * (distance * distance + _excess(difference))
    return _row_sum(terms, batch_ndim)


def kl_normal_backward(grad_kl, mu_q, logvar_q, mu_p, logvar_p, batch_ndim, lo, hi):
    """dKL/dmu_q = (mu_q - mu_p) / var_p = -dKL/dmu_p, dKL/dlogvar_q = (exp(d) - 1) / 2,
    dKL/dlogvar_p = (1 - exp(d) - ((mu_q - mu_p) / sigma_p)^2) / 2, times grad_kl."""
    mu_q_, logvar_q_, mu_p_, logvar_p_ = _wide(mu_q, logvar_q, mu_p, logvar_p)
    bounded_q, bounded_p = _bounded(logvar_q_, lo, hi), _bounded(logvar_p_, lo, hi)
    grad_kl = _per_element(grad_kl, mu_q)
    distance = _standardised(mu_q_ - mu_p_, bounded_p)
    excess = torch.expm1(bounded_q - bounded_p)
    grad_mu = _product(grad_kl, _standardised(distance, bounded_p))
    grad_q = _inside(_product(grad_kl, 0.5 * excess), logvar_q_, lo, hi)
    grad_p = _inside(_product(grad_kl, -0.5 * (excess + distance * distance)), logvar_p_, lo, hi)
    return grad_mu.to(mu_q.dtype), grad_q.to(logvar_q.dtype), (-grad_mu).to(mu_p.dtype), grad_p.to(logvar_p.dtype)


def kl_normal_with_gradient(grad_kl, mu_q, logvar_q, mu_p, logvar_p, *rest):
    """The gradients, then the divergence."""
    tensors = mu_q, logvar_q, mu_p, logvar_p
    return *kl_normal_backward(grad_kl, *tensors, *rest), kl_normal(*tensors, *rest)


def _standardised(difference, logvar):
    return standardised(difference, 0.5 * logvar)


def standardised(difference, log_scale):
    """difference * exp(-log_scale), where no difference is none however small the scale, in the gradient too."""
    certain = (difference == 0) & (log_scale < -math.log(torch.finfo(difference.dtype).max))
    return difference * torch.exp(-torch.where(certain, 0, log_scale))


def gaussian_nll(mu, logvar, x, scale):
    """Elementwise -log N(x | mu, exp(logvar)) = ((x - mu)^2 / exp(logvar) + logvar + log(2 pi)) / 2 (x is multiplied
    by `scale` first). A density of 0 costs inf, also at variance 0."""
    distance = standardised(x.to(mu.dtype) * scale - mu, 0.5 * logvar)
    square = distance * distance
    return 0.5 * (square + torch.where(square == math.inf, 0, logvar)) + 0.5 * math.log(2 * math.pi)


def squared_error(mu, x, scale, logvar, constant):
    """Elementwise (x - mu)^2 / exp(logvar) / 2 + constant, where x is multiplied by `scale` first."""
    distance = standardised(x.to(mu.dtype) * scale - mu, torch.full_like(mu, 0.5 * logvar))
    return 0.5 * distance * distance + constant


def optimal_sigma_nll(half_error, count, total, size, log_sigma_min):
    """-log N(x | mu, sigma^2) per sample, from its half squared error and its number of elements (or their weight),
    with sigma = root mean squared error + exp(log_sigma_min), which is log sigma = log_sigma_min + softplus(log(root
    mean squared error) - log_sigma_min). total, size: the same two of all that share one sigma."""
    mean = 2 * total / torch.where(size == 0, 1, size)
    # the root's gradient at 0 is inf; without error there is none
    root = torch.where(mean == 0, 0, torch.sqrt(torch.where(mean == 0, 1, mean)))
    sigma = root + math.exp(log_sigma_min)
    return half_error / (sigma * sigma) + count * (torch.log(sigma) + 0.5 * math.log(2 * math.pi))
