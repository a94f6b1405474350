// Importance-weighted latents. Formulas: vaefast/reference/iwae.py.
#pragma once
#include "density/gaussian.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

struct RsampleLogRatioForward : Density<2, 0, 1, 1, true, 3> {  // (mu, logvar) -> z; log p(z) - log q(z)
  VAEFAST_MAP {
    T logvar = bounded(in[1], p);
    T z = in[0] + exp_parts(logvar * Scalar<T>(0.5)).exp * eps;
    out[0] = z;
    sum[0] = (eps * eps + logvar - z * z) * Scalar<T>(0.5);
  }
};

// (grad_z, mu, logvar; grad_log_ratio) -> grad_mu, grad_logvar; p[2]: 1 for the gradient through z alone
struct RsampleLogRatioBackward : Density<3, 1, 2, 0, true, 3> {
  VAEFAST_MAP {
    T logvar = bounded(in[2], p);
    T spread = exp_parts(logvar * Scalar<T>(0.5)).exp * eps;
    T through_q = product(row[0] * p[2], exp_parts(logvar * Scalar<T>(-0.5)).exp * eps);
    T grad = in[0] - product(row[0], in[1] + spread) + through_q;
    out[0] = grad;
    out[1] = inside((product(grad, spread) + row[0] * (Scalar<T>(1) - p[2])) * Scalar<T>(0.5), in[2], p);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
