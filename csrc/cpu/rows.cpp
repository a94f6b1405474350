// The `rows` walk on the CPU. Compiled once per instruction set (VAEFAST_ISA names the copy).
//
// The elements are cut into tiles of at most kTile, whole rows where rows are short, else pieces of one row. A tile is
// staged in the first-level cache: inputs of any strides and type become contiguous floats (a contiguous float32
// input is read where it lies), the noise is made beside them, the density maps vectors, and row sums are added up.
// Tiles depend on the sizes alone, so results do not depend on the number of threads.
#include <type_traits>

#include "cpu/normals.h"
#include "cpu/pair.h"
#include "density/table.h"
#include "walk.h"

namespace vaefast {
inline namespace VAEFAST_ISA {
namespace {

constexpr int kTile = 1024;
constexpr int64_t kParallel = 32768;  // elements below which starting threads costs more than it gains

struct Tile {
  int64_t row, col;
  int rows, cols;  // rows == 1, or col == 0 and cols == walk.cols
  int size() const { return rows * cols; }
};

int64_t offset(const Axis& axis, int64_t i) {
  return i / axis.segment * axis.segment_stride + i % axis.segment * axis.stride;
}

// Visit the runs of equal stride of `count` rows or cols: f(offset in the tensor, offset in the tile, length, stride).
template <class F>
VF_FN void for_each_run(const Axis& axis, int64_t from, int count, int64_t base, int at, F f) {
  for (int64_t i = from, end = from + count; i < end;) {
    int64_t segment = i / axis.segment, within = i - segment * axis.segment, left = axis.segment - within;
    int length = static_cast<int>(left < end - i ? left : end - i);
    f(base + segment * axis.segment_stride + within * axis.stride, at, length, axis.stride);
    at += length;
    i += length;
  }
}

template <class F>
VF_FN void for_each_run(const Elements& e, const Tile& tile, F f) {
  if (tile.cols == 1) return for_each_run(e.row, tile.row, tile.rows, offset(e.col, tile.col), 0, f);
  for (int r = 0; r < tile.rows; ++r)
    for_each_run(e.col, tile.col, tile.cols, offset(e.row, tile.row + r), r * tile.cols, f);
}

bool one_run(const Axis& axis, int64_t from, int64_t count) { return from % axis.segment + count <= axis.segment; }

bool lies_flat(const Elements& e, const Tile& tile) {
  bool rows = tile.rows == 1 || (e.row.stride == tile.cols && one_run(e.row, tile.row, tile.rows));
  return rows && (tile.cols == 1 || (e.col.stride == 1 && one_run(e.col, tile.col, tile.cols)));
}

template <class S, class C>
void gather(const Elements& e, const Tile& tile, C* to) {
  auto data = static_cast<const S*>(e.data);
  for_each_run(e, tile, [&](int64_t from, int at, int length, int64_t stride) {
    const S* source = data + from;
    if (stride == 1)
      for (int i = 0; i < length; ++i) to[at + i] = static_cast<C>(widen(source[i]));
    else if (stride == 0)
      for (C value = static_cast<C>(widen(*source)); length--;) to[at++] = value;
    else
      for (int i = 0; i < length; ++i) to[at + i] = static_cast<C>(widen(source[i * stride]));
  });
}

template <class S>
using float_or_double = std::conditional_t<sizeof(S) == 8, double, float>;

template <class S, class C>
void scatter(const Elements& e, const Tile& tile, const C* from) {
  auto data = static_cast<S*>(e.data);
  for_each_run(e, tile, [&](int64_t to, int at, int length, int64_t stride) {
    for (int i = 0; i < length; ++i) narrow(static_cast<float_or_double<S>>(from[at + i]), data[to + i * stride]);
  });
}

template <class C>
constexpr DType kNative = sizeof(C) == 4 ? DType::float32 : DType::float64;

// Where the tile's values lie as contiguous C: in the tensor itself, or in `buffer` once filled.
template <class C>
C* place(const Elements& e, const Tile& tile, C* buffer) {
  if (e.data == nullptr || e.dtype != kNative<C> || !lies_flat(e, tile)) return buffer;
  return static_cast<C*>(e.data) + offset(e.row, tile.row) + offset(e.col, tile.col);
}

template <class C>
void read(const Elements& e, const Tile& tile, C* buffer) {
  switch (e.dtype) {
    case DType::float32:
      return gather<float>(e, tile, buffer);
    case DType::float64:
      return gather<double>(e, tile, buffer);
    case DType::float16:
      return gather<Float16>(e, tile, buffer);
    case DType::bfloat16:
      return gather<BFloat16>(e, tile, buffer);
    case DType::boolean:
    case DType::uint8:
      return gather<uint8_t>(e, tile, buffer);
    case DType::int32:
      return gather<int32_t>(e, tile, buffer);
    case DType::int64:
      return gather<int64_t>(e, tile, buffer);
  }
}

template <class C>
void write(const Elements& e, const Tile& tile, const C* buffer) {
  switch (e.dtype) {
    case DType::float32:
      return scatter<float>(e, tile, buffer);
    case DType::float64:
      return scatter<double>(e, tile, buffer);
    case DType::float16:
      return scatter<Float16>(e, tile, buffer);
    case DType::bfloat16:
      return scatter<BFloat16>(e, tile, buffer);
    default:
      return;  // integers are never written
  }
}

// A vector of noise, which is float32 whatever the walk computes in.
VF_FN void widen_noise(F32& v, const float* from) { fill(v, from); }
VF_FN void widen_noise(F64& v, const float* from) {
  for (int i = 0; i < kFloats / 2; ++i) v[i] = from[i];
}
template <class V>
VF_FN void widen_noise(Pair<V>& v, const float* from) {
  widen_noise(v.first, from);
  widen_noise(v.second, from + sizeof(V) / sizeof(Scalar<V>));
}

// value * weight, where a weight of 0 leaves nothing, not even of inf and NaN
template <class V>
VF_FN V weighed(V value, V weight) {
  return select(weight == splat<V>(0), splat<V>(0), value * weight);
}

// The sum of ln(1 + t), every t in [0, 1], as the logarithm of the product less 1: all is positive, so that small t
// keep their digits. Of at most kTile values none of the four products passes 2^64. Reads up to a vector past the end.
template <class S>
S sum_of_log1p(const S* values, int count) {
  using V = typename VectorOf<S>::Type;
  using Four = Pair<Pair<V>>;
  constexpr int lanes = sizeof(V) / sizeof(S), step = 4 * lanes;
  auto multiply = [](auto& product, auto t) { product = Native<decltype(t)>::multiply_add(t, product, t) + product; };
  auto product = splat<Four>(0);
  int i = 0;
  for (; i + step <= count; i += step) multiply(product, load<Four>(values + i));
  for (; i < count; i += lanes) multiply(product.first.first, load_first<V>(values + i, count - i));
  Four logs = log1p_positive(product);
  return add_lanes<S, kBytes>((logs.first.first + logs.first.second) + (logs.second.first + logs.second.second));
}

template <class D, class C>
class Runner {
  using V = Pair<typename VectorOf<C>::Type>;
  static constexpr int kLanes = sizeof(V) / sizeof(C);
  static constexpr int kPadded = kTile + kLanes;
  template <int N>
  static constexpr int kAtLeast1 = N > 0 ? N : 1;
  static constexpr int kTerms = D::row_outputs + D::log1p;
  static constexpr int kManyCols = 8 * kFloats;  // from here on a row's product is cheaper than its logarithms

 public:
  explicit Runner(const Walk& walk) : walk_(walk) {
    for (int i = 0; i < D::params; ++i) params_[i] = static_cast<C>(walk.params[i]);
    if (D::noise) seed_ = walk.seed[0], offset_ = walk.seed[1];
    pieces_ = walk.cols > kTile ? (walk.cols + kTile - 1) / kTile : 1;
    rows_per_tile_ = walk.cols > 0 && pieces_ == 1 ? kTile / walk.cols : 1;
    tiles_ = (walk.rows + rows_per_tile_ - 1) / rows_per_tile_ * pieces_;
  }

  void run(int threads) {
    if (walk_.cols == 0) {  // the sum over nothing
      for (int k = 0; k < D::row_outputs; ++k)
        for (int64_t r = 0; r < walk_.rows; ++r) put_row(k, r, 0);
      return;
    }
    double* partial = nullptr;  // [row output, row, piece]
    if (D::row_outputs && pieces_ > 1) partial = new double[D::row_outputs * walk_.rows * pieces_];
    [[maybe_unused]] bool parallel = threads > 1 && tiles_ > 1 && walk_.rows * walk_.cols >= kParallel;
#pragma omp parallel for schedule(static) num_threads(threads) if (parallel)
    for (int64_t t = 0; t < tiles_; ++t) map(tile(t), partial);
    if (partial) {
      for (int k = 0; k < D::row_outputs; ++k)
        for (int64_t r = 0; r < walk_.rows; ++r) {
          double total = 0;
          for (int64_t i = 0; i < pieces_; ++i) total += partial[(k * walk_.rows + r) * pieces_ + i];
          put_row(k, r, static_cast<C>(total));
        }
      delete[] partial;
    }
  }

 private:
  Tile tile(int64_t t) const {
    if (pieces_ > 1) {
      int64_t col = t % pieces_ * kTile, left = walk_.cols - col;
      return {t / pieces_, col, 1, static_cast<int>(left < kTile ? left : kTile)};
    }
    int64_t row = t * rows_per_tile_, left = walk_.rows - row;
    return {row, 0, static_cast<int>(left < rows_per_tile_ ? left : rows_per_tile_), static_cast<int>(walk_.cols)};
  }

  void put_row(int k, int64_t row, C value) const {
    static_cast<C*>(walk_.row_outputs[k].data)[row * walk_.row_outputs[k].stride] = value;
  }

  // The normals of the tile, made in whole groups; returns where the tile's first one lies.
  const float* make_noise(const Tile& tile, float* buffer) const {
    int64_t first = tile.row * walk_.cols + tile.col, group = first / kGroup;
    int skip = static_cast<int>(first - group * kGroup);
    for (int at = 0; at < skip + tile.size(); at += kNormals, group += kNormals / kGroup)
      normals(buffer + at, group, seed_, offset_);
    return buffer + skip;
  }

  void map(const Tile& tile, double* partial) const {
    alignas(64) C in_buffer[kAtLeast1<D::inputs>][D::inputs ? kPadded : 1];
    alignas(64) C row_buffer[kAtLeast1<D::row_inputs>][D::row_inputs ? kPadded : 1];
    alignas(64) C out_buffer[kAtLeast1<D::outputs>][D::outputs ? kPadded : 1];
    alignas(64) C sum_buffer[kAtLeast1<kTerms>][kTerms ? kPadded : 1];
    alignas(64) float noise_buffer[D::noise ? kGroup + kTile + kNormals : 1];
    const C* in[kAtLeast1<D::inputs>];
    C* out[kAtLeast1<D::outputs>];
    const int size = tile.size();

    for (int i = 0; i < D::inputs; ++i) {
      in[i] = place(walk_.inputs[i], tile, in_buffer[i]);
      if (in[i] == in_buffer[i]) read(walk_.inputs[i], tile, in_buffer[i]);
    }
    for (int i = 0; i < D::outputs; ++i) out[i] = place(walk_.outputs[i], tile, out_buffer[i]);
    for (int i = 0; i < D::row_inputs; ++i) {
      auto data = static_cast<const C*>(walk_.row_inputs[i].data);
      for (int r = 0, at = 0; r < tile.rows; ++r) {
        C value = data[(tile.row + r) * walk_.row_inputs[i].stride];
        for (int c = 0; c < tile.cols; ++c) row_buffer[i][at++] = value;
      }
    }
    [[maybe_unused]] const float* eps = nullptr;
    if constexpr (D::noise) eps = make_noise(tile, noise_buffer);

    alignas(64) C weight_buffer[D::row_inputs + D::row_outputs ? kPadded : 1];
    const C* weight = nullptr;
    if (D::row_inputs + D::row_outputs && walk_.weight.data) {
      weight = place(walk_.weight, tile, weight_buffer);
      if (weight == weight_buffer) read(walk_.weight, tile, weight_buffer);
    }

    [[maybe_unused]] const bool as_product = !weight && tile.cols >= kManyCols;
    C params[kAtLeast1<D::params>];  // a copy, which no store can change: what depends on it alone leaves the loop
    for (int i = 0; i < D::params; ++i) params[i] = params_[i];
    // one pair of vectors: `get` and `put` load and store it, whole or in part
    auto step = [&](int at, auto get, auto put) {
      V x[kAtLeast1<D::inputs>], row[kAtLeast1<D::row_inputs>], y[kAtLeast1<D::outputs>], s[kAtLeast1<kTerms>];
      V e{};
      for (int i = 0; i < D::inputs; ++i) x[i] = get(in[i] + at);
      for (int i = 0; i < D::row_inputs; ++i) row[i] = load<V>(row_buffer[i] + at);
      if constexpr (D::noise) widen_noise(e, eps + at);
      if (D::row_inputs && weight)
        for (int i = 0; i < D::row_inputs; ++i) row[i] = weighed(row[i], get(weight + at));
      D()(x, row, e, params, y, s);
      if constexpr (D::log1p)
        if (!as_product) s[0] = s[0] + log1p_unit(s[1]);
      if (D::row_outputs && weight)
        for (int i = 0; i < D::row_outputs; ++i) s[i] = weighed(s[i], get(weight + at));
      for (int i = 0; i < D::outputs; ++i) put(out[i] + at, y[i]);
      for (int i = 0; i < kTerms; ++i) store(sum_buffer[i] + at, s[i]);
    };
    int at = 0;
    for (; at + kLanes <= size; at += kLanes)
      step(
          at, [](const C* from) { return load<V>(from); }, [](C* to, V v) { store(to, v); });
    if (int rest = size - at)
      step(
          at, [rest](const C* from) { return load_some<V>(from, rest); },
          [rest](C* to, V v) { store_some(to, v, rest); });

    for (int i = 0; i < D::outputs; ++i)
      if (out[i] == out_buffer[i] && walk_.outputs[i].data) write(walk_.outputs[i], tile, out_buffer[i]);
    for (int i = 0; i < D::row_outputs; ++i)
      for (int r = 0; r < tile.rows; ++r) {
        C total = sum_of(sum_buffer[i] + r * tile.cols, tile.cols);
        if (D::log1p && as_product) total += sum_of_log1p(sum_buffer[D::log1p] + r * tile.cols, tile.cols);
        if (partial)
          partial[(i * walk_.rows + tile.row + r) * pieces_ + tile.col / kTile] = total;
        else
          put_row(i, tile.row + r, total);
      }
  }

  const Walk& walk_;
  C params_[kAtLeast1<D::params>];
  uint64_t seed_ = 0, offset_ = 0;
  int64_t pieces_, rows_per_tile_, tiles_;
};

struct Entry {
  const char* name;
  void (*narrow)(const Walk&, int);
  void (*wide)(const Walk&, int);
};

template <class D, class C>
void run_density(const Walk& walk, int threads) {
  Runner<D, C>(walk).run(threads);
}

#define VAEFAST_ENTRY(name, D) {name, run_density<D, float>, run_density<D, double>},
constexpr Entry kEntries[] = {VAEFAST_DENSITIES(VAEFAST_ENTRY)};

}  // namespace

// False: no density of that name.
bool run_rows(const char* density, const Walk& walk, int threads) {
  for (const Entry& entry : kEntries)
    if (strcmp(entry.name, density) == 0) {
      (walk.wide ? entry.wide : entry.narrow)(walk, threads);
      return true;
    }
  return false;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
