// The Gaussian latent's densities, and the Gaussian likelihood's. Formulas: vaefast/reference/gaussian.py.
#pragma once
#include "density/density.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

struct StandardNormal : Density<0, 0, 1, 0, true, 0> {
  VAEFAST_MAP { out[0] = eps; }
};

// logvar in [lo, hi]; its gradient is zero outside.
template <class T>
VF_FN T bounded(T logvar, const Scalar<T>* p) {
  return clamp(logvar, p[0], p[1]);
}

template <class T>
VF_FN T inside(T grad, T logvar, const Scalar<T>* p) {
  return select((logvar < p[0]) | (logvar > p[1]), splat<T>(0), grad);  // NaN stays NaN
}

// sigma, and what KL needs of the variance, from one exponential: with h = logvar / 2 and m = e^h - 1,
// e^logvar - 1 = m (2 + m) and e^logvar - 1 - logvar = 2 (e^h - 1 - h) + m^2, without cancellation near 0.
template <class T>
struct Spread {
  T sigma, var_minus_1, excess;
};

template <class T>
VF_FN Spread<T> spread(T logvar) {
  Exp<T> e = exp_parts(logvar * Scalar<T>(0.5));
  return {e.exp, e.expm1 * (e.expm1 + Scalar<T>(2)), e.excess * Scalar<T>(2) + e.expm1 * e.expm1};
}

struct RsampleForward : Density<2, 0, 1, 0, true, 2> {  // (mu, logvar) -> z
  VAEFAST_MAP { out[0] = in[0] + exp_parts(bounded(in[1], p) * Scalar<T>(0.5)).exp * eps; }
};

struct RsampleBackward : Density<2, 0, 1, 0, true, 2> {  // (grad_z, logvar) -> grad_logvar
  VAEFAST_MAP {
    T sigma = exp_parts(bounded(in[1], p) * Scalar<T>(0.5)).exp;
    out[0] = inside(product(in[0], sigma * Scalar<T>(0.5) * eps), in[1], p);
  }
};

struct RsampleKLForward : Density<2, 0, 1, 1, true, 2> {  // (mu, logvar) -> z; kl
  VAEFAST_MAP {
    Spread<T> s = spread(bounded(in[1], p));
    out[0] = in[0] + s.sigma * eps;
    sum[0] = (in[0] * in[0] + s.excess) * Scalar<T>(0.5);
  }
};

struct RsampleKLBackward : Density<3, 1, 2, 0, true, 2> {  // (grad_z, mu, logvar; grad_kl) -> grad_mu, grad_logvar
  VAEFAST_MAP {
    Spread<T> s = spread(bounded(in[2], p));
    // product: an output that nobody used has no gradient, even where the derivative is inf
    out[0] = in[0] + product(row[0], in[1]);
    out[1] = inside((product(in[0], s.sigma * eps) + product(row[0], s.var_minus_1)) * Scalar<T>(0.5), in[2], p);
  }
};

struct KLStandardNormalForward : Density<2, 0, 0, 1, false, 2> {  // (mu, logvar) -> kl
  VAEFAST_MAP { sum[0] = (in[0] * in[0] + spread(bounded(in[1], p)).excess) * Scalar<T>(0.5); }
};

struct KLStandardNormalBackward : Density<2, 1, 2, 0, false, 2> {  // (mu, logvar; grad_kl) -> grad_mu, grad_logvar
  VAEFAST_MAP {
    out[0] = product(row[0], in[0]);
    out[1] = inside(product(row[0], spread(bounded(in[1], p)).var_minus_1 * Scalar<T>(0.5)), in[1], p);
  }
};

// (x / sigma); equal means are at distance 0 however small sigma
template <class T>
VF_FN T standardised(T x, T inverse_sigma) {
  return select(x == splat<T>(0), x, x * inverse_sigma);
}

