// Two values that take every step side by side. A density is a chain of operations that wait for each other; with two
// chains in turn the processor has something to do meanwhile.
#pragma once
#include "cpu/simd.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

template <class V>
struct Pair {
  V first, second;
};

template <class V>
VF_FN Pair<V> pair(V first, V second) {
  return {first, second};
}

// With a pair, and with what is not one and goes to both.
#define VAEFAST_BOTH(op)                                   \
  template <class A, class B>                              \
  VF_FN auto operator op(Pair<A> a, Pair<B> b) {           \
    return pair(a.first op b.first, a.second op b.second); \
  }                                                        \
  template <class A, class B>                              \
  VF_FN auto operator op(Pair<A> a, B b) {                 \
    return pair(a.first op b, a.second op b);              \
  }                                                        \
  template <class A, class B>                              \
  VF_FN auto operator op(A a, Pair<B> b) {                 \
    return pair(a op b.first, a op b.second);              \
  }
// clang-format off
#define VAEFAST_CHANGE(op)                     \
  template <class A, class B>                  \
  VF_FN void operator op##=(Pair<A>& a, B b) { \
    a = a op b;                                \
  }
VAEFAST_BOTH(+) VAEFAST_BOTH(-) VAEFAST_BOTH(*) VAEFAST_BOTH(/) VAEFAST_BOTH(&) VAEFAST_BOTH(|) VAEFAST_BOTH(^)
VAEFAST_BOTH(<<) VAEFAST_BOTH(>>) VAEFAST_BOTH(<) VAEFAST_BOTH(>) VAEFAST_BOTH(<=) VAEFAST_BOTH(>=) VAEFAST_BOTH(==)
VAEFAST_BOTH(!=)
VAEFAST_CHANGE(+) VAEFAST_CHANGE(-) VAEFAST_CHANGE(*);
// clang-format on
#undef VAEFAST_BOTH
#undef VAEFAST_CHANGE

template <class V>
VF_FN Pair<V> operator-(Pair<V> a) {
  return {-a.first, -a.second};
}

template <class V>
VF_FN Pair<V> operator~(Pair<V> a) {
  return {~a.first, ~a.second};
}

template <class V>
struct Lanes<Pair<V>> {
  using Scalar = vaefast::Scalar<V>;
  using Int = Pair<vaefast::Int<V>>;
  using Uint = Pair<vaefast::Uint<V>>;
};

template <class To, class V>
VF_FN To bits(Pair<V> from) {
  return {bits<decltype(To::first)>(from.first), bits<decltype(To::second)>(from.second)};
}

template <class To, class V>
VF_FN To convert(Pair<V> from) {
  return {convert<decltype(To::first)>(from.first), convert<decltype(To::second)>(from.second)};
}

template <class Mask, class V>
VF_FN Pair<V> select(Pair<Mask> mask, Pair<V> yes, Pair<V> no) {
  return {select(mask.first, yes.first, no.first), select(mask.second, yes.second, no.second)};
}

template <class V>
VF_FN Pair<V> exact_sqrt(Pair<V> x) {
  return {exact_sqrt(x.first), exact_sqrt(x.second)};
}

template <class V>
VF_FN void multiply_wide(Pair<V> a, uint32_t m, Pair<V>& hi, Pair<V>& lo) {
  multiply_wide(a.first, m, hi.first, lo.first);
  multiply_wide(a.second, m, hi.second, lo.second);
}

template <class V>
struct Native<Pair<V>> {
  using P = Pair<V>;
  using N = Native<V>;
  VF_FN static P at_most(P x, P bound) {
    return {N::at_most(x.first, bound.first), N::at_most(x.second, bound.second)};
  }
  VF_FN static P at_least(P x, P bound) {
    return {N::at_least(x.first, bound.first), N::at_least(x.second, bound.second)};
  }
  VF_FN static P multiply_add(P a, P b, P c) {
    return {N::multiply_add(a.first, b.first, c.first), N::multiply_add(a.second, b.second, c.second)};
  }
  VF_FN static P scale(P x, P k, Int<P> n) {
    return {N::scale(x.first, k.first, n.first), N::scale(x.second, k.second, n.second)};
  }
  VF_FN static P scale_down(P x, P k, Int<P> n) {
    return {N::scale_down(x.first, k.first, n.first), N::scale_down(x.second, k.second, n.second)};
  }
};

template <class V>
VF_FN void fill(Pair<V>& v, const Scalar<V>* from) {
  fill(v.first, from);
  fill(v.second, from + sizeof(V) / sizeof(*from));
}

template <class V>
VF_FN void store(Scalar<V>* to, Pair<V> v) {
  store(to, v.first);
  store(to + sizeof(V) / sizeof(*to), v.second);
}

template <class V>
VF_FN void stream(Scalar<V>* to, Pair<V> v) {
  stream(to, v.first);
  stream(to + sizeof(V) / sizeof(*to), v.second);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
