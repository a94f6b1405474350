// Bernoulli likelihood from logits. Formulas: vaefast/reference/bernoulli.py.
#pragma once
#include "density/density.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

struct BernoulliNLLForward : Density<2, 0, 0, 1, false, 1> {  // (logits, x) -> nll; p: what x is multiplied by
  static constexpr bool log1p = true;
  VAEFAST_MAP {
    T x = in[1] * p[0];
    sum[0] = product(select(in[0] > Scalar<T>(0), splat<T>(1), splat<T>(0)) - x, in[0]);
    sum[1] = exp_only(minus_absolute(in[0]));
  }
};

struct BernoulliNLLBackward : Density<2, 1, 2, 0, false, 1> {  // (logits, x; grad) -> grad_logits, grad_x
  static constexpr bool data_gradient = true;
  VAEFAST_MAP {
    T t = exp_only(minus_absolute(in[0]));
    T inverse = Scalar<T>(1) / (t + Scalar<T>(1));
    T sigmoid = select(in[0] > Scalar<T>(0), inverse, t * inverse);
    out[0] = product(row[0], sigmoid - in[1] * p[0]);
    out[1] = product(row[0], in[0] * -p[0]);
  }
};

struct BernoulliNLLWithGradient : WithGradient<BernoulliNLLForward, BernoulliNLLBackward> {};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
