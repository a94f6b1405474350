"""The shapes that people really run, by name. Benchmarks, memory measurements and equivalence tests use these.

A capital letter is a size: B batch, D latent, N data, K components or importance samples, M Monte Carlo samples,
G genes, H, W, C image. Any other key is a tensor's shape (or several shapes). `source` says whose setting it is.
"""

from __future__ import annotations

from typing import NamedTuple


class Workload(NamedTuple):
    name: str
    sizes: dict
    source: str

    def __getitem__(self, size: str):
        return self.sizes[size]


# (resolution, how many latent groups) of VDVAE's CIFAR-10 decoder "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21":
# each unpooling step (m) is a group too
_VDVAE_CIFAR = ((1, 1), (4, 1 + 2), (8, 1 + 5), (16, 1 + 10), (32, 1 + 21))

_ALL = (
    Workload("seed_mlp", {"B": 32, "D": 2, "N": (64, 784)}, "the introductory dense VAE this project starts from"),
    Workload("pyro_mnist", {"B": 128, "D": 50, "N": 784}, "NumPyro VAE example; Bernoulli"),
    Workload(
        "celeba64",
        {"B": 100, "D": 64, "N": 3 * 64 * 64, "x": (100, 3, 64, 64)},
        "pythae, CelebA configurations of VAE, WAE, InfoVAE and VAE-GAN",
    ),
    Workload("btcvae_dsprites", {"B": 2048, "D": 10, "N": 4096}, "beta-tcvae, default"),
    Workload("btcvae_pythae", {"B": 1000, "D": 10}, "pythae, dSprites"),
    Workload(
        "mig_eval",
        {"log_q": (737280, 10, 10), "steps": 1000, "N": 737280, "D": 10, "S": 10_000, "factors": (3, 6, 40, 32, 32)},
        "disentangling-vae, evaluation of dSprites: samples S, values of each factor",
    ),
    Workload("vamp_mnist", {"B": 100, "K": 500, "D": 40}, "pythae, VampPrior, training"),
    Workload("vamp_mnist_eval", {"B": 5000, "K": 500, "D": 40}, "pythae, VampPrior, evaluation"),
    Workload("iwae_mnist", {"B": 20, "K": 50, "D": 50, "N": 784}, "pythae, IWAE"),
    Workload("miwae_celeba", {"B": 64, "M": 3, "K": 5, "N": 3 * 64 * 64, "x": (64, 3, 64, 64)}, "PyTorch-VAE, MIWAE"),
    Workload("dmol_cifar", {"B": 16, "K": 10, "x": (16, 32, 32, 3)}, "VDVAE, CIFAR-10"),
    Workload("dmol_celeba256", {"B": 4, "K": 10, "params": (4, 3, 10, 256, 256)}, "NVAE, CelebA-HQ 256"),
    Workload("dmol_ffhq1024", {"B": 1, "K": 2, "x": (1, 1024, 1024, 3)}, "VDVAE, FFHQ-1024"),
    Workload(
        "hier_kl",
        {"levels": tuple((16, 16, r, r) for r, groups in _VDVAE_CIFAR for _ in range(groups))},
        "VDVAE, CIFAR-10: q and p of each of 43 latent groups",
    ),
    Workload(
        "ldm_kl_f8",
        {"z": (12, 4, 32, 32), "x": (12, 3, 256, 256), "group_norm": (12, 128, 256, 256)},
        "latent-diffusion, kl-f8",
    ),
    Workload(
        "sd_vae_512",
        {"z": (4, 4, 64, 64), "x": (4, 3, 512, 512), "group_norm": (4, 128, 512, 512)},
        "diffusers, train_autoencoderkl",
    ),
    Workload("scvi_hvg", {"B": 128, "G": 2000, "D": 10}, "scvi-tools, SCVI"),
    Workload("scvi_hvg_large", {"B": 1024, "G": 10000, "D": 10}, "scvi-tools, SCVI, upper end"),
    Workload("peakvi", {"B": 128, "N": 33142}, "scvi-tools, PeakVI; Bernoulli"),
    Workload("poissonvi", {"B": 128, "N": 115554}, "scvi-tools tutorials; Poisson"),
    Workload("bandwidth", {"latent": (2**20, 64)}, "2^26 latent elements: distance from the memory limit"),
    # the speed table's own sizes: a small dense latent, a large batch, and one far larger than any cache
    Workload("latent_128x20", {"latent": (128, 20)}, "vaefast's speed table"),
    Workload("latent_4096x64", {"latent": (4096, 64)}, "vaefast's speed table"),
    Workload("latent_2^24", {"latent": (2**18, 64)}, "vaefast's speed table"),
)

WORKLOADS = {w.name: w for w in _ALL}
