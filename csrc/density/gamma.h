// The gamma function's parts for likelihoods of counts. ln Γ itself appears nowhere: sums of ln Γ cancel to a small
// rest, so the densities add up logarithms of ratios near 1, and of Stirling's series what is left:
//   ln Γ(z) = (z - 1/2) ln z - z + ln(2 pi) / 2 + stirling(1/z)
//   digamma(z) = ln z - 1 / (2 z) - stirling_slope(1/z)
// Both are wanted for z >= 1 alone, since every argument is raised by Γ(z) = Γ(z + 1) / z first.
#pragma once
#include "density/math.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

template <class T>
struct StirlingConstants;

// Minimax on [0, 1], of stirling(t) / t to 3e-9 and stirling_slope(t) / t^2 to 4e-8
template <>
struct StirlingConstants<float> {
  static constexpr int terms = 7;
  VF_FN static constexpr float value(int i) {
    constexpr float p[] = {1.371135438e-4f,   -6.2975196023e-4f, 1.0447195537e-3f, -5.0486700085e-5f,
                           -2.7733767668e-3f, -7.8940803308e-8f, 8.3333330898e-2f};
    return p[i];
  }
  VF_FN static constexpr float slope(int i) {
    constexpr float p[] = {8.6275579699e-4f,  -3.5064238072e-3f, 4.9380189637e-3f, -6.3771030729e-5f,
                           -8.3505000272e-3f, 2.3265791573e-6f,  8.333329588e-2f};
    return p[i];
  }
};

// Chebyshev interpolation, to 1.3e-16 and 1.7e-15
template <>
struct StirlingConstants<double> {
  static constexpr int terms = 21;
  VF_FN static constexpr double value(int i) {
    constexpr double p[] = {5.0243389300907844608e-5,  -4.7820415243903328223e-4, 2.0182799213684929843e-3,
                            -4.8269313680688429471e-3, 6.6020373912765683074e-3,  -3.1298584253098309182e-3,
                            -6.9144813793622743347e-3, 1.8299446771779859004e-2,  -2.3101670321655985184e-2,
                            1.8565406775337877847e-2,  -9.3507532034650382938e-3, 2.1120975397257227124e-3,
                            4.0116169830876972543e-4,  6.7713670115614545209e-5,  -6.0278980397603918092e-4,
                            5.9190734730949556618e-7,  7.9361985481372811977e-4,  9.9143253627094946677e-10,
                            -2.7777777946507430587e-3, 1.144874529178984658e-13,  8.3333333333333203655e-2};
    return p[i];
  }
  VF_FN static constexpr double slope(int i) {
    constexpr double p[] = {-4.0561812676310555344e-5, 1.2296976116521342668e-3,  -1.0827533296095614647e-2,
                            5.0569911651008828888e-2,  -1.5148176418279813624e-1, 3.1800457105979267145e-1,
                            -4.9023125934528713326e-1, 5.6766165101877585752e-1,  -4.9506039412368055695e-1,
                            3.1766828946461815265e-1,  -1.3884757745048046411e-1, 3.1682102265532181302e-2,
                            1.2404771056696300528e-3,  9.4113718460620190706e-4,  -4.2687745147242742864e-3,
                            7.8278947102540193406e-6,  3.9678518657491431979e-3,  1.2718234223869136936e-8,
                            -8.3333335478537824322e-3, 1.4483673030616779696e-12, 8.3333333333331694428e-2};
    return p[i];
  }
};

constexpr double kTwoPi = 6.28318530717958647693, kHalfLogTwoPi = 0.91893853320467274178;

// 1 / (12 z) - 1 / (360 z^3) + …, of t = 1/z in [0, 1]
template <class T>
VF_FN T stirling(T t) {
  using C = StirlingConstants<Scalar<T>>;
  T p = splat<T>(C::value(0));
  VF_UNROLL
  for (int i = 1; i < C::terms; ++i) p = Native<T>::multiply_add(p, t, splat<T>(C::value(i)));
  return p * t;
}

// 1 / (12 z^2) - 1 / (120 z^4) + …, of t = 1/z in [0, 1]
template <class T>
VF_FN T stirling_slope(T t) {
  using C = StirlingConstants<Scalar<T>>;
  T p = splat<T>(C::slope(0));
  VF_UNROLL
  for (int i = 1; i < C::terms; ++i) p = Native<T>::multiply_add(p, t, splat<T>(C::slope(i)));
  return p * t * t;
}

// a (digamma(a + x) - digamma(a) - ln((a + x) / a)) for x >= 0: from 0 at x = 0 up to 1, and x / (2 (a + x)) for
// large a. The logarithm of the ratio, which the caller has in a better place, stays out, and with it every large term.
// It is p + a (rest + ln(1 - p) + p): the logarithm is what raising both arguments leaves.
template <class T>
struct DigammaDifference {
  T x, a;
  T p;             // x / ((a + x) (a + 1))
  T rest;          // not quite 0 at x = 0
  T t, sum_above;  // 1 / (a + 1), a + x + 1
  T complement;    // 1 - p

  VF_FN T value() const { return select(x == splat<T>(0), x, p + a * (rest - log1p_parts(-p, complement).excess)); }
};

template <class T>
VF_FN DigammaDifference<T> digamma_difference(T x, T a) {
  using S = Scalar<T>;
  T above = a + S(1), sum = x + a, sum_above = sum + S(1);
  T inverse = S(1) / (sum * above), t = sum * inverse, t_sum = S(1) / sum_above;
  T rest = stirling_slope(t) - stirling_slope(t_sum) + x * (t * t_sum) * S(0.5);
  return {x, a, x * inverse, rest, t, sum_above, a * (sum_above * inverse)};
}

// Bounds of a shape parameter's logarithm: products of two such parameters and counts neither overflow nor vanish, and
// beyond them the limits hold to the last bit (for counts up to 1e6 in float32).
template <class S>
struct Shape;
template <>
struct Shape<float> {
  static constexpr float lowest = -57.f, highest = 43.f, least = 1.7587922e-25f;  // e^lowest
};
template <>
struct Shape<double> {
  static constexpr double lowest = -300., highest = 300., least = 5.148200222412013e-131;
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
