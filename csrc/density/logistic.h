// Discretised logistic likelihood. Formulas: vaefast/reference/logistic.py.
#pragma once
#include "density/density.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

// The mass of a bin of half width h at distance c from mu, in scales, is sinh(h) / (cosh(c) + cosh(h)); with
// near = e^-|c - h| and far = e^-(c + h) that is (1 - e^-2h) e^-max(c - h, 0) / ((1 + near) (1 + far)).
// Of the outermost bins, sigmoid(h - c) where mu lies inwards of them, near's side alone is left, and sigmoid(h + c)
// where mu lies beyond, far's. So what is not there is set to 0, and one formula serves all.
template <class T>
struct Bin {
  using Mask = decltype(T{} < T{});
  T inverse_scale, log_scale, c, h;
  T near, far, e2h;      // e2h = e^-2h
  T one_minus_e2h;       // 1, as e2h is 0, at the edges
  T one_minus_e2c, e2c;  // likewise
  Mask edge, beyond;     // an outermost bin; and mu lies beyond it
  Mask right;            // mu lies left of the bin's centre
};

constexpr double kFlat = 60;  // log-scales past it: the density is flat over a bin

// in: (mu, log_scale, x); p: x's factor, coarse and fine, x's offset, half a bin, the least log-scale
template <class T>
VF_FN Bin<T> bin(const T* in, const Scalar<T>* p) {
  using S = Scalar<T>;
  using N = Native<T>;
  Bin<T> b;
  T position = N::multiply_add(in[2], splat<T>(p[0]), splat<T>(p[2])), fine = in[2] * p[1];
  T x = position + fine, difference = position - in[0] + fine;
  T zero = splat<T>(0), one = splat<T>(1);
  auto lowest = x<p[3] - S(1), highest = x> S(1) - p[3];
  b.log_scale = N::at_least(in[1], splat<T>(p[4]));
  b.inverse_scale = exp_parts(-b.log_scale).exp;
  T z = difference * b.inverse_scale;
  b.right = (z > zero) | (highest & (z == zero));
  b.edge = lowest | highest;
  b.beyond = (lowest & (z > zero)) | (highest & (z < zero));
  b.c = absolute(z);
  b.h = N::at_least(b.inverse_scale, splat<T>(S(8.7565107626965203e-27))) * p[3];  // e^-60
  Exp<T> ec = exp_parts(-b.c), eh = exp_parts(-b.h);
  b.near = select(b.beyond, zero, exp_parts(minus_absolute(b.c - b.h)).exp);
  T far = ec.exp * eh.exp;
  b.far = select(b.beyond, far, select(b.edge, zero, far));
  b.e2h = select(b.edge, zero, eh.exp * eh.exp);
  b.one_minus_e2h = select(b.edge, one, -eh.expm1 * (eh.expm1 + S(2)));
  b.e2c = select(b.edge, zero, ec.exp * ec.exp);
  b.one_minus_e2c = select(b.edge, one, -ec.expm1 * (ec.expm1 + S(2)));
  return b;
}

struct DiscretizedLogisticNLLForward : Density<3, 0, 0, 1, false, 5> {  // (mu, log_scale, x) -> nll
  VAEFAST_MAP {
    using S = Scalar<T>;
    T zero = splat<T>(0);
    Bin<T> b = bin(in, p);
    // (1 + near) (1 + far) / (1 - e^-2h), less 1: a sum of terms that are not negative
    T odds = (b.near + b.far + b.near * b.far + b.e2h) / b.one_minus_e2h;
    T linear = select(b.beyond, zero, Native<T>::at_least(b.c - b.h, zero));
    T flat = select(b.edge, zero, Native<T>::at_least(b.log_scale - S(kFlat), zero));
    sum[0] = linear + log1p_positive(odds) + flat;
  }
};

struct DiscretizedLogisticNLLBackward : Density<3, 1, 3, 0, false, 5> {  // (…; grad) -> the gradients of all three
  static constexpr bool data_gradient = true;
  VAEFAST_MAP {
    using S = Scalar<T>;
    Bin<T> b = bin(in, p);
    T sides = (b.near + S(1)) * (b.far + S(1));
    T inverse = S(1) / (sides * b.one_minus_e2h);
    T one_over_sides = b.one_minus_e2h * inverse;
    T outside = select(b.c > b.h, splat<T>(1), b.near);
    // the derivatives by c and by -h
    T by_c = select(b.beyond, -b.far, outside * b.one_minus_e2c) * one_over_sides;
    T by_h = select(b.beyond, b.far, outside * (b.e2c + S(1) + b.far * S(2))) * one_over_sides +
             b.e2h * S(2) * sides * inverse;
    T by_mu = select(b.right, -b.inverse_scale, b.inverse_scale) * by_c;
    out[0] = product(row[0], by_mu);
    out[1] = product(row[0], select(in[1] < p[4], splat<T>(0), b.h * by_h - product(by_c, b.c)));
    out[2] = -out[0] * (p[0] + p[1]);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
