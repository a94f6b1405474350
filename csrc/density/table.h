// The densities by the names that ops call them by. Every compiled backend expands this table.
#pragma once
#include "density/bernoulli.h"
#include "density/categorical.h"
#include "density/continuous_bernoulli.h"
#include "density/counts.h"
#include "density/elbo.h"
#include "density/functions.h"
#include "density/gaussian.h"
#include "density/iwae.h"
#include "density/laplace.h"
#include "density/logistic.h"
#include "density/logistic_mixture.h"
#include "density/normal.h"

#define VAEFAST_DENSITIES(X)                                                                 \
  X("exponentials", Exponentials)                                                            \
  X("logarithms", Logarithms)                                                                \
  X("logistics", Logistics)                                                                  \
  X("standard_normal", StandardNormal)                                                       \
  X("rsample_forward", RsampleForward)                                                       \
  X("rsample_backward", RsampleBackward)                                                     \
  X("rsample_kl_forward", RsampleKLForward)                                                  \
  X("rsample_kl_backward", RsampleKLBackward)                                                \
  X("kl_standard_normal_forward", KLStandardNormalForward)                                   \
  X("kl_standard_normal_backward", KLStandardNormalBackward)                                 \
  X("kl_normal_forward", KLNormalForward)                                                    \
  X("kl_normal_backward", KLNormalBackward)                                                  \
  X("kl_normal_with_gradient", KLNormalWithGradient)                                         \
  X("elbo_forward", ELBOForward)                                                             \
  X("elbo_backward", ELBOBackward)                                                           \
  X("kl_by_dimension_forward", KLByDimensionForward)                                         \
  X("kl_by_dimension_backward", KLByDimensionBackward)                                       \
  X("rsample_log_ratio_forward", RsampleLogRatioForward)                                     \
  X("rsample_log_ratio_backward", RsampleLogRatioBackward)                                   \
  X("normal_rsample_forward", NormalRsampleForward)                                          \
  X("normal_rsample_backward", NormalRsampleBackward)                                        \
  X("normal_kl_forward", NormalKLForward)                                                    \
  X("normal_kl_backward", NormalKLBackward)                                                  \
  X("bernoulli_nll_forward", BernoulliNLLForward)                                            \
  X("bernoulli_nll_backward", BernoulliNLLBackward)                                          \
  X("bernoulli_nll_with_gradient", BernoulliNLLWithGradient)                                 \
  X("gaussian_nll_forward", GaussianNLLForward)                                              \
  X("gaussian_nll_backward", GaussianNLLBackward)                                            \
  X("squared_error_forward", SquaredErrorForward)                                            \
  X("squared_error_backward", SquaredErrorBackward)                                          \
  X("laplace_nll_forward", LaplaceNLLForward)                                                \
  X("laplace_nll_backward", LaplaceNLLBackward)                                              \
  X("continuous_bernoulli_nll_forward", ContinuousBernoulliNLLForward)                       \
  X("continuous_bernoulli_nll_backward", ContinuousBernoulliNLLBackward)                     \
  X("discretized_logistic_nll_forward", DiscretizedLogisticNLLForward)                       \
  X("discretized_logistic_nll_backward", DiscretizedLogisticNLLBackward)                     \
  X("stirlings", Stirlings)                                                                  \
  X("poisson_nll_forward", PoissonNLLForward)                                                \
  X("poisson_nll_backward", PoissonNLLBackward)                                              \
  X("negative_binomial_nll_forward", NegativeBinomialNLLForward)                             \
  X("negative_binomial_nll_backward", NegativeBinomialNLLBackward)                           \
  X("zero_inflated_negative_binomial_nll_forward", ZeroInflatedNegativeBinomialNLLForward)   \
  X("zero_inflated_negative_binomial_nll_backward", ZeroInflatedNegativeBinomialNLLBackward) \
  X("binomial_nll_forward", BinomialNLLForward)                                              \
  X("binomial_nll_backward", BinomialNLLBackward)                                            \
  X("beta_binomial_nll_forward", BetaBinomialNLLForward)                                     \
  X("beta_binomial_nll_backward", BetaBinomialNLLBackward)                                   \
  X("categorical_nll_forward", CategoricalNLLForward)                                        \
  X("categorical_nll_backward", CategoricalNLLBackward)                                      \
  X("categorical_nll_with_gradient", CategoricalNLLWithGradient)                             \
  X("discretized_logistic_mixture_nll_forward", DiscretizedLogisticMixtureNLLForward)        \
  X("discretized_logistic_mixture_nll_backward", DiscretizedLogisticMixtureNLLBackward)      \
  X("discretized_logistic_mixture_nll_with_gradient", DiscretizedLogisticMixtureNLLWithGradient)
