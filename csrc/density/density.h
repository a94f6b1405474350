// A density says how many tensors it reads and writes, and maps one element (or one vector of them):
//   in[], row[]   elementwise inputs, numbers of the element's row
//   eps           the element's noise, where `noise`
//   p[]           params
//   out[], sum[]  elementwise outputs, terms that the walk adds up over the row
#pragma once
#include "density/math.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

template <int Inputs, int RowInputs, int Outputs, int RowOutputs, bool Noise, int Params>
struct Density {
  static constexpr int inputs = Inputs, row_inputs = RowInputs, outputs = Outputs, row_outputs = RowOutputs;
  static constexpr int params = Params;
  static constexpr bool noise = Noise, planes = false;
  static constexpr bool later = false;  // what it writes is read when other work is done: it need not stay in caches
  static constexpr bool data_gradient = false;  // the last output is the gradient of the data, which few ask for
  static constexpr bool log1p = false;          // the row's sum is that of sum[0] + ln(1 + sum[1]), sum[1] in [0, 1]
  static constexpr bool heavy = false;  // needs more registers than a GPU thread has for several elements at once
};

// A density whose elements are stacks of planes: in[i][k] is the k-th number of the element's i-th input, one of
// in[i].planes, and in[i].at(index) the number that an index names. Its outputs are gradients of the inputs, plane for
// plane: out[i].put(k, value), and out[i].wanted says whether anyone asked for them. With `Scratch`, `work` keeps
// in[0].planes numbers until the element is done, where there is room for them (Work::kept).
template <int Inputs, int RowInputs, int Outputs, int RowOutputs, int Params, bool Scratch = false>
struct PlanesDensity : Density<Inputs, RowInputs, Outputs, RowOutputs, false, Params> {
  static_assert(Outputs <= Inputs);
  static constexpr bool planes = true, scratch = Scratch;
  // Works so long on an element that a CPU would lose the lines of its planes, which may share a cache set: copy them.
  static constexpr bool staged = Scratch;
};

// What a density maps, for T = float, double or a vector of either.
#define VAEFAST_MAP                                                                                          \
  template <class T>                                                                                         \
  VF_FN void operator()([[maybe_unused]] const T* in, [[maybe_unused]] const T* row, [[maybe_unused]] T eps, \
                        [[maybe_unused]] const Scalar<T>* p, [[maybe_unused]] T* out, [[maybe_unused]] T* sum) const

// The density with its logarithm taken. The CPU's walk takes fewer: ln(1 + s) + ln(1 + t) is that of a product.
template <class D>
struct Whole {
  VAEFAST_MAP {
    if constexpr (D::log1p) {
      T terms[2];
      D()(in, row, eps, p, out, terms);
      sum[0] = terms[0] + log1p_unit(terms[1]);
    } else {
      D()(in, row, eps, p, out, sum);
    }
  }
};

#define VAEFAST_MAP_PLANES                                                                                             \
  template <class T, class In, class Out, class Work>                                                                  \
  VF_FN void operator()([[maybe_unused]] const In* in, [[maybe_unused]] const T* row,                                  \
                        [[maybe_unused]] const Scalar<T>* p, [[maybe_unused]] const Out* out, [[maybe_unused]] T* sum, \
                        [[maybe_unused]] const Work& work) const

// Terms and their gradients in one pass: the compiler shares what the two densities have in common.
template <class Forward, class Backward>
struct WithGradient
    : Density<Forward::inputs, Backward::row_inputs, Backward::outputs, Forward::row_outputs, false, Forward::params> {
  static constexpr bool log1p = Forward::log1p, data_gradient = Backward::data_gradient;
  VAEFAST_MAP {
    Forward()(in, row, eps, p, out, sum);
    Backward()(in, row, eps, p, out, sum);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
