"""Categorical likelihood from logits."""

from __future__ import annotations

import torch


def categorical_nll(logits, x):
    """-log p(x | logits) = log sum_c exp(logits_c) - logits_x, for logits [C, *] and class numbers x [*].

    An x that is no class gives NaN, and no gradient.
    """
    index = x.long()
    valid = (index >= 0) & (index < logits.shape[0])
    chosen = logits.gather(0, torch.where(valid, index, 0).unsqueeze(0)).squeeze(0)
    return torch.where(valid, torch.logsumexp(logits, 0) - chosen, torch.nan)
