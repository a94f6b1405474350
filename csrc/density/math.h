// Elementwise mathematics for float, double and, on the CPU, vectors of either. Densities are written with these, once.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define VF_FN __host__ __device__ __forceinline__
#define VF_UNROLL _Pragma("unroll")
#else
#define VF_FN inline __attribute__((always_inline))
#define VF_UNROLL _Pragma("GCC unroll 16")
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

template <class S>
constexpr S kLargest = sizeof(S) == 4 ? S(3.4028234663852886e38) : S(1.7976931348623157e308);

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

#if !defined(__CUDACC__)
template <class To, class From>
VF_FN To convert(From from) {
  return __builtin_convertvector(from, To);
}
#endif

template <class T>
VF_FN T to_float(Int<T> value) {
#if !defined(__CUDACC__)
  if constexpr (sizeof(T) != sizeof(Scalar<T>))
    return convert<T>(value);
  else
#endif
    return static_cast<T>(value);
}

template <class T, class Mask>
VF_FN T select(Mask mask, T yes, T no) {
  return mask ? yes : no;
}

// What some instruction sets do better than these plain operators: cpu/simd.h specialises Native for their vectors.
template <class T>
struct Plain {
  VF_FN static T at_most(T x, T bound) { return select(x > bound, bound, x); }   // NaN stays
  VF_FN static T at_least(T x, T bound) { return select(x < bound, bound, x); }  // NaN stays
  VF_FN static T multiply_add(T a, T b, T c) { return a * b + c; }
  // x 2^k for an integer n = k, in two steps, so that a subnormal result is rounded once and 2^128 is reached
  VF_FN static T scale(T x, T, Int<T> n) {
    Int<T> half = n >> 1;
    return x * bits<T>((half + kBias) << kMantissa) * bits<T>((n - half + kBias) << kMantissa);
  }
  // The same for n from -151 to 102 (-1076 to 969 in double), where the second step is a constant.
  VF_FN static T scale_down(T x, T, Int<T> n) {
    constexpr int up = kMantissa + 2;
    const Scalar<T> down = sizeof(Scalar<T>) == 4 ? Scalar<T>(0x1p-25) : Scalar<T>(0x1p-54);
    return x * bits<T>((n + (kBias + up)) << kMantissa) * down;
  }

 private:
  static constexpr int kMantissa = sizeof(Scalar<T>) == 4 ? 23 : 52, kBias = sizeof(Scalar<T>) == 4 ? 127 : 1023;
};

template <class T>
struct Native : Plain<T> {};

template <class T>
VF_FN T clamp(T x, Scalar<T> lo, Scalar<T> hi) {  // NaN stays
  return Native<T>::at_least(Native<T>::at_most(x, splat<T>(hi)), splat<T>(lo));
}

template <class T>
struct ExpConstants;

// Cephes expf: e^r = 1 + r + r^2 P(r) for |r| <= ln(2) / 2
template <>
struct ExpConstants<float> {
  static constexpr float log2e = 1.44269504088896341f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float lowest = -104.f, highest = 89.f;
  static constexpr int terms = 6;
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
  static constexpr int terms = 14;
  VF_FN static constexpr double term(int i) {
    constexpr double p[] = {1. / 1307674368000., 1. / 87178291200., 1. / 6227020800., 1. / 479001600., 1. / 39916800.,
                            1. / 3628800.,       1. / 362880.,      1. / 40320.,      1. / 5040.,      1. / 720.,
                            1. / 120.,           1. / 24.,          1. / 6.,          1. / 2.};
    return p[i];
  }
};

template <class T>
struct Exp {
  T exp;     // e^x
  T expm1;   // e^x - 1, exact near 0
  T excess;  // e^x - 1 - x, exact near 0; +inf at +inf
};

#if defined(__CUDACC__)  // cuda/math.h has these: what calls them below, in templates, must know of them
VF_FN Exp<float> exp_parts(float x);
VF_FN float exp_only(float x);
#endif

// x = k ln 2 + r, |r| <= ln(2) / 2, and e^r = 1 + r + r^2 p
template <class T>
struct Reduced {
  T k, r, p;
  Int<T> n;  // k

  VF_FN explicit Reduced(T x) {
    using C = ExpConstants<Scalar<T>>;
    using N = Native<T>;
    T shifted = N::multiply_add(x, splat<T>(C::log2e), splat<T>(C::shift));
    k = shifted - C::shift;
    n = bits<Int<T>>(shifted) - bits<Int<Scalar<T>>>(C::shift);
    r = N::multiply_add(k, splat<T>(-C::ln2_lo), N::multiply_add(k, splat<T>(-C::ln2_hi), x));
    p = splat<T>(C::term(0));
    VF_UNROLL
    for (int i = 1; i < C::terms; ++i) p = N::multiply_add(p, r, splat<T>(C::term(i)));
  }
};

