// Stacks of numbers that lie side by side, turned into planes and back.
#pragma once
#include <type_traits>

#include "cpu/simd.h"

namespace vaefast {
inline namespace VAEFAST_ISA {
namespace {

template <class S>
using float_or_double = std::conditional_t<sizeof(S) == 8, double, float>;

// Stacks whose numbers lie side by side, to planes `pitch` apart, or back: squares are turned in registers.
template <class S, class C>
void unstack(const S* from, int64_t stride, int length, int64_t planes, C* to, int64_t pitch) {
  constexpr int n = kFloats;
  for (int64_t k = 0; k < planes; k += n)
    for (int i = 0; i < length; i += n) {
      const int high = planes - k < n ? planes - k : n, wide = length - i < n ? length - i : n;
      const S* source = from + i * stride + k;
      C* target = to + k * pitch + i;
      if constexpr (sizeof(C) == 4)
        if (high == n && wide == n) {
          F32 square[n];
          for (int j = 0; j < n; ++j) square[j] = load_wide(source + j * stride);
          transpose(square);
          for (int l = 0; l < n; ++l) store(target + l * pitch, square[l]);
          continue;
        }
      for (int j = 0; j < wide; ++j)
        for (int l = 0; l < high; ++l) target[l * pitch + j] = static_cast<C>(widen(source[j * stride + l]));
    }
}

template <class S, class C>
void stack(const C* from, int64_t pitch, int64_t planes, int length, S* to, int64_t stride) {
  constexpr int n = kFloats;
  for (int64_t k = 0; k < planes; k += n)
    for (int i = 0; i < length; i += n) {
      const int high = planes - k < n ? planes - k : n, wide = length - i < n ? length - i : n;
      const C* source = from + k * pitch + i;
      S* target = to + i * stride + k;
      if constexpr (sizeof(C) == 4)
        if (high == n && wide == n) {
          F32 square[n];
          for (int l = 0; l < n; ++l) square[l] = load<F32>(source + l * pitch);
          transpose(square);
          for (int j = 0; j < n; ++j) store_narrow(target + j * stride, square[j]);
          continue;
        }
      for (int j = 0; j < wide; ++j)
        for (int l = 0; l < high; ++l)
          narrow(static_cast<float_or_double<S>>(source[l * pitch + j]), target[j * stride + l]);
    }
}

}  // namespace
}  // namespace VAEFAST_ISA
}  // namespace vaefast
