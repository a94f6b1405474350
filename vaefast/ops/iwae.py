"""Importance-weighted bounds, and the path of K samples in which neither data nor moments are repeated."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from vaefast.ops import _checks
from vaefast.ops._define import define_rows, differentiable, transformed
from vaefast.ops.gaussian import _eps, _pair
from vaefast.ops.noise import seed_for
from vaefast.reference import iwae as reference
from vaefast.reference.gaussian import compute_dtype

_NEGLIGIBLE = 40.0  # nats below the largest weight
_PARAMS = ("lo", "hi", "path")
_forward = define_rows(
    "rsample_log_ratio_forward",
    "mu logvar seed",
    like="mu",
    row_outputs=1,
    params=_PARAMS,
    reference=reference.rsample_log_ratio,
)
_backward = define_rows(
    "rsample_log_ratio_backward",
    "grad_z row:grad_log_ratio mu logvar seed",
    like="mu logvar",
    params=_PARAMS,
    reference=reference.rsample_log_ratio_backward,
)
RsampleLogRatio = differentiable("RsampleLogRatio", _forward, _backward, saved=3)


class DoublyReparameterised(torch.autograd.Function):
    """Multiplies what flows back through sample k by its weight w_k.

    A log-mean-exp over K samples brings log_ratio the gradients g w_k, g being the bound's own, and the weights add up
    to 1: so w_k is that gradient over its sum, and no more needs to be known of the bound.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z, log_ratio):
        return z.clone(), log_ratio.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad_z, grad_log_ratio):
        total = grad_log_ratio.sum(-1, keepdim=True)
        weight = torch.where(total == 0, 0, grad_log_ratio / torch.where(total == 0, 1, total))
        per_element = weight.reshape(weight.shape + (1,) * (grad_z.ndim - weight.ndim)).to(grad_z.dtype)
        return grad_z * per_element, grad_log_ratio * weight


def rsample_log_ratio(
    mu, logvar, samples: int | tuple[int, ...], *, estimator: str = "iwae", seed=None, logvar_bounds=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """K samples of q(z | x) = N(mu, exp(logvar)) and their log p(z) - log q(z | x), p(z) = N(0, 1), in one pass:
    z = mu + sigma eps, log_ratio = sum of (eps^2 + logvar - z^2) / 2 over the event.

    mu and logvar are read K times where they lie. The rest of an importance-weighted bound is
    `log_w = log_ratio - bernoulli_nll(decoder(z), x[:, None], batch_ndim=2)`, where x is not repeated either, and
    `iwae_bound(log_w)`.

    Args:
        mu, logvar: [B, *event]; types, seed and logvar_bounds as for `rsample`.
        samples: K, or (M, K).
        estimator: whose gradient flows to mu and logvar:
            "iwae": of the function itself (Burda et al. 2016).
            "stl": through z alone, q's own parameters stopped (Roeder et al. 2017).
            "dreg": through z alone, each sample by its normalised weight once more (Tucker et al. 2019, equation 8).
                For log_w, the sum of log_ratio and what depends on z alone, under a bound that is a log-mean-exp over
                the last dimension of samples.

    Returns:
        (z [B, *samples, *event] in mu's type, log_ratio [B, *samples] in float32 (float64 for float64)).

    Raises:
        TypeError, ValueError: for arguments that do not fit, named in the message.
    """
    mu, logvar, lo, hi = _pair(mu, logvar, 1, logvar_bounds)
    samples = (samples,) if isinstance(samples, int) else samples
    valid = isinstance(samples, tuple) and samples and all(type(k) is int and k > 0 for k in samples)
    if not valid:
        raise ValueError(f"samples must be a positive int or a tuple of them, got {samples!r}")
    if estimator not in ("iwae", "stl", "dreg"):
        raise ValueError(f"estimator must be 'iwae', 'stl' or 'dreg', got {estimator!r}")
    shape = mu.shape[:1] + samples + mu.shape[1:]
    ones = (1,) * len(samples)
    mu, logvar = (t.reshape(t.shape[:1] + ones + t.shape[1:]).expand(shape) for t in (mu, logvar))
    constants = 1 + len(samples), lo, hi, float(estimator != "iwae")
    seed = seed_for(mu, seed)
    if transformed():
        result = reference.rsample_log_ratio(mu, logvar, _eps(mu, seed), *constants)
    else:
        result = RsampleLogRatio.apply(mu, logvar, seed, *constants)
    return DoublyReparameterised.apply(*result) if estimator == "dreg" else result


def iwae_bound(log_w) -> torch.Tensor:
    """log (1/K) sum_k w_k: a lower bound of log p(x), tighter with K (Burda et al. 2016, equation 8).

    A weight below exp(-40) = 4e-18 of the largest counts as 0, in the gradient too: gradients below 1e-38, which a CPU
    counts slowly, took more than half of a training's time.

    Args:
        log_w: [*batch, K], log p(x, z_k) - log q(z_k | x); half types are computed in float32.

    Returns:
        [*batch]: [B] from [B, K]. The bound of M K samples is that of `log_w.flatten(1)`.
    """
    log_w = _log_w(log_w, 1)
    floor = log_w.detach().amax(-1, keepdim=True) - _NEGLIGIBLE
    return torch.logsumexp(torch.where(log_w < floor, -torch.inf, log_w), -1) - math.log(log_w.shape[-1])


def miwae_bound(log_w) -> torch.Tensor:
    """(1/M) sum_m log (1/K) sum_k w_mk (Rainforth et al. 2018, equation 7): [B] from log_w [B, M, K]."""
    return iwae_bound(_log_w(log_w, 2)).mean(-1)


def ciwae_bound(log_w, beta: float) -> torch.Tensor:
    """beta ELBO + (1 - beta) IWAE (ibid., equation 8), beta in [0, 1]: [B] from log_w [B, K]."""
    _checks.number("beta", beta)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be from 0 to 1, got {beta!r}")
    log_w = _log_w(log_w, 1)
    return beta * log_w.mean(-1) + (1 - beta) * iwae_bound(log_w)


class PIWAE(NamedTuple):
    """inference: what trains the encoder, [B]; generative: what trains the decoder, [B]."""

    inference: torch.Tensor
    generative: torch.Tensor


def piwae_bounds(log_w) -> PIWAE:
    """The two targets of the partially importance-weighted autoencoder (ibid., section 4): MIWAE for the encoder, IWAE
    of all M K samples for the decoder, each with its own backward:

        bounds = piwae_bounds(log_w)
        (-bounds.inference.mean()).backward(inputs=[*encoder.parameters()], retain_graph=True)
        (-bounds.generative.mean()).backward(inputs=[*decoder.parameters()])

    Args:
        log_w: [B, M, K].
    """
    log_w = _log_w(log_w, 2)
    return PIWAE(miwae_bound(log_w), iwae_bound(log_w.flatten(-2)))


def _log_w(log_w, samples_ndim: int) -> torch.Tensor:
    _checks.floating("log_w", log_w)
    if log_w.ndim < samples_ndim or 0 in log_w.shape[-samples_ndim:]:
        what = "[*batch, K]" if samples_ndim == 1 else "[*batch, M, K]"
        raise ValueError(f"log_w must have shape {what} with at least one sample, got {tuple(log_w.shape)}")
    return log_w.to(compute_dtype(log_w.dtype))
