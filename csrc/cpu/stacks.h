// Stacks of numbers that lie side by side, turned into planes and back.
#pragma once
#include <type_traits>

#include "cpu/simd.h"

namespace vaefast {
inline namespace VAEFAST_ISA {
namespace {

template <class S>
using float_or_double = std::conditional_t<sizeof(S) == 8, double, float>;

// Rows of numbers, `stride` apart, become cols, `pitch` apart: squares of floats are turned in registers.
template <class S, class T>
void turn(const S* from, int64_t stride, int64_t rows, int64_t cols, T* to, int64_t pitch) {
  constexpr int n = kFloats;
  for (int64_t col = 0; col < cols; col += n)
    for (int64_t row = 0; row < rows; row += n) {
      const int high = rows - row < n ? rows - row : n, wide = cols - col < n ? cols - col : n;
      const S* source = from + row * stride + col;
      T* target = to + col * pitch + row;
      if constexpr (std::is_same_v<S, float> || std::is_same_v<T, float>)
        if (high == n && wide == n) {
          F32 square[n];
          for (int r = 0; r < n; ++r) square[r] = load_wide(source + r * stride);
          transpose(square);
          for (int c = 0; c < n; ++c) store_narrow(target + c * pitch, square[c]);
          continue;
        }
      for (int r = 0; r < high; ++r)
        for (int c = 0; c < wide; ++c)
          narrow(static_cast<float_or_double<T>>(widen(source[r * stride + c])), target[c * pitch + r]);
    }
}

}  // namespace
}  // namespace VAEFAST_ISA
}  // namespace vaefast
