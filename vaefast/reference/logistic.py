"""Discretised logistic likelihood (Salimans et al. 2017, PixelCNN++)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

# Past this, the density is flat over a bin in any dtype, and log(1 - exp(-width)) is log(width).
_WIDE = 60.0


def discretized_logistic_nll(mu, log_scale, x, coarse, fine, offset, half_bin, floor):
    """Elementwise -log p, the logistic's mass between x - half_bin and x + half_bin, where the outermost bins, at -1
    and 1, are open to their side, and log_scale is at least `floor`. x is (coarse + fine) x + offset first: x coarse
    and its sum with the offset are exact in float32, so that x - mu is as exact as the data, however narrow the bins.

    With z = (x - mu ± half_bin) / exp(log_scale): log(sigmoid(z+) - sigmoid(z-)) = log sigmoid(z+) + log sigmoid(-z-)
    + log(1 - exp(z- - z+)), of which an open bin lacks the far side's and the last term. No term cancels.
    """
    x = x.to(mu.dtype)
    position = x * coarse + offset
    difference = position - mu + x * fine
    x = position + x * fine
    log_scale = log_scale.clamp(min=floor)
    inverse = torch.exp(-log_scale)
    lowest, highest = x < half_bin - 1, x > 1 - half_bin
    below = torch.where(highest, 0, -logsigmoid((difference + half_bin) * inverse))
    above = torch.where(lowest, 0, -logsigmoid((half_bin - difference) * inverse))
    bounded = log_scale.clamp(max=_WIDE)
    width = (log_scale - bounded) - _log1mexp(2 * half_bin * torch.exp(-bounded))
    return below + above + torch.where(lowest | highest, 0, width)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(-x)) for x > 0, exact at both ends."""
    large = x > 0.7
    small = torch.log(-torch.expm1(-torch.where(large, 1, x)))
    return torch.where(large, torch.log1p(-torch.exp(-torch.where(large, x, 1))), small)
