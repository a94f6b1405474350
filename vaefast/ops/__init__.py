"""Public functions; each checks its arguments, draws a seed where it needs one, and applies its autograd.Function."""

from vaefast.ops.aggregates import dip_moments, dip_regulariser, sliced_wasserstein
from vaefast.ops.bernoulli import bernoulli_nll
from vaefast.ops.categorical import categorical_nll
from vaefast.ops.continuous_bernoulli import continuous_bernoulli_nll
from vaefast.ops.counts import (
    beta_binomial_nll,
    binomial_nll,
    negative_binomial_nll,
    poisson_nll,
    zero_inflated_negative_binomial_nll,
)
from vaefast.ops.elbo import ELBO, elbo_loss, kl_by_dimension
from vaefast.ops.gaussian import (
    gaussian_nll,
    kl_normal,
    kl_standard_normal,
    optimal_sigma_nll,
    rsample,
    rsample_kl,
    rsample_kl_moments,
)
from vaefast.ops.iwae import PIWAE, ciwae_bound, iwae_bound, miwae_bound, piwae_bounds, rsample_log_ratio
from vaefast.ops.laplace import laplace_nll
from vaefast.ops.logistic import discretized_logistic_nll
from vaefast.ops.logistic_mixture import discretized_logistic_mixture_nll
from vaefast.ops.noise import draw_seed, standard_normal
from vaefast.ops.pairs import TotalCorrelation, mixture_log_prob, mmd, total_correlation
from vaefast.ops.ranks import all_gather

__all__ = [
    "ELBO",
    "PIWAE",
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
    "piwae_bounds",
    "poisson_nll",
    "rsample",
    "rsample_kl",
    "rsample_kl_moments",
    "rsample_log_ratio",
    "sliced_wasserstein",
    "standard_normal",
    "total_correlation",
    "zero_inflated_negative_binomial_nll",
]
