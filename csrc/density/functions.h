// The functions of math.h and gamma.h as densities of their own: tests hold each of them to float64 on every backend.
// No op uses them.
#pragma once
#include "density/density.h"
#include "density/gamma.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

struct Exponentials : Density<1, 0, 4, 0, false, 0> {  // x -> e^x, e^x - 1, e^x - 1 - x, e^x for x <= 71
  VAEFAST_MAP {
    Exp<T> e = exp_parts(in[0]);
    out[0] = e.exp;
    out[1] = e.expm1;
    out[2] = e.excess;
    out[3] = exp_only(in[0]);
  }
};

struct Logarithms : Density<1, 0, 5, 0, false, 0> {  // x -> ln(x), ln(1 + x) for x >= 0, ln(1 + x) for x in [0, 1], …
  VAEFAST_MAP {
    out[0] = log(in[0]);
    out[1] = log1p_positive(in[0]);
    out[2] = log1p_unit(in[0]);
    Log1p<T> parts = log1p_parts(in[0], in[0] + Scalar<T>(1));
    out[3] = parts.log;
    out[4] = parts.excess;
  }
};

struct Logistics
    : Density<1, 0, 5, 0, false, 0> {  // x -> sigmoid(x), sigmoid(-x), softplus(x), ln(sigmoid(x)), tanh(x)
  VAEFAST_MAP {
    Logistic<T> l = logistic(in[0]);
    out[0] = l.sigmoid;
    out[1] = l.complement;
    out[2] = l.softplus;
    out[3] = l.log;
    out[4] = tanh(in[0]);
  }
};

struct Stirlings : Density<1, 0, 2, 0, false, 0> {  // t in [0, 1] -> stirling(t), stirling_slope(t)
  VAEFAST_MAP {
    out[0] = stirling(in[0]);
    out[1] = stirling_slope(in[0]);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
