"""Bernoulli likelihood from logits."""

from __future__ import annotations

import torch


def bernoulli_nll(logits, x, scale):
    """Elementwise -log p(x | logits) = softplus(logits) - x logits, for x in [0, 1] (x is multiplied by `scale` first).

    Written as max(logits, 0) - x logits + log(1 + exp(-|logits|)), whose terms do not overflow; a certain outcome that
    came (x = 1 at logits = inf) costs nothing.
    """
    x = x.to(logits.dtype) * scale
    coefficient = torch.where(logits > 0, 1 - x, -x)
    linear = coefficient * torch.where((coefficient == 0) & logits.isinf(), 0, logits)
    return linear + torch.log1p(torch.exp(torch.where(logits > 0, -logits, logits)))  # abs has no gradient at 0
