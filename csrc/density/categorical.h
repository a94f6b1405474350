// Categorical likelihood from logits, a plane per class. Formulas: vaefast/reference/categorical.py.
#pragma once
#include "density/density.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

// log of a sum of exponentials that are met one after the other.
template <class T>
struct LogSum {
  T highest = splat<T>(-kLargest<Scalar<T>>), sum = splat<T>(0);

  // + factor e^value, of which one needs no exponential
  VF_FN void add(T value, T factor) {
    T smaller = exp_only(minus_absolute(value - highest));
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

// -log p of class x, given the log of the exponentials' sum
template <class T, class In>
VF_FN T categorical_nll(const In& logits, T x, T log_total) {
  auto valid = is_class(x, logits);
  T logit = logits.at(select(valid, x, splat<T>(0)));
  return select(valid, log_total - logit, splat<T>(Scalar<T>(__builtin_nan(""))));
}

template <class T, class In, class Out>
VF_FN void categorical_gradient(const In& logits, T x, T log_total, T grad, const Out& out) {
  grad = select(is_class(x, logits), grad, splat<T>(0));
  T index = splat<T>(0);
  for (int64_t k = 0; k < logits.planes; ++k) {
    T probability = share(logits[k] - log_total);
    out.put(k, product(grad, select(x == index, probability - Scalar<T>(1), probability)));
    index = index + Scalar<T>(1);
  }
}

struct CategoricalNLLForward : PlanesDensity<2, 0, 0, 1, 0> {  // (logits, x) -> nll
  VAEFAST_MAP_PLANES { sum[0] = categorical_nll(in[0], in[1][0], log_sum_exp<T>(in[0], in[0].planes)); }
};

struct CategoricalNLLBackward : PlanesDensity<2, 1, 1, 0, 0> {  // (logits, x; grad) -> grad_logits
  VAEFAST_MAP_PLANES { categorical_gradient(in[0], in[1][0], log_sum_exp<T>(in[0], in[0].planes), row[0], out[0]); }
};

struct CategoricalNLLWithGradient : PlanesDensity<2, 1, 1, 1, 0> {  // both
  VAEFAST_MAP_PLANES {
    T x = in[1][0], log_total = log_sum_exp<T>(in[0], in[0].planes);
    sum[0] = categorical_nll(in[0], x, log_total);
    categorical_gradient(in[0], x, log_total, row[0], out[0]);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
