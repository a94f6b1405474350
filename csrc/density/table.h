// The densities by the names that ops call them by. Every compiled backend expands this table.
#pragma once
#include "density/bernoulli.h"
#include "density/counts.h"
#include "density/functions.h"
#include "density/gaussian.h"

#define VAEFAST_DENSITIES(X)                                                                 \
  X("exponentials", Exponentials)                                                            \
  X("logarithms", Logarithms)                                                                \
  X("logistics", Logistics)                                                                  \
  X("stirlings", Stirlings)                                                                  \
  X("standard_normal", StandardNormal)                                                       \
  X("rsample_forward", RsampleForward)                                                       \
  X("rsample_backward", RsampleBackward)                                                     \
  X("rsample_kl_forward", RsampleKLForward)                                                  \
  X("rsample_kl_backward", RsampleKLBackward)                                                \
  X("kl_standard_normal_forward", KLStandardNormalForward)                                   \
  X("kl_standard_normal_backward", KLStandardNormalBackward)                                 \
  X("kl_normal_forward", KLNormalForward)                                                    \
  X("kl_normal_backward", KLNormalBackward)                                                  \
  X("bernoulli_nll_forward", BernoulliNLLForward)                                            \
  X("bernoulli_nll_backward", BernoulliNLLBackward)                                          \
  X("poisson_nll_forward", PoissonNLLForward)                                                \
  X("poisson_nll_backward", PoissonNLLBackward)                                              \
  X("negative_binomial_nll_forward", NegativeBinomialNLLForward)                             \
  X("negative_binomial_nll_backward", NegativeBinomialNLLBackward)                           \
  X("zero_inflated_negative_binomial_nll_forward", ZeroInflatedNegativeBinomialNLLForward)   \
  X("zero_inflated_negative_binomial_nll_backward", ZeroInflatedNegativeBinomialNLLBackward) \
  X("binomial_nll_forward", BinomialNLLForward)                                              \
  X("binomial_nll_backward", BinomialNLLBackward)                                            \
  X("beta_binomial_nll_forward", BetaBinomialNLLForward)                                     \
  X("beta_binomial_nll_backward", BetaBinomialNLLBackward)
