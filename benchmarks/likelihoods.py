"""Contenders of the likelihoods, of the whole ELBO and of the importance-weighted bound, forward and backward."""

from __future__ import annotations

import functools
import math

import torch
from torch.nn import functional

import vaefast
from benchmarks.gaussian import rsample_kl
from benchmarks.measure import Case
from benchmarks.workloads import WORKLOADS

# --- what users write ---


def elbo(mu, logvar, logits, x, eps=None):
    """The loss of the usual VAE with a Bernoulli decoder, and z, through which the decoder's gradient comes."""
    z, kl = rsample_kl(mu, logvar, eps)
    nll = functional.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="sum")
    return (nll + kl.sum()) / len(x), z


def peaks(logits, x):
    """scvi-tools, PeakVI's decoder output and reconstruction loss, without its depth and region factors."""
    x = (x > 0).to(logits.dtype)
    return (functional.binary_cross_entropy(torch.sigmoid(logits), x, reduction="none").sum(-1),)


def poisson(log_rate, x):
    """`torch.distributions.Poisson(rate).log_prob(x)`, as scvi-tools' PoissonVI has it."""
    rate = log_rate.exp()
    return ((rate + torch.lgamma(x + 1) - x.xlogy(rate)).sum(-1),)


def negative_binomial(mu, log_theta, x, eps: float = 1e-8):
    """scvi-tools, `log_nb_positive`; one dispersion per gene."""
    theta = log_theta.exp()
    log_theta_mu = torch.log(theta + mu + eps)
    log_p = (
        theta * (torch.log(theta + eps) - log_theta_mu)
        + x * (torch.log(mu + eps) - log_theta_mu)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    return (-log_p.sum(-1),)


def zero_inflated_negative_binomial(mu, log_theta, gate_logits, x, eps: float = 1e-8):
    """scvi-tools, `log_zinb_positive`; one dispersion per gene."""
    theta = log_theta.exp()
    softplus_gate = functional.softplus(-gate_logits)
    log_theta_eps, log_theta_mu = torch.log(theta + eps), torch.log(theta + mu + eps)
    gate_theta = -gate_logits + theta * (log_theta_eps - log_theta_mu)
    of_zero = functional.softplus(gate_theta) - softplus_gate
    of_others = (
        -softplus_gate
        + gate_theta
        + x * (torch.log(mu + eps) - log_theta_mu)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    log_p = torch.mul((x < eps).to(mu.dtype), of_zero) + torch.mul((x > eps).to(mu.dtype), of_others)
    return (-log_p.sum(-1),)


def logistic_mixture(params, x):
    """The loss of PixelCNN++ as VDVAE has it: params [B, 10 K, H, W] of a convolution, turned into channels-last; x
    [B, H, W, 3] in -1…1; nats per image, the mean over the batch."""
    params = params.permute(0, 2, 3, 1)
    samples = params.shape[-1] // 10
    logits, rest = params[..., :samples], params[..., samples:].unflatten(-1, (3, 3 * samples))
    means, log_scales, coefficients = rest.split(samples, -1)
    log_scales = log_scales.clamp(min=-7.0)
    coefficients = torch.tanh(coefficients)
    x = x.unsqueeze(-1).expand(*x.shape, samples)
    red, green, blue = means.unbind(-2)
    green = green + coefficients[..., 0, :] * x[..., 0, :]
    blue = blue + coefficients[..., 1, :] * x[..., 0, :] + coefficients[..., 2, :] * x[..., 1, :]
    centred = x - torch.stack([red, green, blue], -2)
    inverse = torch.exp(-log_scales)
    upper, lower = inverse * (centred + 1.0 / 255.0), inverse * (centred - 1.0 / 255.0)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    lowest, highest = upper - functional.softplus(upper), -functional.softplus(lower)
    middle = inverse * centred
    density = middle - log_scales - 2.0 * functional.softplus(middle) - math.log(127.5)
    inner = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    log_p = torch.where(x < -0.999, lowest, torch.where(x > 0.999, highest, inner))
    log_p = log_p.sum(-2) + torch.log_softmax(logits, -1)
    return (-torch.logsumexp(log_p, -1).sum((1, 2)).mean(),)


def iwae(mu, logvar, logits, x, eps=None):
    """The importance-weighted bound of K samples (Burda et al. 2016), the data repeated as in pythae."""
    samples = logits.shape[1]
    mu, logvar = (t.unsqueeze(1).repeat(1, samples, 1) for t in (mu, logvar))
    eps = torch.randn_like(mu) if eps is None else eps
    z = mu + torch.exp(0.5 * logvar) * eps
    log_q = (-0.5 * (logvar + torch.pow(z - mu, 2) / torch.exp(logvar))).sum(-1)
    log_p = (-0.5 * torch.pow(z, 2)).sum(-1)
    x = x.to(logits.dtype).unsqueeze(1).repeat(1, samples, 1)
    nll = functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    log_w = log_p - log_q - nll
    return -(torch.logsumexp(log_w, 1) - math.log(samples)).mean(), z


# --- with vaefast ---

_elbo = vaefast.nn.ELBOLoss(vaefast.nn.Bernoulli())


def fused_elbo(mu, logvar, logits, x, seed=None):
    z, kl = vaefast.rsample_kl(mu, logvar, seed=seed)
    return _elbo(logits, x, kl).loss, z


def fused_peaks(logits, x):
    return (vaefast.bernoulli_nll(logits, x > 0),)


def fused_poisson(log_rate, x):
    return (vaefast.poisson_nll(log_rate, x),)


def fused_negative_binomial(mu, log_theta, x):
    return (vaefast.negative_binomial_nll(mu, x, log_theta),)


def fused_zero_inflated_negative_binomial(mu, log_theta, gate_logits, x):
    return (vaefast.zero_inflated_negative_binomial_nll(mu, x, log_theta, gate_logits),)


def fused_logistic_mixture(params, x):
    components, expected = params.shape[1] // 10, 1 / len(x)
    nll = vaefast.discretized_logistic_mixture_nll(params, x.movedim(-1, 1), components, expected_grad=expected)
    return (nll.mean(),)


def fused_iwae(mu, logvar, logits, x, seed=None):
    z, log_ratio = vaefast.rsample_log_ratio(mu, logvar, logits.shape[1], seed=seed)
    log_w = log_ratio - vaefast.bernoulli_nll(logits, x.unsqueeze(1), batch_ndim=2)
    return -vaefast.iwae_bound(log_w).mean(), z


# --- the rows of the table ---


def _binary(shape, generator):
    return (torch.bernoulli(torch.full(shape, 0.3), generator=generator),)


def _counts(shape, generator):
    """Counts as sparse as genes': nine of ten below 3."""
    rate = torch.empty(shape).exponential_(generator=generator)
    return (torch.poisson(rate, generator=generator),)


def _pixels(shape, generator):
    return (torch.randint(0, 256, shape, generator=generator) / 127.5 - 1.0,)


def _elbo_case(name: str, device: str, batch: int, latent: int, data: int, **options) -> Case:
    return Case(
        name=f"elbo_{name}",
        op="bernoulli_nll_forward",
        device=device,
        eager=elbo,
        fused=fused_elbo,
        shapes=((batch, latent), (batch, latent), (batch, data)),
        data=functools.partial(_binary, (batch, data)),
        noise=(batch, latent),
        **options,
    )


def _genes(name: str, device: str, zero_inflated: bool, **options) -> Case:
    batch, genes = WORKLOADS[name]["B"], WORKLOADS[name]["G"]
    gate = ((batch, genes),) if zero_inflated else ()
    return Case(
        name=f"{'zinb' if zero_inflated else 'nb'}_{name}",
        op=f"{'zero_inflated_' * zero_inflated}negative_binomial_nll_forward",
        device=device,
        eager=zero_inflated_negative_binomial if zero_inflated else negative_binomial,
        fused=fused_zero_inflated_negative_binomial if zero_inflated else fused_negative_binomial,
        shapes=((batch, genes), (genes,), *gate),
        prepare=lambda mu, *rest: [mu.exp(), *rest],
        data=functools.partial(_counts, (batch, genes)),
        **options,
    )


def cases(device: str) -> list[Case]:
    """The whole ELBO at three sizes, the likelihoods of single cells, and the importance-weighted bound's memory.

    Floors on one AVX-512 thread, forward + backward: Bernoulli 0.8 ns an element, in one pass where the forward writes
    the gradient; sampling and KL 1.5 ns. 128 x 784 is 80 us of arithmetic and as much of calls; 4096 x 3072 moves three
    tensors of 50 MB, 8 ms at a copy's 22 GB/s.
    """
    threads = 1 if device == "cpu" else None
    on_cpu = device == "cpu"

    def targets(eager: float, compiled: float) -> dict[str, float]:
        return {"eager": eager, "compile": compiled} if on_cpu else {"compile": 1.0}

    mnist = WORKLOADS["pyro_mnist"]
    rows = [
        _elbo_case("pyro_mnist", device, mnist["B"], mnist["D"], mnist["N"], threads=threads, targets=targets(3.5, 4)),
        _elbo_case("4096x784", device, 4096, 64, 784, threads=threads, targets=targets(6, 4)),
        _elbo_case("4096x3072", device, 4096, 64, 3072, threads=threads, targets=targets(4, 2)),
        _genes("scvi_hvg", device, False, threads=threads, targets=targets(6, 2)),
        _genes("scvi_hvg", device, True, threads=threads, targets=targets(6, 2)),
    ]
    for name, op, eager, fused in (
        ("poissonvi", "poisson_nll_forward", poisson, fused_poisson),
        ("peakvi", "bernoulli_nll_forward", peaks, fused_peaks),
    ):
        shape = WORKLOADS[name]["B"], WORKLOADS[name]["N"]
        rows.append(
            Case(
                name=name,
                op=op,
                device=device,
                eager=eager,
                fused=fused,
                shapes=(shape,),
                data=functools.partial(_counts, shape),
                threads=threads,
                targets=targets(4, 1.5),
            )
        )
    image, samples = WORKLOADS["dmol_cifar"]["x"], WORKLOADS["dmol_cifar"]["K"]
    rows.append(
        Case(
            name="dmol_cifar",
            op="discretized_logistic_mixture_nll_forward",
            device=device,
            eager=logistic_mixture,
            fused=fused_logistic_mixture,
            shapes=((image[0], 10 * samples, *image[1:3]),),
            data=functools.partial(_pixels, image),
            threads=threads,
            targets=targets(10, 3),
        )
    )
    w = WORKLOADS["iwae_mnist"]
    rows.append(
        Case(
            name="iwae_mnist",
            op="rsample_log_ratio_forward",
            device=device,
            eager=iwae,
            fused=fused_iwae,
            shapes=((w["B"], w["D"]), (w["B"], w["D"]), (w["B"], w["K"], w["N"])),
            data=functools.partial(_binary, (w["B"], w["N"])),
            noise=(w["B"], w["K"], w["D"]),
            threads=threads,
            peak_memory=True,
        )
    )
    return rows
