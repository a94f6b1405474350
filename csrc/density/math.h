// Elementwise mathematics for float, double and, on the CPU, vectors of either. Densities are written with these, once.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define VF_FN __host__ __device__ __forceinline__
#else
#define VF_FN inline __attribute__((always_inline))
#endif

// Every instruction set compiles its own copy: the linker must not merge, say, an AVX-512 copy into the baseline.
#ifndef VAEFAST_ISA
#define VAEFAST_ISA scalar
#endif

namespace vaefast {
inline namespace VAEFAST_ISA {

// The scalar type of T, and the integers that have its width and number of lanes.
template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  using Scalar = float;
  using Int = int32_t;
  using Uint = uint32_t;
};

template <>
struct Lanes<double> {
  using Scalar = double;
  using Int = int64_t;
  using Uint = uint64_t;
};

template <class T>
using Scalar = typename Lanes<T>::Scalar;
template <class T>
using Int = typename Lanes<T>::Int;
template <class T>
using Uint = typename Lanes<T>::Uint;

template <class To, class From>
VF_FN To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits are reinterpreted, not converted");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
VF_FN T splat(Scalar<T> value) {
  if constexpr (sizeof(T) == sizeof(value))
    return value;
  else
    return value - T{};  // - and not +: it keeps -0
}

// What the compiler's operators do not say; cpu/simd.h has the same for vectors.
VF_FN float to_float(int32_t value, float*) { return static_cast<float>(value); }

VF_FN float exact_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

VF_FN void multiply_wide(uint32_t a, uint32_t m, uint32_t& hi, uint32_t& lo) {
  uint64_t product = static_cast<uint64_t>(a) * m;
  hi = static_cast<uint32_t>(product >> 32);
  lo = static_cast<uint32_t>(product);
}

template <class T, class Mask>
VF_FN T select(Mask mask, T yes, T no) {
  return mask ? yes : no;
}

template <class T>
VF_FN T minimum(T x, Scalar<T> bound) {  // NaN stays
  return select(x > bound, splat<T>(bound), x);
}

template <class T>
VF_FN T clamp(T x, Scalar<T> lo, Scalar<T> hi) {  // NaN stays
  return select(x < lo, splat<T>(lo), minimum(x, hi));
}

template <class T>
struct ExpConstants;

// Cephes expf: e^r = 1 + r + r^2 P(r) for |r| <= ln(2) / 2
template <>
struct ExpConstants<float> {
  static constexpr float log2e = 1.44269504088896341f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float lowest = -104.f, highest = 89.f;
  static constexpr int mantissa = 23, bias = 127, terms = 6;
  VF_FN static constexpr float term(int i) {
    constexpr float p[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                           4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    return p[i];
  }
};

// Taylor: the first term left out is 2e-18 of the sum
template <>
struct ExpConstants<double> {
  static constexpr double log2e = 1.44269504088896340736, ln2_hi = 6.93147180369123816490e-01,
                          ln2_lo = 1.90821492927058770002e-10;
  static constexpr double shift = 6755399441055744.;
  static constexpr double lowest = -746., highest = 710.;
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
  VF_FN static constexpr double term(int i) {
    constexpr double p[] = {1. / 1307674368000., 1. / 87178291200., 1. / 6227020800., 1. / 479001600., 1. / 39916800.,
                            1. / 3628800.,       1. / 362880.,      1. / 40320.,      1. / 5040.,      1. / 720.,
                            1. / 120.,           1. / 24.,          1. / 6.};
    return i < 13 ? p[i] : .5;
  }
};

template <class T>
struct Exp {
  T exp;     // e^x
  T expm1;   // e^x - 1, exact near 0
  T excess;  // e^x - 1 - x, exact near 0; +inf at +inf
};

// One reduction serves all three: near 0 the parts come from the polynomial, before the 1 and the x are added.
// Right at +-inf, NaN, and where the result is subnormal or overflows.
template <class T>
VF_FN Exp<T> exp_parts(T x) {
  using C = ExpConstants<Scalar<T>>;
  T bounded = clamp(x, C::lowest, C::highest);
  T shifted = bounded * C::log2e + C::shift;
  T k = shifted - C::shift;
  T r = (bounded - k * C::ln2_hi) - k * C::ln2_lo;
  T p = splat<T>(C::term(0));
#pragma GCC unroll 16
  for (int i = 1; i < C::terms; ++i) p = p * r + C::term(i);
  if constexpr (C::terms == 13) p = p * r + .5;
  T q = p * r * r;
  T m = r + q;
  // 2^k in two halves, so that a subnormal result is rounded once and 2^128 is reached
  auto n = bits<Int<T>>(shifted) - bits<Int<Scalar<T>>>(C::shift);
  auto half = n >> 1;
  T scale1 = bits<T>((half + C::bias) << C::mantissa);
  T scale2 = bits<T>((n - half + C::bias) << C::mantissa);
  Exp<T> result;
  result.exp = (m + Scalar<T>(1)) * scale1 * scale2;
  auto near = k == splat<T>(0);
  result.expm1 = select(near, m, result.exp - Scalar<T>(1));
  // past 100 the x no longer shows beside e^x; without the bound inf - inf would be NaN
  result.excess = select(near, q, (result.exp - Scalar<T>(1)) - minimum(x, Scalar<T>(100)));
  return result;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
