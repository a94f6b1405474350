// The noise: Philox4x32-10 and a Box-Muller whose every float32 operation is rounded on its own.
// The same bits in every backend; ARCHITECTURE.md, "The noise", says what breaks them.
#pragma once
#include "density/math.h"  // before it, on the CPU, cpu/simd.h: the overloads for vectors must be known here

namespace vaefast {
inline namespace VAEFAST_ISA {

// The four words that Philox mixes. A word is 32 bits, or lanes of 32 or of 64 of which the low half counts; words that
// are the same in all lanes may be plain numbers, and stay so for as many rounds as they can.
template <class A, class B, class C, class D>
struct Counter {
  A a;
  B b;
  C c;
  D d;
};

template <class A, class B, class C, class D>
VF_FN Counter<A, B, C, D> counter(A a, B b, C c, D d) {
  return {a, b, c, d};
}

template <class A, class B, class C, class D>
VF_FN auto philox_round(Counter<A, B, C, D> w, uint32_t k0, uint32_t k1) {
  A hi0, lo0;
  C hi1, lo1;
  multiply_wide(w.a, 0xD2511F53u, hi0, lo0);
  multiply_wide(w.c, 0xCD9E8D57u, hi1, lo1);
  return counter(hi1 ^ w.b ^ k0, lo1, hi0 ^ w.d ^ k1, lo0);
}

// Philox4x32-10 (Salmon et al. 2011).
template <class A, class B, class C, class D>
VF_FN auto philox4x32(Counter<A, B, C, D> c, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  constexpr uint32_t step0 = 0x9E3779B9u, step1 = 0xBB67AE85u;
  auto w = philox_round(philox_round(philox_round(c, k0, k1), k0 + step0, k1 + step1), k0 + 2 * step0, k1 + 2 * step1);
  VF_UNROLL
  for (uint32_t round = 3; round < 10; ++round) w = philox_round(w, k0 + round * step0, k1 + round * step1);
  return w;
}

template <class T>
VF_FN T exact_mul(T a, T b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

template <class T>
VF_FN T exact_add(T a, T b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// Two normals from two words.
template <class T>
VF_FN void box_muller(Uint<T> a, Uint<T> b, T& first, T& second) {
  auto mul = [](T x, T y) { return exact_mul(x, y); };
  auto add = [](T x, T y) { return exact_add(x, y); };
  auto scale = [](T x, float y) { return exact_mul(x, splat<T>(y)); };
  auto shift = [](T x, float y) { return exact_add(x, splat<T>(y)); };

  T u = shift(scale(to_float<T>(bits<Int<T>>(a >> 1)), 0x1p-31f), 0x1p-32f);  // in (0, 1], never 0
  // natural log (Cephes logf), the argument reduced to [sqrt(1/2), sqrt(2))
  Int<T> k = bits<Int<T>>(u) - 0x3f3504f3;
  T e = to_float<T>(k >> 23);
  T g = shift(bits<T>((k & 0x7fffff) + 0x3f3504f3), -1.f);
  T w = mul(g, g);
  T p = shift(scale(g, 7.0376836292e-2f), -1.1514610310e-1f);
  p = shift(mul(p, g), 1.1676998740e-1f);
  p = shift(mul(p, g), -1.2420140846e-1f);
  p = shift(mul(p, g), 1.4249322787e-1f);
  p = shift(mul(p, g), -1.6668057665e-1f);
  p = shift(mul(p, g), 2.0000714765e-1f);
  p = shift(mul(p, g), -2.4999993993e-1f);
  p = shift(mul(p, g), 3.3333331174e-1f);
  T y = mul(mul(p, g), w);
  y = add(y, scale(e, -2.12194440e-4f));
  y = add(y, scale(w, -0.5f));
  T log_u = add(add(g, y), scale(e, 0.693359375f));
  T r = exact_sqrt(scale(log_u, -2.f));
  // angle: two quadrant bits and a signed remainder in [-pi/4, pi/4)
  T t = scale(to_float<T>(bits<Int<T>>(b << 2)), 3.6572951981e-10f);
  T t2 = mul(t, t);
  T s = shift(scale(t2, -1.9515295891e-4f), 8.3321608736e-3f);
  s = shift(mul(s, t2), -1.6666654611e-1f);
  s = add(mul(mul(s, t2), t), t);
  T c = shift(scale(t2, 2.443315711809948e-5f), -1.388731625493765e-3f);
  c = shift(mul(c, t2), 4.166664568298827e-2f);
  c = shift(add(mul(mul(c, t2), t2), scale(t2, -0.5f)), 1.f);
  // quadrant bit 0 swaps sine and cosine; the signs are flipped in the sign bit itself
  auto swap = bits<Int<T>>(b << 1) < 0;
  Uint<T> sign_s = b & 0x80000000u;
  Uint<T> sign_c = (b ^ (b << 1)) & 0x80000000u;
  T sine = bits<T>(bits<Uint<T>>(select(swap, c, s)) ^ sign_s);
  T cosine = bits<T>(bits<Uint<T>>(select(swap, s, c)) ^ sign_c);
  first = mul(r, cosine);
  second = mul(r, sine);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
