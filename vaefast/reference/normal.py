"""The normal distribution by location and scale, as torch.distributions has it, in plain PyTorch."""

from __future__ import annotations

import torch

from vaefast.reference.gaussian import _excess, _product, _wide


def rsample(loc, scale, eps):
    """z = loc + scale eps."""
    loc_, scale, eps = _wide(loc, scale, eps)
    return (loc_ + scale * eps).to(loc.dtype)


def rsample_backward(grad_z, eps):
    """dz/dscale = eps, times grad_z."""
    grad_z_, eps = _wide(grad_z, eps)
    return (grad_z_ * eps).to(grad_z.dtype)


def _parts(loc_q, scale_q, loc_p, scale_p):
    inverse = 1 / scale_p
    difference = loc_q - loc_p
    # equal locations are at distance 0 however small the scale: 0 * inf would be NaN
    return inverse, scale_q * inverse, torch.where(difference == 0, difference, difference * inverse)


def kl(loc_q, scale_q, loc_p, scale_p):
    """Elementwise KL = (r^2 - 1 - log r^2 + d^2) / 2 with r = scale_q / scale_p, d = (loc_q - loc_p) / scale_p."""
    _, ratio, distance = _parts(*_wide(loc_q, scale_q, loc_p, scale_p))
    return (0.5 * (distance * distance + _excess(2 * torch.log(ratio)))).to(loc_q.dtype)


def kl_backward(grad_kl, loc_q, scale_q, loc_p, scale_p):
    """dKL/dloc_q = d / scale_p = -dKL/dloc_p, dKL/dscale_q = (r - 1 / r) / scale_p,
    dKL/dscale_p = (1 - r^2 - d^2) / scale_p, times grad_kl."""
    grad, *parameters = _wide(grad_kl, loc_q, scale_q, loc_p, scale_p)
    inverse, ratio, distance = _parts(*parameters)
    scaled = grad * inverse
    grad_loc = _product(scaled, distance)
    grad_q, grad_p = _product(scaled, ratio - 1 / ratio), _product(scaled, 1 - ratio * ratio - distance * distance)
    return tuple([g.to(loc_q.dtype) for g in (grad_loc, grad_q, -grad_loc, grad_p)])