struct KLNormalForward : Density<4, 0, 0, 1, false, 2> {  // (mu_q, logvar_q, mu_p, logvar_p) -> kl
  VAEFAST_MAP {
    T logvar_p = bounded(in[3], p);
    T distance = standardised(in[0] - in[2], exp_parts(logvar_p * Scalar<T>(-0.5)).exp);
    sum[0] = (distance * distance + exp_parts(bounded(in[1], p) - logvar_p).excess) * Scalar<T>(0.5);
  }
};

struct KLNormalBackward : Density<4, 1, 4, 0, false, 2> {  // (…; grad_kl) -> the gradients of all four
  VAEFAST_MAP {
    T logvar_p = bounded(in[3], p);
    T inverse_sigma = exp_parts(logvar_p * Scalar<T>(-0.5)).exp;
    T distance = standardised(in[0] - in[2], inverse_sigma);
    T ratio_minus_1 = exp_parts(bounded(in[1], p) - logvar_p).expm1;
    out[0] = product(row[0], standardised(distance, inverse_sigma));
    out[1] = inside(product(row[0], ratio_minus_1 * Scalar<T>(0.5)), in[1], p);
    out[2] = -out[0];
    out[3] = inside(product(row[0], (ratio_minus_1 + distance * distance) * Scalar<T>(-0.5)), in[3], p);
  }
};

struct KLNormalWithGradient : WithGradient<KLNormalForward, KLNormalBackward> {
  static constexpr bool heavy = true;
  static constexpr bool later = true;  // a hierarchy has many, and its likelihood comes after them all
};

// Where a square or a distance is inf the density is 0, also at scale 0, whose logarithm would make it NaN.
template <class T>
VF_FN T log_scale_beside(T distance, T log_scale) {
  return select(distance == Scalar<T>(__builtin_inf()), splat<T>(0), log_scale);
}

struct GaussianNLLForward : Density<3, 0, 0, 1, false, 1> {  // (mu, logvar, x) -> nll; p: what x is multiplied by
  VAEFAST_MAP {
    T distance = standardised(in[2] * p[0] - in[0], exp_parts(in[1] * Scalar<T>(-0.5)).exp);
    T square = distance * distance;
    sum[0] = (square + log_scale_beside(square, in[1])) * Scalar<T>(0.5) + Scalar<T>(0.91893853320467274178);
  }
};

struct GaussianNLLBackward : Density<3, 1, 3, 0, false, 1> {  // (mu, logvar, x; grad) -> the gradients of all three
  static constexpr bool data_gradient = true;
  VAEFAST_MAP {
    T inverse_sigma = exp_parts(in[1] * Scalar<T>(-0.5)).exp;
    T distance = standardised(in[2] * p[0] - in[0], inverse_sigma);
    out[0] = product(row[0], -standardised(distance, inverse_sigma));
    out[1] = product(row[0], Scalar<T>(0.5) - distance * distance * Scalar<T>(0.5));
    out[2] = -out[0] * p[0];
  }
};

// (mu, x) -> (x - mu)^2 / variance / 2 + constant; p: what x is multiplied by, log-variance, constant
struct SquaredErrorForward : Density<2, 0, 0, 1, false, 3> {
  VAEFAST_MAP {
    T distance = standardised(in[1] * p[0] - in[0], exp_parts(splat<T>(p[1] * Scalar<T>(-0.5))).exp);
    sum[0] = distance * distance * Scalar<T>(0.5) + p[2];
  }
};

struct SquaredErrorBackward : Density<2, 1, 2, 0, false, 3> {  // (mu, x; grad) -> grad_mu, grad_x
  static constexpr bool data_gradient = true;
  VAEFAST_MAP {
    T inverse_sigma = exp_parts(splat<T>(p[1] * Scalar<T>(-0.5))).exp;
    T distance = standardised(in[1] * p[0] - in[0], inverse_sigma);
    out[0] = product(row[0], -standardised(distance, inverse_sigma));
    out[1] = -out[0] * p[0];
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
