// Mixture of discretised logistics. Formulas: vaefast/reference/logistic_mixture.py.
#pragma once
#include "density/categorical.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

template <class T>
struct Tanh {
  T value, slope;  // the slope, 1 - tanh^2, keeps its relative accuracy
};

template <class T>
VF_FN Tanh<T> tanh_and_slope(T x) {
  using S = Scalar<T>;
  T e = exp_only(absolute(x) * S(-2)), r = S(1) / (e + S(1));
  T magnitude = (S(1) - e) * r;
  return {select(x < S(0), -magnitude, magnitude), e * r * r * S(4)};
}

// The pixel, the values of its channels: p[0] x + p[2] is exact, p[1] x what that leaves out.
template <int Channels, class T>
struct Pixel {
  T coarse[Channels], fine[Channels], value[Channels];

  template <class In>
  VF_FN Pixel(const In& x, const Scalar<T>* p) {
    VF_UNROLL
    for (int c = 0; c < Channels; ++c) {
      coarse[c] = Native<T>::multiply_add(x[c], splat<T>(p[0]), splat<T>(p[2]));
      fine[c] = x[c] * p[1];
      value[c] = coarse[c] + fine[c];
    }
  }
};

// A mixture's parameters of one pixel: n logits, then for each channel n means, n log-scales and, of three channels, n
// coefficients.
template <int Channels, class In>
struct Mixture {
  static_assert(Channels == 1 || Channels == 3);
  const In& params;
  int64_t n;

  explicit VF_FN Mixture(const In& params) : params(params), n(params.planes / (Channels == 3 ? 10 : 3)) {}
  VF_FN int64_t mean(int c, int64_t k) const { return n + 3 * n * c + k; }
  VF_FN int64_t log_scale(int c, int64_t k) const { return mean(c, k) + n; }
  VF_FN int64_t coefficient(int c, int64_t k) const { return mean(c, k) + 2 * n; }
};

// One logistic of a mixture for each channel, and the probability that it gives to the pixel's bin.
//
// The logistic is symmetric, so let y be the distance of x from the mean over the scale, and w half a bin over the
// scale. Within the range the bin is [y - w, y + w] and
//     -log p = softplus(y - w) + softplus(-y - w) - log(1 - e^-2w),
// three terms of one sign; of the open bins at the ends, where y is negative inwards, softplus(y - w) alone is left.
// Two exponentials make all, `near` = e^-|y - w| and `second`: of e^-(y + w) and e^-2w the one whose exponent is no
// sum of the others', which is e^-2w where the mean lies outside of the bin.
//
// Every step is taken for all channels before the next: the chain of operations that wait for each other is four
// exponentials long, so one channel alone would leave the processor waiting.
template <int Channels, class T>
struct Component {
  T mean[Channels], log_scale[Channels];
  Tanh<T> coefficient[Channels];
  T linear, factor;  // the pixel's probability is e^-linear factor, where factor never underflows
  T by_mean[Channels], by_log_scale[Channels];  // derivatives of -log p

  // The coefficients, and the means given the channels before.
  template <class In>
  VF_FN void read(const Mixture<Channels, In>& mixture, int64_t k, const Pixel<Channels, T>& x) {
    VF_UNROLL
    for (int c = 0; c < Channels; ++c) {
      mean[c] = mixture.params[mixture.mean(c, k)];
      log_scale[c] = mixture.params[mixture.log_scale(c, k)];
    }
    if constexpr (Channels == 3) {
      VF_UNROLL
      for (int c = 0; c < 3; ++c) coefficient[c] = tanh_and_slope(mixture.params[mixture.coefficient(c, k)]);
      mean[1] = mean[1] + coefficient[0].value * x.value[0];
      mean[2] = mean[2] + coefficient[1].value * x.value[0] + coefficient[2].value * x.value[1];
    }
  }

  // f(plane, derivative) for each of its parameters but the logit, once measured.
  template <class In, class F>
  VF_FN void by_plane(const Mixture<Channels, In>& mixture, int64_t k, const Pixel<Channels, T>& x, F f) const {
    VF_UNROLL
    for (int c = 0; c < Channels; ++c) {
      f(mixture.mean(c, k), by_mean[c]);
      f(mixture.log_scale(c, k), by_log_scale[c]);
    }
    if constexpr (Channels == 3) {
      f(mixture.coefficient(0, k), by_mean[1] * x.value[0] * coefficient[0].slope);
      f(mixture.coefficient(1, k), by_mean[2] * x.value[0] * coefficient[1].slope);
      f(mixture.coefficient(2, k), by_mean[2] * x.value[1] * coefficient[2].slope);
    }
  }

