// Likelihoods of counts. Formulas: vaefast/reference/counts.py. The data come as numbers: no density writes their
// gradient. Every value is what Stirling's formula leaves of a sum of ln Γ, plus logarithms of ratios, each near 1
// where the count is near its mean: what is large cancels on paper.
#pragma once
#include "density/density.h"
#include "density/gamma.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

template <class T>
constexpr Scalar<T> kInfinity = static_cast<Scalar<T>>(__builtin_inf());

template <class T>
VF_FN T half_log(T x) {
  return log_normal(x) * Scalar<T>(0.5);
}

// ---- Poisson ----

struct PoissonNLLForward : Density<2, 0, 0, 1, false, 0> {  // (log_rate, x) -> nll
  VAEFAST_MAP {
    using S = Scalar<T>;
    T x = in[1], above = x + S(1);
    // delta = log_rate - ln(x + 1), in two steps, so that it is exact where large rate and count agree
    Split<T> s = split(above);
    T low = Native<T>::multiply_add(s.e, splat<T>(ExpConstants<S>::ln2_lo), log1p_reduced(s.g));
    T delta = Native<T>::multiply_add(s.e, splat<T>(-ExpConstants<S>::ln2_hi), in[0]) - low;
    T log_above = Native<T>::multiply_add(s.e, splat<T>(ExpConstants<S>::ln2_hi), low);
    Exp<T> e = exp_parts(delta);
    T rest = log_above * S(0.5) + (stirling(S(1) / above) + S(kHalfLogTwoPi));
    T nll = select(x == splat<T>(0), e.exp, x * e.excess + (e.expm1 + rest));
    sum[0] = select(x < S(0), splat<T>(kInfinity<T>), nll);
  }
};

struct PoissonNLLBackward : Density<2, 1, 1, 0, false, 0> {  // (log_rate, x; grad) -> grad_log_rate
  VAEFAST_MAP { out[0] = product(row[0], exp_parts(in[0]).exp - in[1]); }
};

// ---- negative binomial ----

template <class T>
VF_FN T shape(T log_shape) {
  return exp_only(clamp(log_shape, Shape<Scalar<T>>::lowest, Shape<Scalar<T>>::highest));
}

// With X = x + 1, A = theta + 1, N = x + theta + 1, the nll is
//   x ln(X (mu + theta) / (mu N)) + theta ln(A (mu + theta) / (theta N))
//   + ln(2 pi X A / N) / 2 + ln((x + theta) / theta) - 1 + stirling(1/X) + stirling(1/A) - stirling(1/N),
// of which x = 0 leaves the second term alone.
template <class T>
VF_FN T negative_binomial(T mu, T x, T log_theta) {
  using S = Scalar<T>;
  T theta = shape(log_theta), sum = x + theta, X = x + S(1), A = theta + S(1);
  T t = S(1) / (sum + S(1)), inverse_theta = S(1) / theta, inverse_mu = S(1) / mu, inverse = S(1) / (X * A);
  T excess = x - mu, scaled_mean = mu * inverse_theta;

  T ratio = X * t * (mu + theta) * inverse_mu;
  T u = (excess + S(1)) * inverse_mu * (theta * t), v = (scaled_mean - excess) * t;
  Log1p<T> first = log1p_parts(u, ratio), second = log1p_parts(v, A * t * (scaled_mean + S(1)));
  T zero_nll = theta * second.log;
  // near the mean x u + theta v is written out, and no first order is left to cancel
  T linear = (excess * excess + x) * inverse_mu * (theta * t) + mu * t;
  auto near = (absolute(u) < S(0.25)) & (absolute(v) < S(0.25));
  T logs = select(near, linear - (x * first.excess + theta * second.excess), x * first.log + zero_nll);

  auto below_1 = theta < S(1);  // then ln((x + theta) / theta) is taken apart, for a theta of any smallness
  T factor = select(below_1, sum, sum * inverse_theta);
  T rest = half_log(X * A * t * (factor * factor)) - select(below_1, log_theta, splat<T>(0));
  rest += stirling(A * inverse) + stirling(X * inverse) - stirling(t) + S(kHalfLogTwoPi - 1);

  T nll = select(x == splat<T>(0), zero_nll, logs + rest);
  auto impossible = (Native<T>::at_most(x, mu) < S(0)) | ((ratio == splat<T>(kInfinity<T>)) & (x > S(0)));
  nll = select(impossible, splat<T>(kInfinity<T>), nll);
  return select(mu < kInfinity<T>, nll, mu);  // inf, and NaN
}

template <class T>
struct NegativeBinomialGradient {
  T mu, log_theta;
  T zero_nll;  // theta ln(1 + mu / theta), right where x is 0
};

