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
    with_gradient=True,
)


def bernoulli_nll(
    logits,
    x,
    *,
    weight=None,
    batch_ndim: int = 1,
    validate: bool = False,
    expected_grad: float | None = None,
) -> torch.Tensor:
    """-log p(x | logits) per sample: sum of softplus(logits) - x logits over the event, in nats.

    Args:
        logits: [*batch, *event]; float32, float64, float16 or bfloat16.
        x: what broadcasts with logits: in [0, 1] (soft targets too), or uint8, whose 0…255 stand for 0…1; booleans
            and integers count as they are.
        weight: a mask or a weight per element, which broadcasts; an element of weight 0 counts nothing, whatever its
            logits. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).
        expected_grad: the gradient per sample that the backward pass will bring, 1 / B where the mean over the batch
            is minimised. The gradient of logits is then written in the forward pass, which saves a pass on CPUs. A
            hint: any other gradient gives the right result too, at the price of having written one in vain, and it is
            memory that is kept until then. Tensors of less than 32,768 elements take no notice.

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 logits). Logits of ±1e4 and ±inf
        give the exact limit.

    Gradient: d/dlogits = sigmoid(logits) - x, d/dx = -logits.
    """
    return _bernoulli_nll(
        logits,
        x,
        weight=weight,
        batch_ndim=batch_ndim,
        params=(unit_scale(x),),
        validate=validate,
        expected_grad=expected_grad,
    )
