"""Contenders of the Gaussian latent, forward and backward: as users write it, and with vaefast.

The gradient reaches the inputs through z and through the KL, from fixed upstream gradients.
"""

from __future__ import annotations

import math

import torch

import vaefast
from benchmarks import measure
from benchmarks.measure import Case
from benchmarks.workloads import WORKLOADS

# --- what users write ---


def rsample_kl(mu, logvar, eps=None):
    """The sampling and KL of the usual dense VAE (Kingma and Welling 2014, appendix B)."""
    eps = torch.randn_like(mu) if eps is None else eps
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=-1)
    return mu + torch.exp(0.5 * logvar) * eps, kl


def rsample_kl_moments(moments, eps=None):
    """The same from an encoder's output taken whole, as in latent-diffusion and diffusers."""
    mean, logvar = torch.chunk(moments, 2, dim=1)
    logvar = torch.clamp(logvar, -30.0, 20.0)
    eps = torch.randn_like(mean) if eps is None else eps
    kl = 0.5 * torch.sum(torch.pow(mean, 2) + torch.exp(logvar) - 1.0 - logvar, dim=[1, 2, 3])
    return mean + torch.exp(0.5 * logvar) * eps, kl


def kl_hierarchy(*tensors):
    """The KL of a hierarchical VAE, the mean over the batch of the sum over its latent groups, as VDVAE adds it up;
    `tensors`: mu_q, logvar_q, mu_p, logvar_p, group by group."""
    kls = []
    for mu_q, logvar_q, mu_p, logvar_p in zip(*[iter(tensors)] * 4, strict=True):
        terms = logvar_p - logvar_q - 1 + (logvar_q.exp() + (mu_q - mu_p) ** 2) / logvar_p.exp()
        kls.append(0.5 * terms.sum(dim=(1, 2, 3)))
    return (sum(kls).mean(),)


# --- with vaefast ---


def fused_rsample_kl(mu, logvar, seed=None):
    return vaefast.rsample_kl(mu, logvar, seed=seed)


def fused_rsample_kl_moments(moments, seed=None):
    return vaefast.rsample_kl_moments(moments, dim=1, seed=seed, logvar_bounds=(-30.0, 20.0))


def fused_kl_hierarchy(*tensors):
    groups = zip(*[iter(tensors)] * 4, strict=True)
    expected = 1 / len(tensors[0])
    return (sum(vaefast.kl_normal(*group, expected_grad=expected) for group in groups).mean(),)


# --- the rows of the table ---

_GPU_SIZES = tuple(2**k for k in range(10, 27, 2))


def _rsample_kl(name: str, device: str, shape: tuple[int, ...], **options) -> Case:
    return Case(
        name=f"rsample_kl_{name}",
        op="rsample_kl_forward",
        device=device,
        eager=rsample_kl,
        fused=fused_rsample_kl,
        shapes=(shape, shape),
        noise=shape,
        peak_memory=True,
        **options,
    )


def _moments(workload: str, device: str, **options) -> Case:
    batch, channels, height, width = WORKLOADS[workload]["z"]
    return Case(
        name=f"rsample_kl_moments_{workload}",
        op="rsample_kl_forward",
        device=device,
        eager=rsample_kl_moments,
        fused=fused_rsample_kl_moments,
        shapes=((batch, 2 * channels, height, width),),
        noise=(batch, channels, height, width),
        peak_memory=True,
        **options,
    )


def _hierarchy(device: str, **options) -> Case:
    levels = WORKLOADS["hier_kl"]["levels"]
    return Case(
        name="hier_kl",
        op="kl_normal_forward",
        device=device,
        eager=kl_hierarchy,
        fused=fused_kl_hierarchy,
        shapes=tuple(shape for shape in levels for _ in range(4)),
        peak_memory=True,
        **options,
    )


