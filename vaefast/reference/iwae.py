"""Importance-weighted latents, in plain PyTorch."""

from __future__ import annotations

import torch

from vaefast.reference.gaussian import _bounded, _inside, _per_element, _product, _row_sum, _wide


def rsample_log_ratio(mu, logvar, eps, batch_ndim, lo, hi, path):
    """z = mu + sigma eps and log p(z) - log q(z | x) = sum (eps^2 + logvar - z^2) / 2, p = N(0, 1).

    path: 1 stops the gradient of q's own parameters, so that it flows through z alone (Roeder et al. 2017).
    """
    mu_, logvar_, eps = _wide(mu, logvar, eps)
    logvar_ = _bounded(logvar_, lo, hi)
    z = mu_ + torch.exp(0.5 * logvar_) * eps
    if path:
        logvar_ = logvar_.detach()
        eps = eps + (z - z.detach()) * torch.exp(-0.5 * logvar_)  # (z - mu) / sigma of the stopped mu and sigma
    return z.to(mu.dtype), _row_sum(0.5 * (eps * eps + logvar_ - z * z), batch_ndim)


def rsample_log_ratio_backward(grad_z, grad_log_ratio, mu, logvar, eps, batch_ndim, lo, hi, path):
    """With g = grad_z + grad_log_ratio dr/dz, where dr/dz = -z, or eps / sigma - z through z alone:
    grad_mu = g, grad_logvar = (g sigma eps + grad_log_ratio) / 2, without the last term through z alone."""
    grad_z_, mu_, logvar_, eps = _wide(grad_z, mu, logvar, eps)
    bounded = _bounded(logvar_, lo, hi)
    grad_ratio = _per_element(grad_log_ratio, mu)
    spread = torch.exp(0.5 * bounded) * eps
    grad = grad_z_ - _product(grad_ratio, mu_ + spread)
    if path:
        grad = grad + _product(grad_ratio, torch.exp(-0.5 * bounded) * eps)
    grad_logvar = 0.5 * (_product(grad, spread) + (0 if path else grad_ratio))
    return grad.to(mu.dtype), _inside(grad_logvar, logvar_, lo, hi).to(logvar.dtype)