// d/dmu = (1 - x / mu) theta / (mu + theta). d/dlog_theta = theta (v - ln(1 + v)) - digamma_difference(x, theta) with
// v = (x - mu) / (mu + theta); the two logarithms are one, of (1 + v) (1 - p).
template <class T>
VF_FN NegativeBinomialGradient<T> negative_binomial_gradient(T mu, T x, T log_theta) {
  using S = Scalar<T>;
  T theta = shape(log_theta), inverse = S(1) / (mu + theta), excess = x - mu;
  DigammaDifference<T> h = digamma_difference(x, theta);
  T v = excess * inverse, u = (theta * excess - mu) * (inverse * h.t);
  Log1p<T> l = log1p_parts(u, theta * inverse * (h.t * h.sum_above));
  auto zero = x == splat<T>(0);
  T log_theta_grad = theta * (l.excess + select(zero, x, v * h.p - h.rest)) - h.p;
  T surplus = select(zero, splat<T>(1), -excess / mu);
  return {surplus * (theta * inverse), log_theta_grad, -theta * l.log};
}

struct NegativeBinomialNLLForward : Density<3, 0, 0, 1, false, 0> {  // (mu, x, log_theta) -> nll
  VAEFAST_MAP { sum[0] = negative_binomial(in[0], in[1], in[2]); }
};

struct NegativeBinomialNLLBackward : Density<3, 1, 2, 0, false, 0> {  // (…; grad) -> grad_mu, grad_log_theta
  VAEFAST_MAP {
    NegativeBinomialGradient<T> g = negative_binomial_gradient(in[0], in[1], in[2]);
    out[0] = product(row[0], g.mu);
    out[1] = product(row[0], g.log_theta);
  }
};

// ---- zero-inflated negative binomial ----

// p(0) = gate + (1 - gate) e^-b, where b is the negative binomial's own nll at 0. Where both terms are below e^-40 they
// come times e^scale, so that their ratio is right however small they are; what they are added to is then 1 anyway.
template <class T>
struct ZeroInflation {
  T gate, rest;  // gate e^scale for gate < 1/2; 1 - gate
  T exp, expm1;  // e^(scale - b), and less 1
  T zero;        // p(0) e^scale
  T scale;
  T t, inverse;  // e^-|gate_logits|, 1 / (1 + t)
};

template <class T>
VF_FN ZeroInflation<T> zero_inflation(T gate_logits, T b) {
  using S = Scalar<T>;
  T scale = Native<T>::at_least(Native<T>::at_most(b, -gate_logits) - S(40), splat<T>(0));
  T t = exp_only(scale - absolute(gate_logits)), inverse = S(1) / (t + S(1));
  Exp<T> e = exp_parts(scale - b);
  auto positive = gate_logits > S(0);
  T gate = select(positive, inverse, t * inverse), rest = select(positive, t * inverse, inverse);
  return {gate, rest, e.exp, e.expm1, gate + rest * e.exp, scale, t, inverse};
}

struct ZeroInflatedNegativeBinomialNLLForward : Density<4, 0, 0, 1, false, 0> {  // (mu, x, log_theta, gate_logits)
  VAEFAST_MAP {
    T b = negative_binomial(in[0], in[1], in[2]);
    auto zero = in[1] == splat<T>(0);
    // where x > 0, the nll is b - ln(1 - gate), and 1 - gate = (1 - t / (1 + t)) e^-max(gate_logits, 0)
    ZeroInflation<T> z = zero_inflation(in[3], select(zero, b, splat<T>(0)));
    T u = select(zero, z.rest * z.expm1, -z.t * z.inverse);
    T log = log1p_parts(u, select(zero, z.zero, z.inverse)).log;
    sum[0] = select(zero, z.scale, b + Native<T>::at_least(in[3], splat<T>(0))) - log;
  }
};

struct ZeroInflatedNegativeBinomialNLLBackward : Density<4, 1, 3, 0, false, 0> {  // -> grad_mu, …_theta, …_gate_logits
  VAEFAST_MAP {
    using S = Scalar<T>;
    NegativeBinomialGradient<T> g = negative_binomial_gradient(in[0], in[1], in[2]);
    auto zero = in[1] == splat<T>(0);
    ZeroInflation<T> z = zero_inflation(in[3], select(zero, g.zero_nll, splat<T>(0)));
    T inverse = S(1) / z.zero, not_gated = z.rest * z.exp * inverse;  // where the zero came from
    T scale = product(row[0], select(zero, not_gated, splat<T>(1)));
    out[0] = product(scale, g.mu);
    out[1] = product(scale, g.log_theta);
    out[2] = product(row[0], z.gate * select(zero, z.rest * z.expm1 * inverse, splat<T>(1)));
  }
};

// ---- binomial ----

