// Continuous Bernoulli likelihood from logits. Formulas: vaefast/reference/continuous_bernoulli.py.
#pragma once
#include "density/density.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

// B_2k / (2k)!, from k = 1: the derivative of ln(sinh(x / 2) / (x / 2)) is the sum of these times x^(2k-1)
VF_FN constexpr double sinhc_constant(int i) {
  constexpr double b[] = {1. / 12,
                          -1. / 720,
                          1. / 30240,
                          -1. / 1209600,
                          1. / 47900160,
                          -691. / 1307674368000,
                          1. / 74724249600,
                          -3617. / 10670622842880000,
                          43867. / 5109094217170944000,
                          -174611. / 802857662698291200000.,
                          77683. / 14101100039391805440000.};
  return b[i];
}

// For |x| <= 1, by the square of x: the derivative over x, or, integrated, the logarithm over x^2.
template <bool Integrated, class T>
VF_FN T sinhc_series(T square) {
  using S = Scalar<T>;
  constexpr int terms = sizeof(S) == 4 ? 5 : 11;
  auto constant = [](int i) { return splat<T>(S(sinhc_constant(i) / (Integrated ? 2 * i + 2 : 1))); };
  T p = constant(terms - 1);
  VF_UNROLL
  for (int i = terms - 2; i >= 0; --i) p = Native<T>::multiply_add(p, square, constant(i));
  return p;
}

struct ContinuousBernoulliNLLForward : Density<2, 0, 0, 1, false, 1> {  // (logits, x) -> nll; p: x's factor
  VAEFAST_MAP {
    using S = Scalar<T>;
    T x = in[1] * p[0], a = absolute(in[0]), square = in[0] * in[0];
    T around_0 = (S(0.5) - x) * in[0] + sinhc_series<true>(square) * square;
    T linear = select(in[0] > S(0), product(S(1) - x, in[0]), product(-x, in[0]));
    T normaliser = log_normal(a / -exp_parts(-a).expm1);
    normaliser = select(a < S(__builtin_inf()), normaliser, a);  // inf and NaN
    T away = select(absolute(linear) == S(__builtin_inf()), linear, linear - normaliser);
    sum[0] = select(a <= S(1), around_0, away);
  }
};

struct ContinuousBernoulliNLLBackward : Density<2, 1, 2, 0, false, 1> {  // (logits, x; grad) -> grad_logits, grad_x
  static constexpr bool data_gradient = true;
  VAEFAST_MAP {
    using S = Scalar<T>;
    T x = in[1] * p[0], a = absolute(in[0]);
    Exp<T> e = exp_parts(-a);
    // 1 - mean, for positive logits: 1 / a - e^-a / (1 - e^-a); past the bound e^-a is 0, and inf * 0 would be NaN
    T bounded = Native<T>::at_most(a, splat<T>(-ExpConstants<S>::lowest));
    T rest = (e.expm1 + bounded * e.exp) / (a * e.expm1);
    T away = select(in[0] > S(0), S(1) - x - rest, rest - x);
    T around_0 = Native<T>::multiply_add(sinhc_series<false>(in[0] * in[0]), in[0], S(0.5) - x);
    out[0] = product(row[0], select(a <= S(1), around_0, away));
    out[1] = product(row[0], in[0] * -p[0]);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
