// The normal distribution by location and scale. Formulas: vaefast/reference/normal.py.
#pragma once
#include "density/gaussian.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

struct NormalRsampleForward : Density<2, 0, 1, 0, true, 0> {  // (loc, scale) -> z
  VAEFAST_MAP { out[0] = in[0] + in[1] * eps; }
};

struct NormalRsampleBackward : Density<1, 0, 1, 0, true, 0> {  // grad_z -> grad_scale
  VAEFAST_MAP { out[0] = in[0] * eps; }
};

struct NormalKLForward : Density<4, 0, 1, 0, false, 0> {  // (loc_q, scale_q, loc_p, scale_p) -> kl
  VAEFAST_MAP {
    T inverse = Scalar<T>(1) / in[3];
    T ratio = in[1] * inverse, distance = standardised(in[0] - in[2], inverse);
    out[0] = (distance * distance + exp_parts(log(ratio) * Scalar<T>(2)).excess) * Scalar<T>(0.5);
  }
};

// (grad_kl, loc_q, scale_q, loc_p, scale_p) -> grad_loc_q, grad_scale_q, grad_loc_p, grad_scale_p
struct NormalKLBackward : Density<5, 0, 4, 0, false, 0> {
  VAEFAST_MAP {
    T inverse = Scalar<T>(1) / in[4];
    T ratio = in[2] * inverse, distance = standardised(in[1] - in[3], inverse);
    T scaled = in[0] * inverse;
    out[0] = product(scaled, distance);
    out[1] = product(scaled, ratio - Scalar<T>(1) / ratio);
    out[2] = -out[0];
    out[3] = product(scaled, Scalar<T>(1) - ratio * ratio - distance * distance);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
