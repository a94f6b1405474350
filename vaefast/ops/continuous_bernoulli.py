"""Continuous Bernoulli likelihood from logits, of data in [0, 1] or of bytes."""

from __future__ import annotations

import torch

from vaefast.ops._likelihood import Likelihood, unit_scale
from vaefast.reference import continuous_bernoulli as reference

_continuous_bernoulli_nll = Likelihood(
    "continuous_bernoulli_nll",
    "logits x",
    terms=reference.continuous_bernoulli_nll,
    support=("in [0, 1] (or uint8)", lambda x: (x >= 0) & (x <= (255 if x.dtype == torch.uint8 else 1))),
    params=("scale",),
)


def continuous_bernoulli_nll(logits, x, *, weight=None, batch_ndim: int = 1, validate: bool = False) -> torch.Tensor:
    """-log p(x | logits) per sample, p the density on [0, 1] proportional to exp(x logits): the sum of
    log((exp(logits) - 1) / logits) - x logits over the event, in nats (Loaiza-Ganem and Cunningham 2019, "The
    Continuous Bernoulli").

    Args:
        logits: [*batch, *event]; float32, float64, float16 or bfloat16.
        x: what broadcasts with logits, in [0, 1]; bytes (uint8) stand for 0…1.
        weight: a mask or a weight per element, which broadcasts; an element of weight 0 counts nothing, whatever its
            values. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 logits). Exact through
        logits = 0, where the density is uniform, and at logits of ±1e4. Densities are not probabilities: it may be
        negative.

    Gradient: d/dlogits = E[x | logits] - x with E[x | logits] = 1 / (1 - exp(-logits)) - 1 / logits, which is 1/2 at
        0; d/dx = -logits.
    """
    return _continuous_bernoulli_nll(
        logits, x, weight=weight, batch_ndim=batch_ndim, params=(unit_scale(x),), validate=validate
    )
