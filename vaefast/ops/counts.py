"""Likelihoods of counts.

Each is -log p per sample in nats. With one number per gene and one per cell, shapes [G] and [B, 1] broadcast, and no
copy is made. Large counts and large dispersions are where ln Γ cancels: the kernels never compute it, and the float32
gradient keeps its relative accuracy.
"""

from __future__ import annotations

import numbers

import torch

from vaefast.ops._likelihood import Likelihood, parameter
from vaefast.reference import counts as reference

_COUNTS = ("counts, whole numbers from 0 up", lambda x: (x >= 0) & (x == torch.round(x)))
_OF_TOTAL = (
    "counts, whole numbers from 0 to total",
    lambda x, total: (x >= 0) & (x <= total) & (x == torch.round(x)) & (total == torch.round(total)),
)

_poisson_nll = Likelihood(
    "poisson_nll", "log_rate x", terms=reference.poisson_nll, support=_COUNTS, data_gradient=False
)
_negative_binomial_nll = Likelihood(
    "negative_binomial_nll",
    "mu x log_theta",
    terms=reference.negative_binomial_nll,
    support=_COUNTS,
    data_gradient=False,
)
_zero_inflated_negative_binomial_nll = Likelihood(
    "zero_inflated_negative_binomial_nll",
    "mu x log_theta gate_logits",
    terms=reference.zero_inflated_negative_binomial_nll,
    support=_COUNTS,
    data_gradient=False,
)
_binomial_nll = Likelihood(
    "binomial_nll",
    "logits x total",
    terms=reference.binomial_nll,
    support=_OF_TOTAL,
    data="x total",
    data_gradient=False,
)
_beta_binomial_nll = Likelihood(
    "beta_binomial_nll",
    "logits x total log_concentration",
    terms=reference.beta_binomial_nll,
    support=_OF_TOTAL,
    data="x total",
    data_gradient=False,
)


def poisson_nll(log_rate, x, *, weight=None, batch_ndim: int = 1, validate: bool = False) -> torch.Tensor:
    """-log p(x | rate) per sample: sum of rate - x log_rate + ln Γ(x + 1) over the event, in nats.

    Args:
        log_rate: [*batch, *event]; float32, float64, float16 or bfloat16.
        x: counts, of any real type, which broadcast with log_rate.
        weight: a mask or a weight per element, which broadcasts; an element of weight 0 counts nothing, whatever its
            parameters. No gradient flows to it.
        batch_ndim: how many leading dimensions are the batch.
        validate: check x (this waits for the device).

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 log_rate). It is inf for x below
        0. Between whole numbers the formula is continued.

    Gradient: d/dlog_rate = rate - x; d/dx by autograd of the formula.
    """
    return _poisson_nll(log_rate, x, weight=weight, batch_ndim=batch_ndim, validate=validate)


def negative_binomial_nll(
    mu, x, log_theta, *, weight=None, batch_ndim: int = 1, validate: bool = False
) -> torch.Tensor:
    """-log p(x | mu, theta) per sample, of mean mu and variance mu + mu^2 / theta: the sum over the event of

    -x ln(mu / (mu + theta)) - theta ln(theta / (mu + theta)) - ln Γ(x + theta) + ln Γ(theta) + ln Γ(x + 1), in nats.

    Args:
        mu: means from 0 up, [*batch, *event]; float32, float64, float16 or bfloat16.
        x: counts, of any real type, which broadcast with mu.
        log_theta: logarithm of the inverse dispersion: a number, or a tensor that broadcasts, as [G], one per gene. It
            is Poisson's in the limit of inf, and from 43 on (300 in float64) taken there.
        weight, batch_ndim, validate: as in `poisson_nll`.

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 parameters). mu = 0 gives the
        limit: 0 for x = 0, else inf. It is inf for x below 0, NaN for mu below 0. Between whole numbers the formula is
        continued.

    Gradient: d/dmu = (1 - x / mu) theta / (mu + theta), d/dlog_theta = theta (v - ln(1 + v) - (digamma(x + theta) -
    digamma(theta) - ln(1 + x / theta))) with v = (x - mu) / (mu + theta); d/dx by autograd of the formula.

    Source: Lopez et al., 2018, "Deep generative modeling for single-cell transcriptomics", whose implementation adds
    1e-8 inside the logarithms; here they are exact.
    """
    log_theta = parameter(log_theta, mu)
    return _negative_binomial_nll(mu, x, log_theta, weight=weight, batch_ndim=batch_ndim, validate=validate)


