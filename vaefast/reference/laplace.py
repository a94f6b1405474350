"""Laplace likelihood."""

from __future__ import annotations

import math

import torch

from vaefast.reference.gaussian import standardised


def laplace_nll(mu, log_scale, x, scale):
    """Elementwise -log p(x | mu, b) = |x - mu| / b + log(2 b), b = exp(log_scale) (x is multiplied by `scale` first).

    A density of 0 costs inf, also at b = 0.
    """
    distance = standardised(x.to(mu.dtype) * scale - mu, log_scale).abs()
    return distance + torch.where(distance == math.inf, 0, log_scale) + math.log(2)