// With y = total - x, X = x + 1, Y = y + 1, S = X + Y and delta = logits - ln(X / Y), the nll is
//   total ln(Y / S + X / S e^delta) - x delta
//   + ln(2 pi X Y (total + 1)^2 / S^3) / 2 + stirling(1/X) + stirling(1/Y) - stirling(1/S).
// x and y are exchanged where y is less, or where the less one has become near certain (e^delta would overflow).
// x = 0 and y = 0 leave total softplus(+-logits).
struct BinomialNLLForward : Density<3, 0, 0, 1, false, 0> {  // (logits, x, total) -> nll
  VAEFAST_MAP {
    using S = Scalar<T>;
    T logits = in[0], x = in[1], total = in[2], y = total - x;
    T X = x + S(1), Y = y + S(1), t = S(1) / (X + Y), inverse = S(1) / (X * Y);
    Split<T> s = split(X * X * inverse);
    T low = Native<T>::multiply_add(s.e, splat<T>(ExpConstants<S>::ln2_lo), log1p_reduced(s.g));
    T delta = Native<T>::multiply_add(s.e, splat<T>(-ExpConstants<S>::ln2_hi), logits) - low;
    auto x_least = x <= y;
    auto by_x = x_least == (select(x_least, delta, -delta) < S(30));
    T A = select(by_x, X, Y), B = select(by_x, Y, X), a = select(by_x, x, y);
    delta = select(by_x, delta, -delta);

    auto none = x == splat<T>(0);
    auto edge = none | (y == splat<T>(0));
    T towards = select(none, logits, -logits);
    Exp<T> e = exp_parts(select(edge, minus_absolute(logits), delta));
    T u = select(edge, e.exp, A * e.expm1 * t), ratio = select(edge, e.exp + S(1), (B + A * e.exp) * t);
    Log1p<T> spread = log1p_parts(u, ratio);
    // near the mean total u - a delta is written out, and no first order is left to cancel
    T linear = (total - (a + a)) * t * delta + total * (A * t) * e.excess;
    T logs = select(absolute(delta) < S(1), linear - total * spread.excess, total * spread.log - a * delta);

    T choose = half_log(S(kTwoPi) * (X * t) * (Y * t) * ((total + S(1)) * t * (total + S(1))));
    choose += stirling(Y * inverse) + stirling(X * inverse) - stirling(t);
    T certain = product(total, Native<T>::at_least(towards, splat<T>(0)) + spread.log);
    T nll = select(edge, certain, logs + choose);
    sum[0] = select((x < S(0)) | (y < S(0)), splat<T>(kInfinity<T>), nll);
  }
};

struct BinomialNLLBackward : Density<3, 1, 1, 0, false, 0> {  // (logits, x, total; grad) -> grad_logits
  VAEFAST_MAP {
    Logistic<T> l = logistic(in[0]);
    out[0] = product(row[0], (in[2] - in[1]) * l.sigmoid - in[1] * l.complement);
  }
};

// ---- beta-binomial ----

// alpha = c sigmoid(logits) and beta = c sigmoid(-logits) for the concentration c
template <class T>
struct Beta {
  T alpha, beta, sum;
};

template <class T>
VF_FN Beta<T> beta_shapes(Logistic<T> l, T log_concentration) {
  T sum = shape(log_concentration), least = splat<T>(Shape<Scalar<T>>::least);
  T alpha = Native<T>::at_least(sum * l.sigmoid, least), beta = Native<T>::at_least(sum * l.complement, least);
  return {alpha, beta, alpha + beta};
}

