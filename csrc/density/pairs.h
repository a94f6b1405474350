// What a pair of points counts, given q, their squared distance: |x - y|^2, or half the sum of ((x - mu) / sigma)^2.
//   scaled       the second points are normals: mu and logvar; else they are points
//   logarithm    a pair counts exp(c - q), and their sum's logarithm is wanted; else the density says what it counts
//   dimensions   each dimension is also summed over the pairs on its own
#pragma once
#include "density/math.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

template <class T>
struct Kernel {
  T value, slope;  // slope: of the value by q
};

struct MixtureLogProb {
  static constexpr bool scaled = true, logarithm = true, dimensions = false;
};

struct TotalCorrelation {
  static constexpr bool scaled = true, logarithm = true, dimensions = true;
};

struct Points {
  static constexpr bool scaled = false, logarithm = false, dimensions = false;
};

// Inverse multiquadrics: the sum of s / (s + q) over the scales s.
struct IMQ : Points {
  template <class T>
  VF_FN static Kernel<T> kernel(T q, const Scalar<T>* scales, int count) {
    Kernel<T> k{};
    for (int i = 0; i < count; ++i) {
      T inverse = Scalar<T>(1) / (q + scales[i]), term = inverse * scales[i];
      k.value += term;
      k.slope -= term * inverse;
    }
    return k;
  }
};

// Radial basis functions: the sum of exp(-q / s) over the scales s.
struct RBF : Points {
  template <class T>
  VF_FN static Kernel<T> kernel(T q, const Scalar<T>* scales, int count) {
    Kernel<T> k{};
    for (int i = 0; i < count; ++i) {
      Scalar<T> inverse = Scalar<T>(1) / scales[i];
      T term = exp_only(-q * inverse);
      k.value += term;
      k.slope -= term * inverse;
    }
    return k;
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast

// The densities of the `pairs` walk by the names that ops call them by; each has a _forward and a _backward.
#define VAEFAST_PAIR_DENSITIES(X)          \
  X("mixture_log_prob", MixtureLogProb)    \
  X("total_correlation", TotalCorrelation) \
  X("imq_mmd", IMQ)                        \
  X("rbf_mmd", RBF)
