// The `pairs` walk on NVIDIA GPUs: kernels/pairs.py in CUDA.
//
// A thread owns a point of one side, and the points of the other side stream past, kStream at a time, the same for all
// threads, so what is summed stays in a thread. Forward, a log-sum-exp is rescaled once for kStream cols; the sum of
// each dimension on its own is other threads'. Backward makes each pair again from the forward's results, twice: the
// cols stream past the rows, and the rows past the cols. Where one side is too short to fill a GPU, the other is cut
// into parts, whose sums are added in order; nothing needs an atomic, and parts depend on sizes alone.
//
// `pack` makes, once, what depends on a row or a col alone, and lays each number's points side by side: of rows the
// point [dims], then, backward, values and their gradients [dims each], value and its gradient; of cols mu,
// 1 / (sqrt(2) sigma) and -(logvar + log(2 pi)) / 2 [dims each; of points mu alone] and the weight. A side is padded to
// whole blocks, by cols of weight 0 and rows of gradient 0.
#include "density/math.h"
//
#include "cuda/device.h"
#include "cuda/math.h"
//
#include "density/pairs.h"
#include "walk.h"

namespace vaefast::cuda {
namespace {

constexpr int kOwn = 128;  // points of a block, one for each thread
constexpr int kStream = 16;
constexpr int64_t kBlocks = 256;    // that fill a GPU
constexpr int64_t kMostParts = 16;  // backward, where each takes room as the side's gradients do
constexpr int kMostScales = 64;

template <class C>
constexpr C kInfinity = C(__builtin_inf());

// e^x to some |x| units in its last place; below the normal range 0.
VF_FN float exp_fast(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
#else
  return expf(x);
#endif
}
VF_FN double exp_fast(double x) { return exp_only(x); }

// How the sides lie in scratch, in numbers of the compute type.
template <class D>
struct Sizes {
  int64_t rows, cols, dims, row_padded, col_padded;
  int64_t value, weight;         // where those lie in the packed sides, in numbers of a point
  int64_t row_slots, col_slots;  // sums of a point
  int64_t row_parts, col_parts;  // of what streams past
  int64_t row_size, col_size, row_sums, col_sums;

  VF_FN static int64_t padded(int64_t n) { return (n + kOwn - 1) / kOwn * kOwn; }
  VF_FN static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  VF_FN static int64_t parts(int64_t owned, int64_t streamed, int64_t most) {
    const int64_t n =
        least(least(kBlocks * kOwn / (owned > kOwn ? owned : kOwn), most), (streamed + kStream - 1) / kStream);
    return n > 1 ? n : 1;
  }

  explicit Sizes(const Pairs& p) : rows(p.rows), cols(p.cols), dims(p.dims) {
    row_padded = padded(rows), col_padded = padded(cols);
    value = (D::dimensions ? 3 : 1) * dims, weight = (D::scaled ? 3 : 1) * dims;
    row_size = (p.backward ? value + 2 : dims) * row_padded, col_size = (weight + 1) * col_padded;
    row_slots = p.backward ? dims + !D::logarithm : 1 + (D::dimensions ? dims : 0);
    col_slots = (1 + D::scaled + D::dimensions) * dims + 1;
    row_parts = parts(row_padded, cols, p.backward ? kMostParts : kBlocks),
    col_parts = parts(col_padded, rows, kMostParts);
    row_sums = row_parts * row_slots * row_padded, col_sums = p.backward ? col_parts * col_slots * col_padded : 0;
  }
  int64_t scratch() const { return row_size + col_size + row_sums + col_sums; }
};

template <class D, class C>
struct Task : Sizes<D> {
  const C *points, *centres, *logvar, *log_weights, *grad_value, *grad_values;
  C *value_out, *values_out, *grad_points, *grad_centres, *grad_logvar, *grad_log_weights;
  C *row_data, *col_data, *of_rows, *of_cols;
  C every, own, next, scales[kMostScales];
  int64_t first;
  int scale_count;
  bool backward, symmetric;

