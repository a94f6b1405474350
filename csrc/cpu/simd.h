// Vectors of the instruction set that this file is compiled for, with the operators of the compiler's vector types.
// Only what those operators lack is written out: square root, 32 x 32 -> 64-bit products, interleaving, half types.
#pragma once
#include "density/math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace vaefast {
inline namespace VAEFAST_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kFloats = kBytes / 4;  // lanes of a vector of floats
#if defined(__AVX512F__) || !defined(__x86_64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

typedef float F32 __attribute__((vector_size(kBytes)));
typedef double F64 __attribute__((vector_size(kBytes)));
typedef int32_t I32 __attribute__((vector_size(kBytes)));
typedef uint32_t U32 __attribute__((vector_size(kBytes)));
typedef int64_t I64 __attribute__((vector_size(kBytes)));
typedef uint64_t U64 __attribute__((vector_size(kBytes)));

template <>
struct Lanes<F32> {
  using Scalar = float;
  using Int = I32;
  using Uint = U32;
};

template <>
struct Lanes<I32> {
  using Scalar = int32_t;
  using Int = I32;
  using Uint = U32;
};

template <>
struct Lanes<I64> {
  using Scalar = int64_t;
  using Int = I64;
  using Uint = U64;
};

template <>
struct Lanes<F64> {
  using Scalar = double;
  using Int = I64;
  using Uint = U64;
};

// at_most and at_least: the instructions return their second operand where one is NaN, so x comes second.
#if defined(__AVX512F__)
template <>
struct Native<F32> : Plain<F32> {
  VF_FN static F32 at_most(F32 x, F32 bound) { return _mm512_min_ps(bound, x); }
  VF_FN static F32 at_least(F32 x, F32 bound) { return _mm512_max_ps(bound, x); }
  VF_FN static F32 multiply_add(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  VF_FN static F32 scale(F32 x, F32 k, I32) { return _mm512_scalef_ps(x, k); }
  VF_FN static F32 scale_down(F32 x, F32 k, I32) { return _mm512_scalef_ps(x, k); }
};
template <>
struct Native<F64> : Plain<F64> {
  VF_FN static F64 at_most(F64 x, F64 bound) { return _mm512_min_pd(bound, x); }
  VF_FN static F64 at_least(F64 x, F64 bound) { return _mm512_max_pd(bound, x); }
  VF_FN static F64 multiply_add(F64 a, F64 b, F64 c) { return _mm512_fmadd_pd(a, b, c); }
  VF_FN static F64 scale(F64 x, F64 k, I64) { return _mm512_scalef_pd(x, k); }
  VF_FN static F64 scale_down(F64 x, F64 k, I64) { return _mm512_scalef_pd(x, k); }
};
#elif defined(__AVX2__)
template <>
struct Native<F32> : Plain<F32> {
  VF_FN static F32 at_most(F32 x, F32 bound) { return _mm256_min_ps(bound, x); }
  VF_FN static F32 at_least(F32 x, F32 bound) { return _mm256_max_ps(bound, x); }
  VF_FN static F32 multiply_add(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
};
template <>
struct Native<F64> : Plain<F64> {
  VF_FN static F64 at_most(F64 x, F64 bound) { return _mm256_min_pd(bound, x); }
  VF_FN static F64 at_least(F64 x, F64 bound) { return _mm256_max_pd(bound, x); }
  VF_FN static F64 multiply_add(F64 a, F64 b, F64 c) { return _mm256_fmadd_pd(a, b, c); }
};
#endif

template <class C>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = F32;
};
template <>
struct VectorOf<double> {
  using Type = F64;
};

template <class V>
VF_FN void fill(V& v, const Scalar<V>* from) {
  memcpy(&v, from, sizeof(v));
}

template <class V>
VF_FN V load(const Scalar<V>* from) {
  V v;
  fill(v, from);
  return v;
}

template <class V>
VF_FN void store(Scalar<V>* to, V v) {
  memcpy(to, &v, sizeof(v));
}

// Past the caches, which need not read the line first, to a multiple of the vector's size; see also `streamed`.
template <class V>
VF_FN void stream(Scalar<V>* to, V v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)v);
#else
  store(to, v);
#endif
}

// Makes what was streamed visible to other threads.
VF_FN void streamed() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class V>
VF_FN V load_some(const Scalar<V>* from, int count) {  // the other lanes are 0
  V v{};
  memcpy(&v, from, count * sizeof(Scalar<V>));
  return v;
}

template <class V>
VF_FN void store_some(Scalar<V>* to, V v, int count) {
  memcpy(to, &v, count * sizeof(Scalar<V>));
}

template <class S, int Bytes>
struct VectorOfBytes {
  typedef S Type __attribute__((vector_size(Bytes)));
};

template <class S, int Bytes>
VF_FN S add_lanes(typename VectorOfBytes<S, Bytes>::Type v) {
  if constexpr (Bytes == 16) {
    if constexpr (sizeof(S) == 8)
      return v[0] + v[1];
    else
      return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    typename VectorOfBytes<S, Bytes / 2>::Type half[2];
    memcpy(half, &v, Bytes);
    return add_lanes<S, Bytes / 2>(half[0] + half[1]);
  }
}

// The first `count` lanes, or all; the others are 0, but are read.
template <class V>
VF_FN V load_first(const Scalar<V>* from, int count) {
  Int<V> lane;
  for (unsigned l = 0; l < sizeof(V) / sizeof(*from); ++l) lane[l] = l;
  return select(lane < Scalar<Int<V>>(count), load<V>(from), V{});
}

