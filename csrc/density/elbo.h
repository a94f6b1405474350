// The reduced loss, and KL by latent dimension. Formulas: vaefast/reference/elbo.py.
#pragma once
#include "density/gaussian.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

struct ELBOForward : Density<2, 0, 0, 1, false, 2> {  // (nll, kl) -> loss; p: beta, what the sum is multiplied by
  VAEFAST_MAP { sum[0] = (in[0] + in[1] * p[0]) * p[1]; }
};

struct ELBOBackward : Density<0, 1, 2, 0, false, 2> {  // (; grad) -> grad_nll, grad_kl
  VAEFAST_MAP {
    out[0] = row[0] * p[1];
    out[1] = out[0] * p[0];
  }
};

struct KLByDimensionForward : Density<2, 0, 1, 1, false, 2> {  // (mu, logvar) -> terms; kl
  VAEFAST_MAP {
    KLStandardNormalForward()(in, row, eps, p, out, sum);
    out[0] = sum[0];
  }
};

struct KLByDimensionBackward
    : Density<3, 1, 2, 0, false, 2> {  // (grad_terms, mu, logvar; grad_kl) -> grad_mu, grad_logvar
  VAEFAST_MAP {
    T grad = in[0] + row[0];
    KLStandardNormalBackward()(in + 1, &grad, eps, p, out, sum);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