  explicit Task(const Pairs& p) : Sizes<D>(p) {
    points = static_cast<const C*>(p.points), centres = static_cast<const C*>(p.centres);
    logvar = static_cast<const C*>(p.logvar), log_weights = static_cast<const C*>(p.log_weights);
    value_out = static_cast<C*>(p.value), values_out = static_cast<C*>(p.values);
    grad_value = static_cast<const C*>(p.grad_value), grad_values = static_cast<const C*>(p.grad_values);
    grad_points = static_cast<C*>(p.grad_points), grad_centres = static_cast<C*>(p.grad_centres);
    grad_logvar = static_cast<C*>(p.grad_logvar), grad_log_weights = static_cast<C*>(p.grad_log_weights);
    row_data = static_cast<C*>(p.scratch), col_data = row_data + this->row_size;
    of_rows = col_data + this->col_size, of_cols = of_rows + this->row_sums;
    every = static_cast<C>(p.every), own = static_cast<C>(p.own), next = static_cast<C>(p.next);
    first = p.first, scale_count = p.scale_count, backward = p.backward, symmetric = p.symmetric;
    if (scale_count > kMostScales) throw std::runtime_error("the CUDA kernels take at most 64 scales");
    for (int i = 0; i < scale_count; ++i) scales[i] = static_cast<C>(p.scales[i]);
  }
};

__device__ __forceinline__ int64_t index() { return blockIdx.x * static_cast<int64_t>(kOwn) + threadIdx.x; }

// A thread a row, then a thread a col.
template <class D, class C>
__global__ void __launch_bounds__(kOwn, 1) pack(const Task<D, C> t) {
  int64_t i = index();
  const C half_largest = kLargest<C> / 2;  // no two points are infinitely far from each other, for gradients
  if (i < t.row_padded) {
    const bool there = i < t.rows;
    C* to = t.row_data + i;
    for (int64_t d = 0; d < t.dims; ++d) {
      const int64_t from = i * t.dims + d;
      C x = there ? t.points[from] : C(0);
      to[d * t.row_padded] = t.backward ? clamp(x, -half_largest, half_largest) : x;
      if (D::dimensions && t.backward) {
        to[(t.dims + d) * t.row_padded] =
            there ? Native<C>::at_least(t.values_out[from] - t.every, -kLargest<C>) : kInfinity<C>;
        to[(2 * t.dims + d) * t.row_padded] = there ? t.grad_values[from] : C(0);
      }
    }
    if (!t.backward) return;
    if (D::logarithm)
      to[t.value * t.row_padded] = there ? Native<C>::at_least(t.value_out[i] - t.every, -kLargest<C>) : kInfinity<C>;
    to[(t.value + 1) * t.row_padded] = there ? t.grad_value[i] : C(0);
    return;
  }
  i -= t.row_padded;
  if (i >= t.col_padded) return;
  const bool there = i < t.cols;
  C* to = t.col_data + i;
  C weight = 0;
  for (int64_t d = 0; d < t.dims; ++d) {
    const int64_t from = i * t.dims + d;
    C x = there ? t.centres[from] : C(0);
    to[d * t.col_padded] = t.backward ? clamp(x, -half_largest, half_largest) : x;
    if constexpr (D::scaled) {
      const C half = there ? t.logvar[from] * C(-0.5) : C(0);
      const C scale = exp_parts(half).exp * C(0.70710678118654752440), term = half - C(0.91893853320467274178);
      to[(t.dims + d) * t.col_padded] = Native<C>::at_most(scale, kLargest<C>);
      to[(2 * t.dims + d) * t.col_padded] = there ? term : -kInfinity<C>;
      weight += term;
    }
  }
  if (D::logarithm) {
    if (there && t.log_weights != nullptr) weight += t.log_weights[i];
    to[t.weight * t.col_padded] = there ? weight : -kInfinity<C>;
  } else {
    to[t.weight * t.col_padded] = there ? t.every : C(0);
  }
}

// What (row, col) has beyond the weight of every pair.
template <class D, class C>
__device__ __forceinline__ C extra(const Task<D, C>& t, int64_t row, int64_t col) {
  const int64_t own = t.first + row, next = own + 1 == t.cols ? 0 : own + 1;
  return (own == col ? t.own : C(0)) + (next == col ? t.next : C(0));
}

template <class D, class C>
__device__ __forceinline__ C scaled(C difference, C scale) {
  return D::scaled ? difference * scale : difference;
}

// y: 0 all dimensions, then each; z: part of the cols.
template <class D, class C>
__global__ void __launch_bounds__(kOwn, 1) forward(const Task<D, C> t, bool special, int64_t which_begin) {
  const int64_t row = index(), which = which_begin + blockIdx.y, part = blockIdx.z;
  const int64_t begin = which > 0 ? which - 1 : 0, end = which > 0 ? which : t.dims;
  const C* weights = t.col_data + (which > 0 ? 2 * t.dims + which - 1 : t.weight) * t.col_padded;
  C top = -kLargest<C>, total = 0;  // finite: -inf less -inf is not met
  const int64_t streams = (t.cols + kStream - 1) / kStream;
  for (int64_t s = streams * part / t.row_parts; s < streams * (part + 1) / t.row_parts; ++s) {
    const int64_t col = s * kStream;
    C weight[kStream], x[kStream];
#pragma unroll
    for (int j = 0; j < kStream; ++j) weight[j] = weights[col + j];
    if (special)
#pragma unroll
      for (int j = 0; j < kStream; ++j) weight[j] += extra(t, row, col + j);
#pragma unroll
    for (int j = 0; j < kStream; ++j) x[j] = D::logarithm ? weight[j] : C(0);
#pragma unroll 1
    for (int64_t d = begin; d < end; ++d) {
      const C point = t.row_data[d * t.row_padded + row];
      const C *mu = t.col_data + d * t.col_padded + col, *scale = mu + t.dims * t.col_padded;
#pragma unroll
      for (int j = 0; j < kStream; ++j) {
        const C u = scaled<D>(point - mu[j], D::scaled ? scale[j] : C(1));
        x[j] = Native<C>::multiply_add(-u, u, x[j]);
      }
    }
    if constexpr (D::logarithm) {
      const C before = top;
#pragma unroll
      for (int j = 0; j < kStream; ++j) top = x[j] > top ? x[j] : top;
      top = top > kLargest<C> ? kLargest<C> : top;
      total *= exp_fast(before - top);
#pragma unroll
      for (int j = 0; j < kStream; ++j) total += exp_fast(x[j] - top);
    } else {
#pragma unroll
      for (int j = 0; j < kStream; ++j) total += weight[j] * D::kernel(-x[j], t.scales, t.scale_count).value;
    }
  }
  if (D::logarithm) total = top + log(total);
  t.of_rows[(part * t.row_slots + which) * t.row_padded + row] = total;
}

template <class D, class C>
__global__ void __launch_bounds__(kOwn, 1) finish_forward(const Task<D, C> t) {
  const int64_t row = index();
  if (row >= t.rows) return;
  for (int64_t slot = 0; slot < t.row_slots; ++slot) {
    const C* sums = t.of_rows + slot * t.row_padded + row;
    C total = sums[0];
    for (int64_t part = 1; part < t.row_parts; ++part) {
      const C x = sums[part * t.row_slots * t.row_padded];
      if constexpr (D::logarithm) {
        const C top = x > total ? x : total;
        total = top + (total == x ? C(0.69314718055994530942) : log1p_unit(exp_fast(-absolute(total - x))));
      } else {
        total += x;
      }
    }
    if (D::logarithm) total += t.every;
    (slot == 0 ? t.value_out[row] : t.values_out[row * t.dims + slot - 1]) = total;
  }
}

// y: part of the side that streams past.
template <class D, class C, bool OfRows>
__global__ void __launch_bounds__(kOwn, 1) backward(const Task<D, C> t, bool special) {
  using N = Native<C>;
  const int64_t mine = index(), part = blockIdx.y, parts = OfRows ? t.row_parts : t.col_parts;
  const int64_t padded = OfRows ? t.row_padded : t.col_padded, slots = OfRows ? t.row_slots : t.col_slots;
  C* sums = (OfRows ? t.of_rows : t.of_cols) + part * slots * padded + mine;  // this thread's own
  for (int64_t slot = 0; slot < slots; ++slot) sums[slot * padded] = 0;
  const int64_t streams = ((OfRows ? t.cols : t.rows) + kStream - 1) / kStream;
  C whole = 0, value = 0;
  for (int64_t s = streams * part / parts; s < streams * (part + 1) / parts; ++s) {
    const int64_t row = OfRows ? mine : s * kStream, col = OfRows ? s * kStream : mine;
    const C *of_row = t.row_data + row, *of_col = t.col_data + col;
    auto at_row = [&](int64_t number, int j) { return of_row[number * t.row_padded + (OfRows ? 0 : j)]; };
    auto at_col = [&](int64_t number, int j) { return of_col[number * t.col_padded + (OfRows ? j : 0)]; };
    C beyond[kStream] = {}, x[kStream], slope[kStream];
    if (special)
#pragma unroll
      for (int j = 0; j < kStream; ++j) beyond[j] = extra(t, row + (OfRows ? 0 : j), col + (OfRows ? j : 0));
#pragma unroll
    for (int j = 0; j < kStream; ++j) x[j] = D::logarithm ? at_col(t.weight, j) + beyond[j] : C(0);
#pragma unroll 1
    for (int64_t d = 0; d < t.dims; ++d)
#pragma unroll
      for (int j = 0; j < kStream; ++j) {
        const C u = scaled<D>(at_row(d, j) - at_col(d, j), D::scaled ? at_col(t.dims + d, j) : C(1));
        x[j] = N::multiply_add(-u, u, x[j]);
      }
    // slope: of the loss by q; for each dimension on its own, by the square of its u
#pragma unroll
    for (int j = 0; j < kStream; ++j) {
      const C grad = at_row(t.value + 1, j);
      if constexpr (D::logarithm) {
        slope[j] = -grad * exp_fast(x[j] - at_row(t.value, j));
      } else {
        const Kernel<C> kernel = D::kernel(-x[j], t.scales, t.scale_count);
        const C weight = at_col(t.weight, j) + beyond[j];
        slope[j] = kernel.slope * weight * grad;
        value = N::multiply_add(kernel.value, weight, value);
      }
      whole += slope[j];
    }
#pragma unroll 1
    for (int64_t d = 0; d < t.dims; ++d) {
      C first = 0, second = 0, all = 0;
#pragma unroll
      for (int j = 0; j < kStream; ++j) {
        const C difference = at_row(d, j) - at_col(d, j), scale = D::scaled ? at_col(t.dims + d, j) : C(1);
        C g = slope[j];
        if constexpr (D::dimensions) {
          const C u = difference * scale;
          const C log = N::multiply_add(-u, u, at_col(2 * t.dims + d, j) + beyond[j]);
          g = N::multiply_add(-exp_fast(log - at_row(t.dims + d, j)), at_row(2 * t.dims + d, j), g);
          all += g;
        }
        const C moved = scaled<D>(g, scale) * difference;  // in this order: u may be infinite where g is 0
        if (OfRows) {
          first = N::multiply_add(moved, scale, first);
        } else {
          first += moved;
          second = N::multiply_add(moved, difference, second);
        }
      }
      sums[d * padded] += first;
      if (!OfRows && D::scaled) sums[(t.dims + d) * padded] += second;
      if (!OfRows && D::dimensions) sums[(2 * t.dims + d) * padded] += all;
    }
  }
  if (!OfRows)
    sums[(slots - 1) * padded] = whole;
  else if (!D::logarithm)
    sums[(slots - 1) * padded] = value;
}

// A thread a row, or a col.
template <class D, class C, bool OfRows>
__global__ void __launch_bounds__(kOwn, 1) finish_backward(const Task<D, C> t) {
  const int64_t i = index();
  if (i >= (OfRows ? t.rows : t.cols)) return;
  const int64_t padded = OfRows ? t.row_padded : t.col_padded, slots = OfRows ? t.row_slots : t.col_slots;
  auto total = [&](int64_t slot) {
    C sum = 0;
    for (int64_t part = 0; part < (OfRows ? t.row_parts : t.col_parts); ++part)
      sum += (OfRows ? t.of_rows : t.of_cols)[(part * slots + slot) * padded + i];
    return sum;
  };
  if (OfRows) {
    if (!D::logarithm && t.value_out != nullptr) t.value_out[i] = total(t.dims);
    if (t.grad_points == nullptr) return;
    const C each = t.symmetric ? 4 : 2;  // a point's part as a col has the same gradient
    for (int64_t d = 0; d < t.dims; ++d) t.grad_points[i * t.dims + d] = each * total(d);
    return;
  }
  const C whole = total(slots - 1);
  for (int64_t d = 0; d < t.dims; ++d) {
    const C scale = D::scaled ? t.col_data[(t.dims + d) * padded + i] : C(1);
    t.grad_centres[i * t.dims + d] = -2 * total(d) * scale;
    // du/dmu = -scale, du/dlogvar = -u / 2, and each pair's logarithm has -logvar / 2
    if (D::scaled)
      t.grad_logvar[i * t.dims + d] = (D::dimensions ? total(2 * t.dims + d) : whole) / 2 - scale * total(t.dims + d);
  }
  if (t.grad_log_weights != nullptr) t.grad_log_weights[i] = -whole;
}

// ---- host ----

template <class D, class C, class... More>
void start(void (*kernel)(Task<D, C>, More...), dim3 grid, cudaStream_t stream, Task<D, C>& task, More... more) {
  if (grid.x == 0) return;  // no points
  void* arguments[] = {&task, &more...};
  check(cudaLaunchKernel(kernel, grid, dim3(kOwn), arguments, 0, stream));
}

template <class D, class C>
void run(const Pairs& pairs, cudaStream_t stream) {
  Task<D, C> t(pairs);
  const bool special = pairs.own != 0 || pairs.next != 0;
  const unsigned rows = t.row_padded / kOwn, cols = t.col_padded / kOwn;
  start(pack<D, C>, dim3(rows + cols), stream, t);
  if (!pairs.backward) {
    for (int64_t which = 0; which < t.row_slots; which += 65535) {  // what y holds
      const unsigned count = Sizes<D>::least(t.row_slots - which, 65535);
      start(forward<D, C>, dim3(rows, count, t.row_parts), stream, t, special, which);
    }
    start(finish_forward<D, C>, dim3(rows), stream, t);
    return;
  }
  if (pairs.grad_points != nullptr || !D::logarithm) {
    start(backward<D, C, true>, dim3(rows, t.row_parts), stream, t, special);
    start(finish_backward<D, C, true>, dim3(rows), stream, t);
  }
  if (pairs.grad_centres != nullptr) {
    start(backward<D, C, false>, dim3(cols, t.col_parts), stream, t, special);
    start(finish_backward<D, C, false>, dim3(cols), stream, t);
  }
}

struct Entry {
  const char* name;
  void (*narrow)(const Pairs&, cudaStream_t);
  void (*wide)(const Pairs&, cudaStream_t);
  int64_t (*scratch)(const Pairs&);
};

template <class D>
int64_t scratch(const Pairs& pairs) {
  return Sizes<D>(pairs).scratch();
}

#define VAEFAST_ENTRY(name, D)                                  \
  {name "_forward", run<D, float>, run<D, double>, scratch<D>}, \
      {name "_backward", run<D, float>, run<D, double>, scratch<D>},
constexpr Entry kEntries[] = {VAEFAST_PAIR_DENSITIES(VAEFAST_ENTRY)};

}  // namespace

// Numbers that Pairs::scratch must have room for.
int64_t pairs_scratch(const char* density, const Pairs& pairs) {
  const Entry* entry = find(kEntries, density);
  return entry == nullptr ? 0 : entry->scratch(pairs);
}

// False: no density of that name. Throws std::runtime_error with CUDA's own words.
bool run_pairs(const char* density, const Pairs& pairs, int device, void* stream) {
  const Entry* entry = find(kEntries, density);
  if (entry == nullptr) return false;
  CurrentDevice current(device);
  (pairs.wide ? entry->wide : entry->narrow)(pairs, static_cast<cudaStream_t>(stream));
  return true;
}

}  // namespace vaefast::cuda