  // p[3], p[4]: half a bin, the least log-scale
  template <bool Gradient>
  VF_FN void measure(const Pixel<Channels, T>& x, const Scalar<T>* p) {
    using S = Scalar<T>;
    using N = Native<T>;
    const T zero = splat<T>(0), one = splat<T>(1);
    T distance[Channels], inverse[Channels], y[Channels], w[Channels];
    Exp<T> near[Channels], second[Channels];
    auto inner = [&](int c) { return absolute(x.value[c]) <= S(1) - p[3]; };
    VF_UNROLL
    for (int c = 0; c < Channels; ++c) {
      distance[c] = x.coarse[c] - mean[c] + x.fine[c];
      inverse[c] = exp_only(-N::at_least(log_scale[c], splat<T>(p[4])));
    }
    auto flip = [&](int c) { return select(inner(c), distance[c], x.value[c]) < S(0); };
    VF_UNROLL
    for (int c = 0; c < Channels; ++c) {
      y[c] = inverse[c] * select(flip(c), -distance[c], distance[c]);
      w[c] = inverse[c] * p[3];
    }
    auto outside = [&](int c) { return y[c] > w[c]; };  // the mean is, of the bin
    VF_UNROLL
    for (int c = 0; c < Channels; ++c) {
      near[c] = exp_parts(minus_absolute(y[c] - w[c]));
      // an open bin has no far end: e^-104 (in double e^-746) is 0
      T exponent = select(outside(c), w[c] + w[c], y[c] + w[c]);
      second[c] = exp_parts(-select(inner(c), exponent, splat<T>(S(sizeof(S) == 4 ? 104 : 746))));
    }
    linear = zero, factor = one;
    VF_UNROLL
    for (int c = 0; c < Channels; ++c) {
      T both = near[c].exp * second[c].exp;
      T far = select(outside(c), both, second[c].exp);
      T width = -N::multiply_add(near[c].expm1, second[c].expm1, near[c].expm1 + second[c].expm1);
      width = select(outside(c), -second[c].expm1, width);  // 1 - e^-2w
      // flat over the bin: 2w (1 - w) but for w^3, of which e^-log_scale, which could underflow, goes to `linear`
      auto flat = inner(c) & (w[c] < S(3e-8));
      width = select(flat, (one - w[c]) * (p[3] * S(2)), width);
      linear = linear + N::at_least(y[c] - w[c], zero) + select(flat, log_scale[c], zero);
      T sums = near[c].exp + one;
      sums = N::multiply_add(sums, far, sums);
      if constexpr (!Gradient) {
        factor = factor * (width / sums);
      } else {
        T inverse_both = one / (sums * width), inverse_sums = inverse_both * width;
        factor = factor * (width * inverse_sums);
        // the derivative by y, sigmoid(y - w) - sigmoid(-y - w), without cancellation, and the parts of that by w
        T square = N::multiply_add(near[c].expm1, near[c].expm1, near[c].expm1 + near[c].expm1);  // near^2 - 1
        T difference = select(outside(c), -N::multiply_add(second[c].expm1, near[c].exp * near[c].exp, square),
                              near[c].expm1 - second[c].expm1);
        T by_y = inverse_sums * difference;
        T crossed = near[c].exp * far;
        T total = select(outside(c), one + far, near[c].exp + crossed) + far + crossed;
        T bin = select(outside(c), second[c].exp, both);  // e^-2w
        T by_width = select(flat, one - w[c], (w[c] + w[c]) * bin * (inverse_both * sums));
        T by_scale = N::multiply_add(w[c] * inverse_sums, total, by_width) - product(by_y, y[c]);
        T by_distance = inverse[c] * by_y;
        by_mean[c] = select(flip(c), by_distance, -by_distance);
        by_log_scale[c] = select(log_scale[c] < p[4], zero, by_scale);
      }
    }
  }
};