// One reduction serves all three: near 0 the parts come from the polynomial, before the 1 and the x are added.
// Right at +-inf, NaN, and where the result is subnormal or overflows.
template <class T>
VF_FN Exp<T> exp_parts(T x) {
  using C = ExpConstants<Scalar<T>>;
  using N = Native<T>;
  const Reduced<T> e(clamp(x, C::lowest, C::highest));
  T q = e.p * (e.r * e.r);
  T m = e.r + q;
  Exp<T> result;
  result.exp = N::scale(m + Scalar<T>(1), e.k, e.n);
  auto near = e.k == splat<T>(0);
  result.expm1 = select(near, m, result.exp - Scalar<T>(1));
  // past 100 the x no longer shows beside e^x; without the bound inf - inf would be NaN
  T linear = N::at_most(x, splat<T>(100));
  result.excess = select(near, q, (result.exp - Scalar<T>(1)) - linear);
  return result;
}

// e^x alone, for x up to 71 (671 in double): a fifth to a third less work than its parts.
template <class T>
VF_FN T exp_only(T x) {
  using N = Native<T>;
  const Reduced<T> e(N::at_least(x, splat<T>(ExpConstants<Scalar<T>>::lowest)));
  T p = N::multiply_add(N::multiply_add(e.p, e.r, splat<T>(1)), e.r, splat<T>(1));
  return N::scale_down(p, e.k, e.n);
}

// e^x of an x that is at most 0 but for rounding: the part of a sum that one of its terms is.
template <class T>
VF_FN T share(T x) {
  return exp_only(Native<T>::at_most(x, splat<T>(0)));
}

