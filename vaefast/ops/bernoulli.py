"""Bernoulli likelihood from logits, of data in [0, 1] or of bytes."""

from __future__ import annotations

import torch

from vaefast.ops._likelihood import Likelihood, unit_scale
from vaefast.reference import bernoulli as reference

_bernoulli_nll = Likelihood(
    "bernoulli_nll",
    "logits x",
    terms=reference.bernoulli_nll,
    support=("in [0, 1] (or uint8)", lambda x: (x >= 0) & (x <= (255 if x.dtype == torch.uint8 else 1))),
    params=("scale",),
)


def bernoulli_nll(logits, x, *, weight=None, batch_ndim: int = 1, validate: bool = False) -> torch.Tensor:
    """-log p(x | logits) per sample: sum of softplus(logits) - x logits over the event, in nats.

    Args:
        logits: [*batch, *event]; float32, float64, float16 or bfloat16.
        x: what broadcasts with logits: in [0, 1] (soft targets too), or uint8, whose 0…255 stand for 0…1; booleans
            and integers count as they are.
        weight: a mask or a weight per element, which broadcasts; an element of weight 0 counts nothing, whatever its
            logits. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 logits). Logits of ±1e4 and ±inf
        give the exact limit.

    Gradient: d/dlogits = sigmoid(logits) - x, d/dx = -logits.
    """
    return _bernoulli_nll(logits, x, weight=weight, batch_ndim=batch_ndim, params=(unit_scale(x),), validate=validate)