def cases(device: str) -> list[Case]:
    """CPU: the speed table, and the latents of three real models. GPU: those, and sizes 2^10 to 2^26 in two types.

    Floors, forward + backward, fp32, at 0.6 ns a normal and as much for exp (AVX-512, one thread):
    - 128x20: one Function, two ops, one seed: 50 to 70 us of calls; 2 x 2,560 elements x 1.2 ns are 6 us.
    - 4096x64: 2 x 262,144 elements x 1.2 ns = 0.6 ms; its 8 MB stay in cache.
    - 2^24: 32 bytes an element (12 forward, 20 backward) = 537 MB, half of it fresh pages: 25 ms at a copy's 22 GB/s;
      arithmetic 20 ms on each of two threads, which overlaps. Eager moves 208 bytes an element, torch.compile 40 to 48.
    - hier_kl: 6.6e6 elements x 32 bytes = 211 MB, 10 ms at 22 GB/s, where the forward writes the gradients, as it
      does for the 33 largest of 43 groups, 98 % of all; two passes, which torch.compile takes, are 317 MB. 43 Functions
      are 1 to 2 ms more, which its one graph does not pay.
    - on a GPU: the same bytes at the speed of a device copy; below about 2^20 elements the launches.
    """
    threads = 1 if device == "cpu" else None
    real = [
        _rsample_kl(name, device, (WORKLOADS[name]["B"], WORKLOADS[name]["D"]), threads=threads)
        for name in ("pyro_mnist", "celeba64")
    ]
    real.append(_moments("sd_vae_512", device, threads=threads))
    if device == "cuda":
        never_slower = {"eager": 1.0, "compile": 1.0}
        sweep = [
            _rsample_kl(f"2^{int(math.log2(n))}", device, (n // 64, 64), dtype=dtype, targets=never_slower)
            for dtype in (torch.float32, torch.bfloat16)
            for n in _GPU_SIZES
        ]
        return [*sweep, *real, _hierarchy(device, targets=never_slower)]
    table = [
        _rsample_kl(name, device, WORKLOADS[f"latent_{name}"]["latent"], threads=threads, targets=targets)
        for name, threads, targets in (
            ("128x20", 1, {"eager": 2.5, "compile": 4.0}),
            ("4096x64", 1, {"eager": 5.0, "compile": 12.0}),
            ("2^24", 2, {"eager": 6.0, "compile": 12.0}),
        )
    ]
    return [*table, _hierarchy(device, threads=1, targets={"eager": 4.0, "compile": 1.5}), *real]


def bandwidth(device: str, dtype: torch.dtype, seconds: float) -> dict:
    """How near to a device copy the ops alone come at 2^26 elements: the fraction of the copy's bandwidth, counting
    three tensors forward (mu, logvar -> z) and five backward (grad_z, mu, logvar -> grad_mu, grad_logvar)."""
    shape = WORKLOADS["bandwidth"]["latent"]
    mu, logvar, grad_z, copied = (0.5 * torch.randn(shape, device=device, dtype=dtype) for _ in range(4))
    grad_kl = torch.randn(shape[0], device=device)
    seed = vaefast.draw_seed(device)
    rest = (seed, 1, -math.inf, math.inf)
    forward, backward = torch.ops.vaefast.rsample_kl_forward.default, torch.ops.vaefast.rsample_kl_backward.default
    contenders = {"copy": measure.Contender(lambda: copied.copy_(mu))}
    tensors = {"copy": 2}
    for backend in measure.fused_backends("rsample_kl_forward", device):
        contenders[f"{backend} forward"] = measure.Contender(lambda: forward(mu, logvar, *rest), backend)
        contenders[f"{backend} backward"] = measure.Contender(
            lambda: backward(grad_z, grad_kl, mu, logvar, *rest), backend
        )
        tensors |= {f"{backend} forward": 3, f"{backend} backward": 5}
    times = measure.interleave(contenders, device, seconds)
    speed = {name: count * mu.nbytes / times[name]["median_s"] for name, count in tensors.items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "elements": mu.numel(),
        "target": 0.9 if dtype == torch.float32 else 0.8,
        "times": times,
        "bytes_per_s": speed,
        "of_copy": {name: value / speed["copy"] for name, value in speed.items() if name != "copy"},
    }