// The sum of `values`, which may be read up to a vector past the end.
template <class S>
VF_FN S sum_of(const S* values, int count) {
  using V = typename VectorOf<S>::Type;
  constexpr int lanes = kBytes / sizeof(S);
  V total{};
  int i = 0;
  for (; i + lanes <= count; i += lanes) total += load<V>(values + i);
  if (i < count) total += load_first<V>(values + i, count - i);
  return add_lanes<S, kBytes>(total);
}

VF_FN F32 exact_sqrt(F32 x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(__x86_64__)
  return _mm_sqrt_ps(x);
#elif defined(__aarch64__)
  return (F32)vsqrtq_f32((float32x4_t)x);
#else
  for (int i = 0; i < kFloats; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// The low words of 64-bit lanes, multiplied; high words are ignored on the way in and rubbish on the way out.
VF_FN void multiply_wide(U64 a, uint32_t m, U64& hi, U64& lo) {
#if defined(__AVX512F__)
  lo = (U64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  lo = (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(__x86_64__)
  lo = (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#elif defined(__aarch64__)
  lo = (U64)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(m));
#else
  lo = (a & 0xffffffffu) * m;
#endif
  hi = lo >> 32;
}

// Lanes 0, 1, … of a and b in turn: those of the lower halves, and those of the upper.
#if defined(__clang__)
#define VAEFAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VAEFAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, U32{__VA_ARGS__})
#endif
#if defined(__AVX512F__)
VF_FN F32 interleave_lo(F32 a, F32 b) {
  return VAEFAST_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
VF_FN F32 interleave_hi(F32 a, F32 b) {
  return VAEFAST_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif defined(__AVX2__)
VF_FN F32 interleave_lo(F32 a, F32 b) { return VAEFAST_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
VF_FN F32 interleave_hi(F32 a, F32 b) { return VAEFAST_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
VF_FN F32 interleave_lo(F32 a, F32 b) { return VAEFAST_SHUFFLE(a, b, 0, 4, 1, 5); }
VF_FN F32 interleave_hi(F32 a, F32 b) { return VAEFAST_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif

// Rows of a square of lanes become its columns: interleaving the halves turns the bits of (row, column) by one place.
VF_FN void transpose(F32 (&square)[kFloats]) {
  for (int round = 1; round < kFloats; round *= 2) {
    F32 next[kFloats];
#pragma GCC unroll 8
    for (int i = 0; i < kFloats / 2; ++i) {
      next[2 * i] = interleave_lo(square[i], square[i + kFloats / 2]);
      next[2 * i + 1] = interleave_hi(square[i], square[i + kFloats / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) square[i] = next[i];
  }
}

// The sum of each row of a square of lanes, in order.
VF_FN F32 add_rows(F32 (&square)[kFloats]) {
  for (int half = kFloats / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      square[i] = interleave_lo(square[i], square[i + half]) + interleave_hi(square[i], square[i + half]);
  return square[0];
}

// ---- half types: bits in, bits out, rounded to nearest even ----

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class S>
VF_FN S widen(S x) {  // float, double and the integers convert by themselves
  return x;
}
VF_FN float widen(BFloat16 x) { return bits<float>(static_cast<uint32_t>(x.bits) << 16); }
VF_FN float widen(Float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // exponent and mantissa moved into float32's places, then scaled by 2^112: subnormals come right by themselves
  uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  float scaled = bits<float>(magnitude) * 0x1p112f;
  uint32_t finite = bits<uint32_t>(scaled);
  uint32_t special = magnitude | 0x7f800000u;
  uint32_t result = (x.bits & 0x7c00) == 0x7c00 ? special : finite;
  return bits<float>(result | static_cast<uint32_t>(x.bits & 0x8000) << 16);
#endif
}

VF_FN void narrow(float x, float& to) { to = x; }
VF_FN void narrow(double x, double& to) { to = x; }
VF_FN void narrow(float x, BFloat16& to) {
  uint32_t b = bits<uint32_t>(x);
  uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}
VF_FN void narrow(float x, Float16& to) {
#if defined(__F16C__)
  to.bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  uint32_t b = bits<uint32_t>(x), sign = b & 0x80000000u, magnitude = b ^ sign;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00;
  } else if (magnitude >= 0x47800000u) {  // 65536 and up
    result = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // subnormal: the addition rounds
    result = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  to.bits = static_cast<uint16_t>(result | sign >> 16);
#endif
}

// A vector of floats from and to any type that has them in a row.
template <class S>
VF_FN F32 load_wide(const S* from) {
  F32 v;
  for (int i = 0; i < kFloats; ++i) v[i] = static_cast<float>(widen(from[i]));
  return v;
}
VF_FN F32 load_wide(const float* from) { return load<F32>(from); }
VF_FN F32 load_wide(const BFloat16* from) {
  typedef uint16_t U16 __attribute__((vector_size(kBytes / 2)));
  U16 half;
  memcpy(&half, from, sizeof(half));
  return (F32)(__builtin_convertvector(half, U32) << 16);
}

template <class S>
VF_FN void store_narrow(S* to, F32 v) {
  for (int i = 0; i < kFloats; ++i) narrow(v[i], to[i]);
}
VF_FN void store_narrow(double* to, F32 v) {
  for (int i = 0; i < kFloats; ++i) to[i] = v[i];
}
VF_FN void store_narrow(float* to, F32 v) { store(to, v); }

}  // namespace VAEFAST_ISA
}  // namespace vaefast
