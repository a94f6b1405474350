// Laplace likelihood. Formulas: vaefast/reference/laplace.py.
#pragma once
#include "density/gaussian.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

struct LaplaceNLLForward : Density<3, 0, 0, 1, false, 1> {  // (mu, log_scale, x) -> nll; p: what x is multiplied by
  VAEFAST_MAP {
    T distance = absolute(standardised(in[2] * p[0] - in[0], exp_parts(-in[1]).exp));
    sum[0] = distance + log_scale_beside(distance, in[1]) + Scalar<T>(0.69314718055994530942);
  }
};

struct LaplaceNLLBackward : Density<3, 1, 3, 0, false, 1> {  // (mu, log_scale, x; grad) -> the gradients of all three
  static constexpr bool data_gradient = true;
  VAEFAST_MAP {
    T inverse_scale = exp_parts(-in[1]).exp, difference = in[2] * p[0] - in[0];
    T zero = splat<T>(0), slope = select(difference < zero, inverse_scale, difference);  // 0 and NaN stay
    out[0] = product(row[0], select(difference > zero, -inverse_scale, slope));
    out[1] = product(row[0], Scalar<T>(1) - absolute(standardised(difference, inverse_scale)));
    out[2] = -out[0] * p[0];
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