// ln(1 + g) for 1 + g in [sqrt(1/2), sqrt(2)): Cephes logf
VF_FN float log_polynomial_constant(int i) {
  constexpr float p[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f, 1.4249322787e-1f,
                         -1.6668057665e-1f, 2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  return p[i];
}

// ln(1 + g) - g
template <class T>
VF_FN T log1p_tail(T g) {
  using N = Native<T>;
  if constexpr (sizeof(Scalar<T>) == 4) {
    T p = splat<T>(log_polynomial_constant(0));
    VF_UNROLL
    for (int i = 1; i < 9; ++i) p = N::multiply_add(p, g, splat<T>(log_polynomial_constant(i)));
    T w = g * g;
    return N::multiply_add(w, splat<T>(-0.5f), p * g * w);
  } else {  // 2 artanh(s) with s = g / (2 + g); the first term left out is 3e-18 of the sum
    T s = g / (g + 2.), z = s * s;
    T p = splat<T>(1. / 23);
    VF_UNROLL
    for (int i = 21; i >= 3; i -= 2) p = N::multiply_add(p, z, splat<T>(1. / i));
    // -s (g - 2 z p): what is added to g is small, so g's own rounding stays the only one
    return -s * (g - z * p * 2.);
  }
}

template <class T>
VF_FN T log1p_reduced(T g) {
  return g + log1p_tail(g);
}

// x = 2^e (1 + g) for normal, positive x, with 1 + g in [sqrt(1/2), sqrt(2))
template <class T>
struct Split {
  T e, g;
};

template <class T>
VF_FN Split<T> split(T x) {
  using S = Scalar<T>;
  constexpr int mantissa = sizeof(S) == 4 ? 23 : 52;
  const auto half = bits<Int<S>>(static_cast<S>(0.70710678118654752440));  // sqrt(1/2)
  const Int<S> low = (static_cast<Int<S>>(1) << mantissa) - 1;
  Int<T> k = bits<Int<T>>(x) - half;
  return {to_float<T>(k >> mantissa), bits<T>((k & low) + half) - S(1)};
}

// e ln(2) + ln(1 + g)
template <class T>
VF_FN T log_split(Split<T> x) {
  using S = Scalar<T>;
  T y = Native<T>::multiply_add(x.e, splat<T>(ExpConstants<S>::ln2_lo), log1p_reduced(x.g));
  return Native<T>::multiply_add(x.e, splat<T>(ExpConstants<S>::ln2_hi), y);
}

// ln(x) for normal, positive x; the callers see to the rest
template <class T>
VF_FN T log_normal(T x) {
  return log_split(split(x));
}

// ln(x): -inf at 0, NaN below, right for subnormal numbers and +inf.
template <class T>
VF_FN T log(T x) {
  using S = Scalar<T>;
  const S tiny = sizeof(S) == 4 ? S(0x1p-126) : S(0x1p-1022), up = sizeof(S) == 4 ? S(0x1p24) : S(0x1p54);
  const S down = sizeof(S) == 4 ? S(24 * 0.69314718055994530942) : S(54 * 0.69314718055994530942);
  auto small = x < tiny;
  T result = log_normal(select(small, x * up, x)) - select(small, splat<T>(down), splat<T>(0));
  const S infinity = S(__builtin_inf());
  result = select(x == infinity, splat<T>(infinity), result);
  result = select(x == splat<T>(0), splat<T>(-infinity), result);
  return select(x < S(0), splat<T>(S(__builtin_nan(""))), select(x == x, result, x));
}

// ln(1 + x) for x >= 0, exact near 0: below sqrt(2) - 1 the reduced argument is x itself.
template <class T>
VF_FN T log1p_positive(T x) {
  using S = Scalar<T>;
  Split<T> u = split(x + S(1));
  u.g = select(u.e == splat<T>(0), x, u.g);
  return select(x < S(__builtin_inf()), log_split(u), x);  // inf and NaN
}

// ln(1 + t) for t in [0, 1], as softplus needs it: the reduction is exact, and takes neither bits nor a division.
template <class T>
VF_FN T log1p_unit(T t) {
  using S = Scalar<T>;
  auto large = t > S(0.41421356237309504880);  // 1 + t is halved
  T result = log1p_reduced(select(large, (t - S(1)) * S(0.5), t));
  return select(large, result + S(0.69314718055994530942), result);
}

template <class T>
struct Log1p {
  T log;     // ln(1 + u)
  T excess;  // u - ln(1 + u), exact near 0
};

// For u > -1, with y = 1 + u told apart: near 0 u has the digits that count, far from it y has. y must be normal; where
// u is infinite or NaN so are both.
template <class T>
VF_FN Log1p<T> log1p_parts(T u, T y) {
  using C = ExpConstants<Scalar<T>>;
  using N = Native<T>;
  Split<T> s = split(y);
  auto near = s.e == splat<T>(0);
  T g = select(near, u, s.g), tail = log1p_tail(g);
  T rest = N::multiply_add(s.e, splat<T>(C::ln2_lo), N::multiply_add(u, splat<T>(0), g + tail));
  T log = N::multiply_add(s.e, splat<T>(C::ln2_hi), rest);
  return {log, select(near, -tail, u - log)};
}

template <class T>
VF_FN T absolute(T x) {
  using Bits = Int<Scalar<T>>;
  constexpr Bits magnitude = static_cast<Bits>(~static_cast<Uint<Scalar<T>>>(0) >> 1);
  return bits<T>(bits<Int<T>>(x) & magnitude);
}

template <class T>
VF_FN T minus_absolute(T x) {
  using Bits = Int<Scalar<T>>;
  constexpr Bits sign = static_cast<Bits>(~(~static_cast<Uint<Scalar<T>>>(0) >> 1));
  return bits<T>(bits<Int<T>>(x) | sign);
}

template <class T>
struct Logistic {
  T sigmoid;     // 1 / (1 + e^-x)
  T complement;  // 1 - sigmoid(x) = sigmoid(-x)
  T softplus;    // ln(1 + e^x)
  T log;         // ln(sigmoid(x)) = -softplus(-x)
};

// From one exponential, of -|x|: each keeps its relative accuracy where it is small.
template <class T>
VF_FN Logistic<T> logistic(T x) {
  T t = exp_only(minus_absolute(x));
  T large = Scalar<T>(1) / (t + Scalar<T>(1)), small = t * large;
  T tail = log1p_unit(t), zero = splat<T>(0);
  auto positive = x > Scalar<T>(0);
  return {select(positive, large, small), select(positive, small, large), Native<T>::at_least(x, zero) + tail,
          Native<T>::at_most(x, zero) - tail};
}

// (1 - e^-2|x|) / (1 + e^-2|x|) with x's sign
template <class T>
VF_FN T tanh(T x) {
  T m = exp_parts(absolute(x) * Scalar<T>(-2)).expm1;
  T y = m / (m + Scalar<T>(2));
  return select(x < Scalar<T>(0), y, -y);
}

// a b, and 0 where a is 0 whatever b is: a term with no weight is no term
template <class T>
VF_FN T product(T a, T b) {
  return select(a == splat<T>(0), splat<T>(0), a * b);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
