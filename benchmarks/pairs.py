"""Contenders of the terms of pairs, forward and backward: total correlation, VampPrior, maximum mean discrepancy."""

from __future__ import annotations

import functools
import math

import torch

import vaefast
from benchmarks.measure import Case
from benchmarks.workloads import WORKLOADS

_DATA = 737280  # dSprites
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

# --- what users write ---


def log_normal(x, mu, logvar):
    return -0.5 * (math.log(2 * math.pi) + logvar + torch.pow(x - mu, 2) / logvar.exp())


def total_correlation(z, mu, logvar):
    """pythae's and the authors' loss terms with minibatch-weighted sampling, per sample."""
    log_q_x = log_normal(z, mu, logvar).sum(1)
    log_p = log_normal(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
    pairs = log_normal(z.unsqueeze(1), mu.unsqueeze(0), logvar.unsqueeze(0))  # [B, B, D]
    constant = math.log(len(z) * _DATA)
    log_q = torch.logsumexp(pairs.sum(2), 1) - constant
    log_product = (torch.logsumexp(pairs, 1) - constant).sum(1)
    return log_q_x - log_q, log_q - log_product, log_product - log_p


def vamp_prior(z, mu, logvar):
    """pythae, VampPrior's log p(z)."""
    pairs = log_normal(z.unsqueeze(1), mu.unsqueeze(0), logvar.unsqueeze(0)).sum(2)
    return (torch.logsumexp(pairs - math.log(len(mu)), 1),)


def wae_mmd(z, prior):
    """pythae, WAE-MMD's loss term, unbiased; the distances once a kernel, where pythae has them once a scale."""
    n = len(z)

    def kernel(x, y):
        q = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(2)  # from [B, B, D]
        return sum(2 * x.shape[1] * s / (2 * x.shape[1] * s + q) for s in _SCALES)

    zz, pp, zp = kernel(z, z), kernel(prior, prior), kernel(z, prior)
    off = n * (n - 1)
    return ((zz - zz.diag().diag()).sum() / off + (pp - pp.diag().diag()).sum() / off - 2 * zp.mean(),)


# --- with vaefast ---


def fused_total_correlation(z, mu, logvar):
    return tuple(vaefast.total_correlation(z, mu, logvar, _DATA))


def fused_vamp_prior(z, mu, logvar):
    return (vaefast.mixture_log_prob(z, mu, logvar),)


def fused_wae_mmd(z, prior):
    return (vaefast.mmd(z, prior),)


# --- the rows of the table ---


def _normals(shape, generator):
    return (torch.randn(shape, generator=generator),)


def cases(device: str) -> list[Case]:
    """Work on one AVX-512 thread, in operations on vectors of 16 pairs and dimensions: total correlation 18 forward and
    24 backward, 12 of each an exponential; a mixture 3 and 9, a kernel 2 and 6. B = 1000, D = 10 is 26 M of them.
    """
    tc, vamp, celeba = "total_correlation_forward", WORKLOADS["vamp_mnist"], WORKLOADS["celeba64"]
    latent, components = (vamp["B"], vamp["D"]), (vamp["K"], vamp["D"])
    codes = celeba["B"], celeba["D"]
    dsprites, pythae = ((WORKLOADS[name]["B"], WORKLOADS[name]["D"]) for name in ("btcvae_dsprites", "btcvae_pythae"))
    return [
        Case(
            name=name,
            op=op,
            device=device,
            eager=eager,
            fused=fused,
            shapes=shapes,
            data=data,
            threads=threads,
            targets=dict(zip(("eager", "compile"), targets, strict=True)) if device == "cpu" else {},
            peak_memory=True,
        )
        for name, op, eager, fused, shapes, data, threads, targets in (
            ("btcvae_pythae", tc, total_correlation, fused_total_correlation, (pythae,) * 3, None, 1, (15, 4)),
            ("btcvae_dsprites", tc, total_correlation, fused_total_correlation, (dsprites,) * 3, None, 2, (20, 5)),
            (
                "vamp_mnist",
                "mixture_log_prob_forward",
                vamp_prior,
                fused_vamp_prior,
                (latent, components, components),
                None,
                1,
                (5, 2),
            ),
            (
                "mmd_celeba64",
                "imq_mmd_backward",
                wae_mmd,
                fused_wae_mmd,
                (codes,),
                functools.partial(_normals, codes),
                1,
                (6, 2),
            ),
        )
    ]