// With y = total - x, X = x + 1, Y = y + 1, S = X + Y, A = alpha + 1, B = beta + 1, P = A + B, M = S + alpha + beta,
// the nll is
//   x ln(X M / (S (X + alpha))) + y ln(Y M / (S (Y + beta)))
//   + alpha ln(A M / (P (X + alpha))) + beta ln(B M / (P (Y + beta)))
//   + ln(2 pi X Y A B M^3 / (S^3 (X + alpha) (Y + beta) P^3)) / 2
//   + stirling of 1/X, 1/Y, 1/A, 1/B, 1/M, less that of 1/S, 1/P, 1/(X + alpha), 1/(Y + beta)
//   + ln((total + 1) (x + alpha) (y + beta) c (c + 1) / (alpha beta (total + c) (total + c + 1))),
// where the last logarithm's factors below 1 (alpha, beta, c) are taken out, for shapes of any smallness.
struct BetaBinomialNLLForward : Density<4, 0, 0, 1, false, 0> {  // (logits, x, total, log_concentration) -> nll
  static constexpr bool heavy = true;
  VAEFAST_MAP {
    using S = Scalar<T>;
    T x = in[1], total = in[2], y = total - x, log_c = in[3];
    T zero = splat<T>(0), one = splat<T>(1);
    Logistic<T> l = logistic(in[0]);
    Beta<T> shapes = beta_shapes(l, log_c);
    T alpha = shapes.alpha, beta = shapes.beta, c = shapes.sum;
    T X = x + S(1), Y = y + S(1), A = alpha + S(1), B = beta + S(1), P = A + B, M = X + Y + c;
    T inverse_counts = S(1) / (X * Y), inverse_shapes = S(1) / (A * B);
    T t_total = S(1) / (X + Y), t_sum = S(1) / P, t_alpha = S(1) / (X + alpha), t_beta = S(1) / (Y + beta);

    T off = Native<T>::multiply_add(X, beta, -(Y * alpha));  // shared: its rounding cancels to second order
    T off_shapes = off + ((x - y) + (alpha - beta));
    T ratio_x = X * t_alpha * (M * t_total), ratio_y = Y * t_beta * (M * t_total);
    T nll = x * log1p_parts(off * t_total * t_alpha, ratio_x).log;
    nll += y * log1p_parts(-off * t_total * t_beta, ratio_y).log;
    nll += alpha * log1p_parts(-off_shapes * t_sum * t_alpha, A * t_alpha * (M * t_sum)).log;
    nll += beta * log1p_parts(off_shapes * t_sum * t_beta, B * t_beta * (M * t_sum)).log;

    nll += stirling(Y * inverse_counts) + stirling(X * inverse_counts) - stirling(t_total);
    nll += stirling(B * inverse_shapes) + stirling(A * inverse_shapes) - stirling(t_sum);
    nll += stirling(S(1) / M) - stirling(t_alpha) - stirling(t_beta);

    auto take_alpha = (x > S(0)) & (alpha < S(1)), take_beta = (y > S(0)) & (beta < S(1));
    auto take_c = c < S(1);
    T factor = (total + S(1)) * ((c + S(1)) / (total + c + S(1)));
    factor *= select(take_c, one, c) / (total + c);
    factor *= select(x == zero, one, (x + alpha) / select(take_alpha, one, alpha));
    factor *= select(y == zero, one, (y + beta) / select(take_beta, one, beta));
    nll +=
        half_log(S(kTwoPi) * ratio_x * ratio_y * (A * t_sum) * (B * t_sum) * (M * t_sum * t_total) * (factor * factor));
    T times = select(take_alpha, one, zero) + select(take_beta, one, zero) - select(take_c, one, zero);
    nll -= product(times, log_c) + select(take_alpha, l.log, zero) - select(take_beta, l.softplus, zero);

    nll = select(total == zero, zero, nll);
    sum[0] = select((x < S(0)) | (y < S(0)), splat<T>(kInfinity<T>), nll);
  }
};

// With D = x beta - y alpha, u = -D / (c (x + alpha)) and v = D / (c (y + beta)), and h = digamma_difference:
//   d/dlog_concentration = alpha ln(1 + u) + beta ln(1 + v) - h(x, alpha) - h(y, beta) + h(total, c), and
//   d/dlogits = c p (1 - p) (ln(1 + u) - ln(1 + v)) + p h(y, beta) - (1 - p) h(x, alpha), p = sigmoid(logits).
struct BetaBinomialNLLBackward : Density<4, 1, 2, 0, false, 0> {  // (…; grad) -> grad_logits, grad_log_concentration
  static constexpr bool heavy = true;
  VAEFAST_MAP {
    using S = Scalar<T>;
    T x = in[1], total = in[2], y = total - x;
    Logistic<T> l = logistic(in[0]);
    Beta<T> shapes = beta_shapes(l, in[3]);
    T alpha = shapes.alpha, beta = shapes.beta, c = shapes.sum;
    T inverse_x = S(1) / (x + alpha), inverse_y = S(1) / (y + beta), inverse_c = S(1) / c;
    T off = Native<T>::multiply_add(x, beta, -(y * alpha)) * inverse_c, grown = (total + c) * inverse_c;
    T u = -off * inverse_x, v = off * inverse_y;
    Log1p<T> a = log1p_parts(u, alpha * inverse_x * grown), b = log1p_parts(v, beta * inverse_y * grown);
    // near 0 what alpha u + beta v leaves is written out, and no first order is left to cancel
    auto near = (absolute(u) < S(0.25)) & (absolute(v) < S(0.25));
    T second_order = (off * inverse_x) * (off * inverse_y) * c - (alpha * a.excess + beta * b.excess);
    T ratios = select(near, second_order, alpha * a.log + beta * b.log);
    T x_part = digamma_difference(x, alpha).value(), y_part = digamma_difference(y, beta).value();
    T part = digamma_difference(total, c).value() - (x_part + y_part);
    out[0] = product(row[0], alpha * l.complement * (a.log - b.log) + (l.sigmoid * y_part - l.complement * x_part));
    out[1] = product(row[0], ratios + part);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