template <int Channels, class T, class In>
VF_FN T mixture_nll(const In* in, const Scalar<T>* p) {
  Mixture<Channels, In> mixture(in[0]);
  Pixel<Channels, T> x(in[1], p);
  LogSum<T> joint;
  for (int64_t k = 0; k < mixture.n; ++k) {
    Component<Channels, T> l;
    l.read(mixture, k, x);
    l.template measure<false>(x, p);
    joint.add(in[0][k] - l.linear, l.factor);
  }
  return log_sum_exp<T>(in[0], mixture.n) - joint.log();
}

// -log p, and the gradients. What every component's own -log p contributes is needed twice: before the components'
// weights are known, and after. `work` keeps it in between; where nothing is kept it is computed again.
template <int Channels, class T, class In, class Out, class Work>
VF_FN T mixture_gradient(const In* in, T grad, const Scalar<T>* p, const Out* out, const Work& work) {
  Mixture<Channels, In> mixture(in[0]);
  Pixel<Channels, T> x(in[1], p);
  LogSum<T> joint;
  for (int64_t k = 0; k < mixture.n; ++k) {
    Component<Channels, T> l;
    l.read(mixture, k, x);
    l.template measure<Work::kept>(x, p);
    joint.add(in[0][k] - l.linear, l.factor);
    if constexpr (Work::kept) {
      work.put(k, in[0][k] - l.linear + log_normal(l.factor));
      l.by_plane(mixture, k, x, [&](int64_t plane, T by) { work.put(plane, by); });
    }
  }
  T log_prior = log_sum_exp<T>(in[0], mixture.n), log_joint = joint.log();
  T by_x[Channels] = {};
  for (int64_t k = 0; k < mixture.n; ++k) {
    Component<Channels, T> l;
    T log_p;
    if constexpr (Work::kept) {
      log_p = work[k];
    } else {
      l.read(mixture, k, x);
      l.template measure<true>(x, p);
      log_p = in[0][k] - l.linear + log_normal(l.factor);
    }
    T posterior = share(log_p - log_joint), weight = product(grad, posterior);
    out[0].put(k, product(grad, share(in[0][k] - log_prior) - posterior));
    if constexpr (Work::kept) {
      auto none = weight == splat<T>(0);
      for (int64_t plane = mixture.n + k; plane < in[0].planes; plane += mixture.n)
        out[0].put(plane, select(none, splat<T>(0), weight * work[plane]));
    } else {
      l.by_plane(mixture, k, x, [&](int64_t plane, T by) { out[0].put(plane, product(weight, by)); });
    }
    if (out[1].wanted) {
      if constexpr (Work::kept) {
        l.read(mixture, k, x);
        for (int c = 0; c < Channels; ++c) l.by_mean[c] = work[mixture.mean(c, k)];
      }
      for (int c = 0; c < Channels; ++c) by_x[c] = by_x[c] - product(weight, l.by_mean[c]);
      if constexpr (Channels == 3) {
        T by_green = product(weight, l.by_mean[1]), by_blue = product(weight, l.by_mean[2]);
        by_x[0] = by_x[0] + product(by_green, l.coefficient[0].value) + product(by_blue, l.coefficient[1].value);
        by_x[1] = by_x[1] + product(by_blue, l.coefficient[2].value);
      }
    }
  }
  for (int c = 0; c < Channels; ++c) out[1].put(c, by_x[c] * (p[0] + p[1]));
  return log_prior - log_joint;
}

struct DiscretizedLogisticMixtureNLLForward : PlanesDensity<2, 0, 0, 1, 5> {  // (params, x) -> nll
  VAEFAST_MAP_PLANES { sum[0] = in[1].planes == 3 ? mixture_nll<3, T>(in, p) : mixture_nll<1, T>(in, p); }
};

template <int RowOutputs>
struct DiscretizedLogisticMixtureNLLGradients : PlanesDensity<2, 1, 2, RowOutputs, 5, true> {
  VAEFAST_MAP_PLANES {
    T nll = in[1].planes == 3 ? mixture_gradient<3>(in, row[0], p, out, work)
                              : mixture_gradient<1>(in, row[0], p, out, work);
    if constexpr (RowOutputs > 0) sum[0] = nll;
  }
};

// (params, x; grad) -> both gradients, and nll too
struct DiscretizedLogisticMixtureNLLBackward : DiscretizedLogisticMixtureNLLGradients<0> {};
struct DiscretizedLogisticMixtureNLLWithGradient : DiscretizedLogisticMixtureNLLGradients<1> {};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
