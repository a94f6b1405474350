"""Categorical likelihood from logits: one of several classes at each position."""

from __future__ import annotations

import torch

from vaefast.ops import _checks
from vaefast.ops._likelihood import Likelihood
from vaefast.reference import categorical as reference

_categorical_nll = Likelihood(
    "categorical_nll",
    "logits x",
    terms=reference.categorical_nll,
    support=("a class, from 0", lambda x: x >= 0),
    data_gradient=False,
    with_gradient=True,
    planes="logits",
)


def categorical_nll(
    logits, x, *, weight=None, batch_ndim: int = 1, validate: bool = False, expected_grad: float | None = None
) -> torch.Tensor:
    """-log p(x | logits) per sample: logsumexp over the classes of logits, less that of x, summed over the event.

    Args:
        logits: [*batch, C, *event], the classes in the first dimension after the batch as in
            `torch.nn.functional.cross_entropy`; float32, float64, float16 or bfloat16.
        x: the class of each element, what broadcasts with [*batch, *event]: uint8, int32, int64 or bool, 0…C - 1. Any
            other gives NaN, and no gradient.
        weight: a mask or a weight per element, which broadcasts with [*batch, *event]; an element of weight 0 counts
            nothing, whatever its logits and its class. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).
        expected_grad: the gradient per sample that the backward pass will bring, as for `bernoulli_nll`.

    Returns:
        nll of shape [*batch], in nats, summed in and returned as float32 (float64 for float64 logits). A class of logit
        -inf has probability 0.

    Raises:
        TypeError, ValueError: for floating x, and shapes that do not broadcast.

    Gradient: d/dlogits = softmax(logits) - onehot(x).
    """
    _checks.data("x", x)
    if x.is_floating_point():
        raise TypeError(f"x must hold classes, as a uint8, int32, int64 or bool tensor, got {x.dtype}")
    if validate:
        _checks.floating("logits", logits)
        _checks.batch_ndim(batch_ndim, logits.ndim - 1)
        if bool((x.long() >= logits.shape[batch_ndim]).any()):  # as bytes, 256 would wrap to 0
            raise _checks.SupportError(
                f"x must be less than the number of classes {logits.shape[batch_ndim]}, got {x.max()}"
            )
    return _categorical_nll(
        logits, x, weight=weight, batch_ndim=batch_ndim, validate=validate, expected_grad=expected_grad
    )
