"""Public functions; each checks its arguments, draws a seed where it needs one, and applies its autograd.Function."""

from vaefast.ops.bernoulli import bernoulli_nll
from vaefast.ops.counts import (
    beta_binomial_nll,
    binomial_nll,
    negative_binomial_nll,
    poisson_nll,
    zero_inflated_negative_binomial_nll,
)
from vaefast.ops.gaussian import kl_normal, kl_standard_normal, rsample, rsample_kl, rsample_kl_moments
from vaefast.ops.noise import draw_seed, standard_normal

__all__ = [
    "bernoulli_nll",
    "beta_binomial_nll",
    "binomial_nll",
    "draw_seed",
    "kl_normal",
    "kl_standard_normal",
    "negative_binomial_nll",
    "poisson_nll",
    "rsample",
    "rsample_kl",
    "rsample_kl_moments",
    "standard_normal",
    "zero_inflated_negative_binomial_nll",
]
