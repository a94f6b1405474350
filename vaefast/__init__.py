"""vaefast: fused kernels, modules and models for variational autoencoders in PyTorch."""

import importlib

from vaefast._backends import BackendError, use_backend
from vaefast.info import info  # here, not on demand: importing the module would bind its own name over the function's
from vaefast.ops import (
    ELBO,
    PIWAE,
    TotalCorrelation,
    all_gather,
    bernoulli_nll,
    beta_binomial_nll,
    binomial_nll,
    categorical_nll,
    ciwae_bound,
    continuous_bernoulli_nll,
    dip_moments,
    dip_regulariser,
    discretized_logistic_mixture_nll,
    discretized_logistic_nll,
    draw_seed,
    elbo_loss,
    gaussian_nll,
    iwae_bound,
    kl_by_dimension,
    kl_normal,
    kl_standard_normal,
    laplace_nll,
    miwae_bound,
    mixture_log_prob,
    mmd,
    negative_binomial_nll,
    optimal_sigma_nll,
    piwae_bounds,
    poisson_nll,
    rsample,
    rsample_kl,
    rsample_kl_moments,
    rsample_log_ratio,
    sliced_wasserstein,
    standard_normal,
    total_correlation,
    zero_inflated_negative_binomial_nll,
)
from vaefast.patch import patch  # as for info

__version__ = "0.1.0"

# imported when first used, so that `import vaefast` brings the ops alone
_LAZY = ("data", "distributions", "metrics", "models", "nn", "objectives", "sampling", "training")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"vaefast.{name}")
    raise AttributeError(f"module 'vaefast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "ELBO",
    "PIWAE",
    "BackendError",
    "TotalCorrelation",
    "all_gather",
    "bernoulli_nll",
    "beta_binomial_nll",
    "binomial_nll",
    "categorical_nll",
    "ciwae_bound",
    "continuous_bernoulli_nll",
    "dip_moments",
    "dip_regulariser",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_nll",
    "draw_seed",
    "elbo_loss",
    "gaussian_nll",
    "info",
    "iwae_bound",
    "kl_by_dimension",
    "kl_normal",
    "kl_standard_normal",
    "laplace_nll",
    "miwae_bound",
    "mixture_log_prob",
    "mmd",
    "negative_binomial_nll",
    "optimal_sigma_nll",
    "patch",
    "piwae_bounds",
    "poisson_nll",
    "rsample",
    "rsample_kl",
    "rsample_kl_moments",
    "rsample_log_ratio",
    "sliced_wasserstein",
    "standard_normal",
    "total_correlation",
    "use_backend",
    "zero_inflated_negative_binomial_nll",
]