def zero_inflated_negative_binomial_nll(
    mu, x, log_theta, gate_logits, *, weight=None, batch_ndim: int = 1, validate: bool = False
) -> torch.Tensor:
    """-log(gate [x = 0] + (1 - gate) NB(x | mu, theta)) per sample, gate = sigmoid(gate_logits), in nats.

    Args:
        mu, x, log_theta: as in `negative_binomial_nll`.
        gate_logits: log-odds of a zero that is none of NB's: a number, or a tensor that broadcasts.
        weight, batch_ndim, validate: as in `poisson_nll`.

    Returns:
        nll of shape [*batch], as in `negative_binomial_nll`. gate_logits of ±1e4 and ±inf give the exact limit.

    Gradient: with w the posterior probability that x came from NB (1 for x > 0), w times NB's for mu and log_theta; for
    gate_logits gate - (1 - w). d/dx by autograd of the formula.

    Source: Lopez et al., 2018, "Deep generative modeling for single-cell transcriptomics".
    """
    tensors = (mu, x, parameter(log_theta, mu), parameter(gate_logits, mu))
    return _zero_inflated_negative_binomial_nll(*tensors, weight=weight, batch_ndim=batch_ndim, validate=validate)


def _total(total, like):
    """A number stands for as many trials everywhere."""
    if isinstance(total, numbers.Real) and isinstance(like, torch.Tensor):
        return torch.tensor(float(total), device=like.device, dtype=torch.float64)
    return total


def binomial_nll(logits, x, total, *, weight=None, batch_ndim: int = 1, validate: bool = False) -> torch.Tensor:
    """-log p(x | total, p) per sample, p = sigmoid(logits): the sum over the event of

    total softplus(logits) - x logits - ln C(total, x), in nats.

    Args:
        logits: [*batch, *event]; float32, float64, float16 or bfloat16.
        x: successes, of any real type, which broadcast with logits.
        total: trials: a number, or a tensor of any real type, which broadcasts.
        weight, batch_ndim, validate: as in `poisson_nll`.

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 logits). It is inf for x outside
        [0, total]. Logits of ±1e4 and ±inf give the exact limit.

    Gradient: d/dlogits = (total - x) p - x (1 - p); d/dx and d/dtotal by autograd of the formula.
    """
    return _binomial_nll(logits, x, _total(total, logits), weight=weight, batch_ndim=batch_ndim, validate=validate)


def beta_binomial_nll(
    logits, x, total, log_concentration, *, weight=None, batch_ndim: int = 1, validate: bool = False
) -> torch.Tensor:
    """-log p(x | total, alpha, beta) per sample: the sum over the event of

    -ln C(total, x) - ln B(x + alpha, total - x + beta) + ln B(alpha, beta), in nats, with alpha = c sigmoid(logits) and
    beta = c sigmoid(-logits): mean probability sigmoid(logits), and the binomial in the limit of large c.

    Args:
        logits: log-odds of the mean, [*batch, *event]; float32, float64, float16 or bfloat16.
        x: successes, of any real type, which broadcast with logits.
        total: trials: a number, or a tensor of any real type, which broadcasts.
        log_concentration: ln c: a number, or a tensor that broadcasts. For alpha and beta themselves pass log_alpha -
            log_beta and logaddexp(log_alpha, log_beta); for a dispersion gamma in (0, 1), c = 1 / gamma - 1.
        weight, batch_ndim, validate: as in `poisson_nll`.

    Returns:
        nll of shape [*batch], summed in and returned as float32 (float64 for float64 parameters). It is inf for x
        outside [0, total].

    Gradient: to logits and log_concentration, whose first orders cancel before they are computed, so that the gradient
    of an almost binomial's concentration is right; d/dx and d/dtotal by autograd of the formula.
    """
    tensors = (logits, x, _total(total, logits), parameter(log_concentration, logits))
    return _beta_binomial_nll(*tensors, weight=weight, batch_ndim=batch_ndim, validate=validate)
