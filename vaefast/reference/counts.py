"""Likelihoods of counts: Poisson, negative binomial, zero-inflated negative binomial, binomial, beta-binomial.

They are computed in float64 whatever the inputs: a log-density is a small difference of large terms. What remains is
the difference of two ln Γ, which cancels even in float64 (`_log_rising`).
"""

from __future__ import annotations

import functools
import math

import torch
from torch.nn.functional import logsigmoid

# 1 / (12 z) - 1 / (360 z^3) + …: B_2k / (2k (2k - 1)), whose next term is 1e-16 at z = 8
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)


def _in_float64(terms):
    @functools.wraps(terms)
    def wrapped(*tensors):
        dtype = tensors[0].dtype
        return terms(*[t.double() for t in tensors]).to(dtype)

    return wrapped


def _stirling(z):
    """ln Γ(z) - (z - 1/2) ln z + z - ln(2 pi) / 2 for z > 0."""
    small = z < 8
    near, far = torch.where(small, z, 1), torch.where(small, 8, z)
    s = 1 / far.square()
    series = functools.reduce(lambda total, term: total * s + term, reversed(_STIRLING)) / far
    return torch.where(
        small, torch.lgamma(near) - (near - 0.5) * near.log() + near - 0.5 * math.log(2 * math.pi), series
    )


def _log_rising(log_a, x):
    """ln Γ(a + x) - ln Γ(a) with a = e^log_a, for x >= 0: 0 at x = 0; past a = e^±300 the limit."""
    a = log_a.clamp(-300, 300).exp()
    logs = x * torch.where(x == 0, 1, a + x).log() + (a - 0.5) * torch.log1p(x / a) - x
    limit = torch.where(x > 0, (log_a + 300).clamp(max=0), 0)
    return torch.where(x == 0, 0, logs + _stirling(a + x) - _stirling(a)) + limit


def _times(x, y):
    """x y, and 0 where x is 0, whatever y is."""
    return torch.where(x == 0, 0, x * torch.where(x == 0, 0, y))


def _within(x, terms):
    """A count below 0 has probability 0."""
    return torch.where(x < 0, math.inf, terms)


@_in_float64
def poisson_nll(log_rate, x):
    """Elementwise -log p(x | rate) = rate - x log_rate + ln Γ(x + 1)."""
    return _within(x, log_rate.exp() - _times(x, log_rate) + torch.lgamma(x + 1))


def _negative_binomial(mu, x, log_theta):
    bounded = log_theta.clamp(-300, 300)
    theta = bounded.exp()
    log_odds = torch.where(x == 0, 1, mu).log() - bounded  # the sigmoid of which is mu / (mu + theta)
    nll = theta * torch.log1p(mu / theta) - x * logsigmoid(log_odds) - _log_rising(log_theta, x) + torch.lgamma(x + 1)
    nll = torch.where((mu >= 0) & (mu < math.inf), nll, torch.where(mu > 0, math.inf, math.nan))
    return _within(x, nll)


@_in_float64
def negative_binomial_nll(mu, x, log_theta):
    """Elementwise -log p(x | mu, theta) of mean mu and variance mu + mu^2 / theta:

    -x ln(mu / (mu + theta)) - theta ln(theta / (mu + theta)) - ln Γ(x + theta) + ln Γ(theta) + ln Γ(x + 1).
    """
    return _negative_binomial(mu, x, log_theta)


@_in_float64
def zero_inflated_negative_binomial_nll(mu, x, log_theta, gate_logits):
    """Elementwise -log of gate [x = 0] + (1 - gate) NB(x | mu, theta), gate = sigmoid(gate_logits).

    At 0, with b = -ln NB(0), it is softplus(-gate_logits) - softplus(-gate_logits - b).
    """
    nll = _negative_binomial(mu, x, log_theta)
    zero = -torch.logaddexp(logsigmoid(gate_logits), logsigmoid(-gate_logits) - nll)
    return torch.where(x == 0, zero, nll - logsigmoid(-gate_logits))


@_in_float64
def binomial_nll(logits, x, total):
    """Elementwise -log p(x | total, p) = -ln C(total, x) - x ln p - (total - x) ln(1 - p), p = sigmoid(logits)."""
    rest = total - x
    choose = torch.lgamma(total + 1) - torch.lgamma(x + 1) - torch.lgamma(rest + 1)
    nll = -_times(x, logsigmoid(logits)) - _times(rest, logsigmoid(-logits)) - choose
    return _within(torch.minimum(x, rest), nll)


@_in_float64
def beta_binomial_nll(logits, x, total, log_concentration):
    """Elementwise -log p(x | total, alpha, beta):

    -ln C(total, x) - ln B(x + alpha, total - x + beta) + ln B(alpha, beta)

    with alpha = c sigmoid(logits), beta = c sigmoid(-logits), c = e^log_concentration.
    """
    rest = total - x
    choose = torch.lgamma(total + 1) - torch.lgamma(x + 1) - torch.lgamma(rest + 1)
    log_alpha, log_beta = log_concentration + logsigmoid(logits), log_concentration + logsigmoid(-logits)
    log_beta_ratio = _log_rising(log_alpha, x) + _log_rising(log_beta, rest) - _log_rising(log_concentration, total)
    return _within(torch.minimum(x, rest), -choose - log_beta_ratio)
