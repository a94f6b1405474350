#pragma once
#include "cuda_runtime.h"
//
#include "cpu/simd.h"

struct __half {
  vaefast::Float16 value;
  __half() = default;
  explicit __half(float x) { vaefast::narrow(x, value); }
  explicit operator float() const { return vaefast::widen(value); }
};
