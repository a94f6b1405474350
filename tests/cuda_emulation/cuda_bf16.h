#pragma once
#include "cuda_runtime.h"
//
#include "cpu/simd.h"

struct __nv_bfloat16 {
  vaefast::BFloat16 value;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) { vaefast::narrow(x, value); }
  explicit operator float() const { return vaefast::widen(value); }
};
