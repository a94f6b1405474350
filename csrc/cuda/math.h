// What a GPU does better than the plain operators of density/math.h; to be included before the densities.
#pragma once
#include "density/math.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

template <>
struct Native<float> : Plain<float> {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800  // one instruction instead of a comparison and a selection
  VF_FN static float at_most(float x, float bound) {
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(bound));
    return x;
  }
  VF_FN static float at_least(float x, float bound) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(bound));
    return x;
  }
#endif
  VF_FN static float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
};

// CUDA's expf (1 ulp) takes 8 instructions where the reduction and the polynomial of the CPU take 25. The polynomial is
// left for arguments near 0, where there is nothing to reduce.
VF_FN Exp<float> exp_parts(float x) {
  using C = ExpConstants<float>;
  using N = Native<float>;
  float p = C::term(0);
  VF_UNROLL
  for (int i = 1; i < C::terms; ++i) p = N::multiply_add(p, x, C::term(i));
  const float q = p * (x * x), e = expf(x);
  const bool near = fabsf(x) < 0.34657359f;  // ln(2) / 2
  return {e, near ? x + q : e - 1, near ? q : (e - 1) - N::at_most(x, 100)};
}

VF_FN float exp_only(float x) { return expf(x); }

}  // namespace VAEFAST_ISA
}  // namespace vaefast
