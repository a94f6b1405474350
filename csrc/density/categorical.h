// Categorical likelihood from logits, a plane per class. Formulas: vaefast/reference/categorical.py.
#pragma once
#include "density/density.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

// log of a sum of exponentials that are met one after the other.
template <class T>
struct LogSum {
  T highest = splat<T>(sizeof(Scalar<T>) == 4 ? Scalar<T>(-3e38) : Scalar<T>(-1.7e308)), sum = splat<T>(0);

  // + factor e^value, of which one needs no exponential
  VF_FN void add(T value, T factor) {
    T smaller = exp_only(-absolute(value - highest));
    auto above = value > highest;
    sum = Native<T>::multiply_add(select(above, sum, factor), smaller, select(above, factor, sum));
    highest = select(above, value, highest);
  }

  // + e^values[0] + e^values[1] + …
  template <int N>
  VF_FN void add(const T (&values)[N]) {
    T before = highest;
    VF_UNROLL
    for (int i = 0; i < N; ++i) highest = select(values[i] > highest, values[i], highest);
    sum = sum * exp_only(before - highest);
    VF_UNROLL
    for (int i = 0; i < N; ++i) sum = sum + exp_only(values[i] - highest);
  }

  VF_FN T log() const { return highest + vaefast::log(sum); }
};

// log sum_k e^planes[k] of the first `count`
template <class T, class In>
VF_FN T log_sum_exp(const In& planes, int64_t count) {
  LogSum<T> total;
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    T values[8];
    for (int i = 0; i < 8; ++i) values[i] = planes[k + i];
    total.add(values);
  }
  for (; k < count; ++k) total.add(planes[k], splat<T>(1));
  return total.log();
}

// Whether x names a class; what does not counts NaN and has no gradient.
template <class T, class In>
VF_FN auto is_class(T x, const In& logits) {
  return (x >= splat<T>(0)) & (x < splat<T>(static_cast<Scalar<T>>(logits.planes)));
}

struct CategoricalNLLForward : PlanesDensity<2, 0, 0, 1, 0> {  // (logits, x) -> nll
  VAEFAST_MAP_PLANES {
    T x = in[1][0];
    auto valid = is_class(x, in[0]);
    T logit = in[0].at(select(valid, x, splat<T>(0)));
    sum[0] = select(valid, log_sum_exp<T>(in[0], in[0].planes) - logit, splat<T>(Scalar<T>(__builtin_nan(""))));
  }
};

struct CategoricalNLLBackward : PlanesDensity<2, 1, 1, 0, 0> {  // (logits, x; grad) -> grad_logits
  VAEFAST_MAP_PLANES {
    T x = in[1][0], log_total = log_sum_exp<T>(in[0], in[0].planes);
    T grad = select(is_class(x, in[0]), row[0], splat<T>(0));
    T index = splat<T>(0);
    for (int64_t k = 0; k < in[0].planes; ++k) {
      T probability = exp_only(in[0][k] - log_total);
      out[0].put(k, product(grad, select(x == index, probability - Scalar<T>(1), probability)));
      index = index + Scalar<T>(1);
    }
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
