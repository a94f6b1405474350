"""Laplace likelihood."""

from __future__ import annotations

import torch

from vaefast.ops._likelihood import Likelihood, parameter, unit_scale
from vaefast.reference import laplace as reference

_laplace_nll = Likelihood(
    "laplace_nll",
    "mu log_scale x",
    terms=reference.laplace_nll,
    support=("finite", torch.isfinite),
    params=("scale",),
)


def laplace_nll(mu, x, log_scale, *, weight=None, batch_ndim: int = 1, validate: bool = False) -> torch.Tensor:
    """-log p(x | mu, b) per sample, b = exp(log_scale): sum of |x - mu| / b + log(2 b) over the event, in nats.

    Args:
        mu: [*batch, *event]; float32, float64, float16 or bfloat16.
        x: what broadcasts with mu; bytes (uint8) stand for 0…1, other types are taken as they are.
        log_scale: a number, or a tensor that broadcasts (0-d, [B, 1], per element, …).
        weight: a mask or a weight per element, which broadcasts; an element of weight 0 counts nothing, whatever its
            values. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 mu). Densities are not
        probabilities: it may be negative.

    Gradient: d/dmu = sign(mu - x) / b = -d/dx (0 where x is mu), d/dlog_scale = 1 - |x - mu| / b.
    """
    return _laplace_nll(
        mu,
        parameter(log_scale, mu),
        x,
        weight=weight,
        batch_ndim=batch_ndim,
        params=(unit_scale(x),),
        validate=validate,
    )
