// The `rows` walk on the CPU. Compiled once per instruction set (VAEFAST_ISA names the copy).
//
// The elements are cut into tiles of at most kTile, whole rows where rows are short, else pieces of one row. A tile is
// staged in the first-level cache: inputs of any strides and type become contiguous floats (a contiguous float32
// input is read where it lies), the noise is made beside them, the density maps vectors, and row sums are added up.
// Tiles depend on the sizes alone, so results do not depend on the number of threads. Where elements are stacks of
// planes a tile holds so many fewer of them that it stays in the caches.
#ifdef _OPENMP
#include <omp.h>
#endif

#include <new>
#include <type_traits>

#include "cpu/normals.h"
#include "cpu/pair.h"
#include "cpu/stacks.h"
#include "density/table.h"
#include "walk.h"

namespace vaefast {
inline namespace VAEFAST_ISA {
namespace {

constexpr int kTile = 1024;
constexpr int kPlanesTile = 16384;  // numbers in a tile of stacks, those read and those written
constexpr int kRound = 16;          // to which tiles of stacks are cut: alike for every instruction set
constexpr std::align_val_t kCacheLine{64};
constexpr int64_t kCached = 1 << 20;  // a walk that touches more bytes finds its first outputs evicted
constexpr int64_t kParallel = 32768;  // elements below which starting threads costs more than it gains

struct Tile {
  int64_t row, col;
  int rows, cols;  // rows == 1, or col == 0 and cols == walk.cols
  int size() const { return rows * cols; }
};

int64_t offset(const Axis& axis, int64_t i) {
  return i / axis.segment * axis.segment_stride + i % axis.segment * axis.stride;
}

// Visit a tensor's runs of equal stride within the tile: f(offset in the tensor, offset in the tile, length, stride).
template <class F>
VF_FN void for_each_run(const Elements& e, const Tile& tile, F f) {
  int at = 0;
  auto visit = [&](const Axis& axis, int64_t base, int64_t from, int count) {
    for (int64_t end = from + count; from < end;) {
      int64_t segment = from / axis.segment, within = from - segment * axis.segment;
      int64_t left = axis.segment - within;
      int length = static_cast<int>(left < end - from ? left : end - from);
      f(base + segment * axis.segment_stride + within * axis.stride, at, length, axis.stride);
      at += length;
      from += length;
    }
  };
  if (tile.cols == 1) return visit(e.row, offset(e.col, tile.col), tile.row, tile.rows);
  for (int r = 0; r < tile.rows; ++r) visit(e.col, offset(e.row, tile.row + r), tile.col, tile.cols);
}

bool one_run(const Axis& axis, int64_t from, int64_t count) { return from % axis.segment + count <= axis.segment; }

bool lies_flat(const Elements& e, const Tile& tile) {
  bool rows = tile.rows == 1 || (e.row.stride == tile.cols && one_run(e.row, tile.row, tile.rows));
  return rows && (tile.cols == 1 || (e.col.stride == 1 && one_run(e.col, tile.col, tile.cols)));
}

// Planes go to, and come from, places that are `pitch` apart.
template <class S, class C>
void gather(const Elements& e, const Tile& tile, C* to, int64_t pitch) {
  auto data = static_cast<const S*>(e.data);
  for_each_run(e, tile, [&](int64_t from, int at, int length, int64_t stride) {
    if (e.planes > 1 && e.plane_stride == 1) return turn(data + from, stride, length, e.planes, to + at, pitch);
    for (int64_t k = 0; k < e.planes; ++k) {
      const S* source = data + from + k * e.plane_stride;
      C* target = to + at + k * pitch;
      if (stride == 1)
        for (int i = 0; i < length; ++i) target[i] = static_cast<C>(widen(source[i]));
      else if (stride == 0)
        for (C value = static_cast<C>(widen(*source)), *end = target + length; target < end;) *target++ = value;
      else
        for (int i = 0; i < length; ++i) target[i] = static_cast<C>(widen(source[i * stride]));
    }
  });
}

template <class S, class C>
void scatter(const Elements& e, const Tile& tile, const C* from, int64_t pitch) {
  auto data = static_cast<S*>(e.data);
  for_each_run(e, tile, [&](int64_t to, int at, int length, int64_t stride) {
    if (e.planes > 1 && e.plane_stride == 1) return turn(from + at, pitch, e.planes, length, data + to, stride);
    for (int64_t k = 0; k < e.planes; ++k) {
      S* target = data + to + k * e.plane_stride;
      const C* source = from + at + k * pitch;
      if (stride == 1)
        for (int i = 0; i < length; ++i) narrow(static_cast<float_or_double<S>>(source[i]), target[i]);
      else
        for (int i = 0; i < length; ++i) narrow(static_cast<float_or_double<S>>(source[i]), target[i * stride]);
    }
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
void read(const Elements& e, const Tile& tile, C* buffer, int64_t pitch = 0) {
  switch (e.dtype) {
    case DType::float32:
      return gather<float>(e, tile, buffer, pitch);
    case DType::float64:
      return gather<double>(e, tile, buffer, pitch);
    case DType::float16:
      return gather<Float16>(e, tile, buffer, pitch);
    case DType::bfloat16:
      return gather<BFloat16>(e, tile, buffer, pitch);
    case DType::boolean:
    case DType::uint8:
      return gather<uint8_t>(e, tile, buffer, pitch);
    case DType::int32:
      return gather<int32_t>(e, tile, buffer, pitch);
    case DType::int64:
      return gather<int64_t>(e, tile, buffer, pitch);
  }
}

template <class C>
void write(const Elements& e, const Tile& tile, const C* buffer, int64_t pitch = 0) {
  switch (e.dtype) {
    case DType::float32:
      return scatter<float>(e, tile, buffer, pitch);
    case DType::float64:
      return scatter<double>(e, tile, buffer, pitch);
    case DType::float16:
      return scatter<Float16>(e, tile, buffer, pitch);
    case DType::bfloat16:
      return scatter<BFloat16>(e, tile, buffer, pitch);
    default:
      return;  // integers are never written
  }
}

// A vector of noise, which is float32 whatever the walk computes in.
VF_FN void widen_noise(F32& v, const float* from) { fill(v, from); }
VF_FN void widen_noise(F64& v, const float* from) {
  VectorOfBytes<float, kBytes / 2>::Type narrow;
  memcpy(&narrow, from, sizeof(narrow));
  v = convert<F64>(narrow);
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

// One vector of an argument whose elements are stacks of planes.
template <class V>
struct Stack {
  static constexpr bool kept = true;
  Scalar<V>* data;
  int64_t pitch, planes;  // pitch: from plane to plane
  bool wanted;

  VF_FN V operator[](int64_t plane) const { return load<V>(data + plane * pitch); }
  VF_FN void put(int64_t plane, V value) const { store(data + plane * pitch, value); }
  // Asks for the next vector of every plane: the processor follows fewer streams than a stack has planes.
  template <int Write>
  VF_FN void prefetch_next() const {
    for (int64_t plane = 0; plane < planes; ++plane)
      __builtin_prefetch(data + plane * pitch + sizeof(V) / sizeof(*data), Write);
  }
  VF_FN V at(V index) const {
    V v;
    for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) v[i] = data[static_cast<int64_t>(index[i]) * pitch + i];
    return v;
  }
};

template <class D, class C>
class Runner {
  using Vector = typename VectorOf<C>::Type;
  using V = std::conditional_t<D::planes, Vector, Pair<Vector>>;
  static constexpr int kLanes = sizeof(V) / sizeof(C);
  static constexpr int kPadded = kTile + kLanes;
  template <int N>
  static constexpr int kAtLeast1 = N > 0 ? N : 1;
  static constexpr int kTerms = D::row_outputs + D::log1p;
  static constexpr int kManyCols = 8 * kFloats;  // from here on a row's product is cheaper than its logarithms

 public:
  explicit Runner(const Walk& walk) : walk_(walk) {
    for (int i = 0; i < D::params; ++i) params_[i] = static_cast<C>(walk.params[i]);
    streams_ = D::later && walk.rows * walk.cols * (D::inputs + D::outputs) * int64_t{sizeof(C)} > kCached;
    if (D::noise) seed_ = walk.seed[0], offset_ = walk.seed[1];
    if constexpr (D::planes) {
      for (int i = 0; i < D::inputs; ++i) stack_ += walk.inputs[i].planes * (D::outputs ? 2 : 1);
      if (D::scratch) scratch_ = walk.inputs[0].planes * kLanes;
      int64_t fitting = kPlanesTile / stack_ / kRound * kRound;
      planes_tile_ = static_cast<int>(fitting < kRound ? kRound : fitting < kTile ? fitting : kTile);
      pitch_ = planes_tile_ / kRound % 2 ? planes_tile_ : planes_tile_ + kRound;
    }
    pieces_ = walk.cols > most() ? (walk.cols + most() - 1) / most() : 1;
    rows_per_tile_ = walk.cols > 0 && pieces_ == 1 ? most() / walk.cols : 1;
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
    C* scratch = nullptr;  // [thread, room]
    if (D::planes) scratch = new (kCacheLine) C[room() * threads];
    [[maybe_unused]] bool parallel = threads > 1 && tiles_ > 1 && walk_.rows * walk_.cols * stack_ >= kParallel;
#pragma omp parallel num_threads(threads) if (parallel)
    {
#pragma omp for schedule(static) nowait
      for (int64_t t = 0; t < tiles_; ++t) {
        if constexpr (D::planes)
          map_planes(tile(t), scratch + thread() * room(), partial);
        else
          map(tile(t), partial);
      }
      if (streams_) streamed();  // once: it waits for all that is on its way
    }
    operator delete[](scratch, kCacheLine);
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
  // The elements of a whole tile.
  int most() const {
    if constexpr (D::planes) return planes_tile_;
    return kTile;
  }

  int64_t room() const { return stack_ * pitch_ + scratch_; }  // what a thread needs to stage a tile of stacks

  static int thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
  }

  Tile tile(int64_t t) const {
    if (pieces_ > 1) {
      int64_t col = t % pieces_ * most(), left = walk_.cols - col;
      return {t / pieces_, col, 1, static_cast<int>(left < most() ? left : most())};
    }
    int64_t row = t * rows_per_tile_, left = walk_.rows - row;
    return {row, 0, static_cast<int>(left < rows_per_tile_ ? left : rows_per_tile_), static_cast<int>(walk_.cols)};
  }

  void put_row(int k, int64_t row, C value) const {
    static_cast<C*>(walk_.row_outputs[k].data)[row * walk_.row_outputs[k].stride] = value;
  }

  // Ask the memory for `count` numbers of every input, from `at` on; there need be none.
  static void fetch(const C* const* in, int at, int count) {
    for (int line = at; line < at + count; line += 64 / static_cast<int>(sizeof(C)))
      for (int i = 0; i < D::inputs; ++i) __builtin_prefetch(in[i] + line, 0, 2);
  }

  // The normals of the tile, made in whole groups; returns where the tile's first one lies.
  // Meanwhile the memory fetches what the density will read, which would otherwise wait for it.
  const float* make_noise(const Tile& tile, float* buffer, const C* const* in) const {
    int64_t first = tile.row * walk_.cols + tile.col, group = first / kGroup;
    int skip = static_cast<int>(first - group * kGroup);
    for (int at = 0; at < skip + tile.size(); at += kNormals, group += kNormals / kGroup) {
      fetch(in, at, kNormals);
      normals(buffer + at, group, seed_, offset_);
    }
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
    [[maybe_unused]] bool wanted[kAtLeast1<D::outputs>];
    for (int i = 0; i < D::outputs; ++i) {
      wanted[i] = walk_.outputs[i].data != nullptr;
      out[i] = place(walk_.outputs[i], tile, out_buffer[i]);
    }
    for (int i = 0; i < D::row_inputs; ++i) spread_row(i, tile, row_buffer[i]);
    [[maybe_unused]] const float* eps = nullptr;
    if constexpr (D::noise) eps = make_noise(tile, noise_buffer, in);

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
      for (int i = 0; i < D::outputs; ++i)
        // what nobody asked for is not computed; a branch costs registers, so that all others are
        if (!D::data_gradient || i < D::outputs - 1 || wanted[i]) put(i, out[i] + at, y[i]);
      for (int i = 0; i < kTerms; ++i) store(sum_buffer[i] + at, s[i]);
    };
    [[maybe_unused]] bool streams[kAtLeast1<D::outputs>];  // whole aligned vectors, to the tensor itself
    for (int i = 0; i < D::outputs; ++i)
      streams[i] = streams_ && out[i] != out_buffer[i] && reinterpret_cast<uintptr_t>(out[i]) % kBytes == 0;
    int at = 0;
    for (; at + kLanes <= size; at += kLanes) {
      // where nothing is written the memory has time to spare for the next tile, which in most tensors follows
      if constexpr (!D::noise && (!D::outputs || D::later)) fetch(in, at + kTile, kLanes);
      step(
          at, [](const C* from) { return load<V>(from); },
          [&]([[maybe_unused]] int i, C* to, V v) {
            if constexpr (D::later)
              if (streams[i]) return stream(to, v);
            store(to, v);
          });
    }
    if (int rest = size - at)
      step(
          at, [rest](const C* from) { return load_some<V>(from, rest); },
          [rest](int, C* to, V v) { store_some(to, v, rest); });

    for (int i = 0; i < D::outputs; ++i)
      if (out[i] == out_buffer[i] && wanted[i]) write(walk_.outputs[i], tile, out_buffer[i]);
    const C* logs = D::log1p && as_product ? sum_buffer[D::log1p] : nullptr;
    for (int i = 0; i < D::row_outputs; ++i) add_up(i, tile, sum_buffer[i], partial, logs);
  }

  void spread_row(int i, const Tile& tile, C* to) const {
    auto data = static_cast<const C*>(walk_.row_inputs[i].data);
    for (int r = 0, at = 0; r < tile.rows; ++r) {
      C value = data[(tile.row + r) * walk_.row_inputs[i].stride];
      for (int c = 0; c < tile.cols; ++c) to[at++] = value;
    }
  }

  // logs: null, or t of the terms ln(1 + t)
  void add_up(int i, const Tile& tile, const C* terms, double* partial,
              [[maybe_unused]] const C* logs = nullptr) const {
    for (int r = 0; r < tile.rows; ++r) {
      C total = sum_of(terms + r * tile.cols, tile.cols);
      if constexpr (D::log1p)
        if (logs) total += sum_of_log1p(logs + r * tile.cols, tile.cols);
      if (partial)
        partial[(i * walk_.rows + tile.row + r) * pieces_ + tile.col / most()] = total;
      else
        put_row(i, tile.row + r, total);
    }
  }

  // The planes where they lie, if whole vectors can be read and written there, else in the scratch.
  Stack<V> place_planes(const Elements& e, int64_t planes, const Tile& tile, C*& scratch) const {
    if (!D::staged && tile.size() % kLanes == 0) {
      C* here = place(e, tile, scratch);
      if (here != scratch) return {here, e.plane_stride, planes, true};
    }
    Stack<V> stack{scratch, pitch_, planes, e.data != nullptr};
    scratch += planes * pitch_;
    return stack;
  }

  void map_planes(const Tile& tile, C* scratch, double* partial) const {
    alignas(64) C row_buffer[kAtLeast1<D::row_inputs>][D::row_inputs ? kPadded : 1];
    alignas(64) C sum_buffer[kAtLeast1<D::row_outputs>][D::row_outputs ? kPadded : 1];
    alignas(64) C weight_buffer[kPadded];
    Stack<V> in[kAtLeast1<D::inputs>], out[kAtLeast1<D::outputs>];
    const C* staged_out[kAtLeast1<D::outputs>];
    const int size = tile.size(), padded = (size + kLanes - 1) / kLanes * kLanes;
    const Stack<V> work{scratch, kLanes, scratch_ / kLanes, true};
    scratch += scratch_;

    for (int i = 0; i < D::inputs; ++i) {
      C* staged = scratch;
      in[i] = place_planes(walk_.inputs[i], walk_.inputs[i].planes, tile, scratch);
      if (in[i].data != staged) continue;
      read(walk_.inputs[i], tile, staged, pitch_);
      for (; staged < scratch; staged += pitch_)
        for (int at = size; at < padded; ++at) staged[at] = 0;
    }
    for (int i = 0; i < D::outputs; ++i) {
      staged_out[i] = scratch;
      out[i] = place_planes(walk_.outputs[i], in[i].planes, tile, scratch);
    }
    for (int i = 0; i < D::row_inputs; ++i) spread_row(i, tile, row_buffer[i]);
    if (walk_.weight.data) read(walk_.weight, tile, weight_buffer);

    for (int at = 0; at < padded; at += kLanes) {
      V row[kAtLeast1<D::row_inputs>], sum[kAtLeast1<D::row_outputs>];
      const V weight = walk_.weight.data ? load<V>(weight_buffer + at) : V{};
      for (int i = 0; i < D::row_inputs; ++i) {
        row[i] = load<V>(row_buffer[i] + at);
        if (walk_.weight.data) row[i] = weighed(row[i], weight);
      }
      if constexpr (!D::staged) {
        for (int i = 0; i < D::inputs; ++i)
          if (in[i].planes > 1) in[i].template prefetch_next<0>();
        for (int i = 0; i < D::outputs; ++i)
          if (in[i].planes > 1 && out[i].wanted) out[i].template prefetch_next<1>();
      }
      D()(in, row, params_, out, sum, work);
      for (int i = 0; i < D::row_outputs; ++i)
        store(sum_buffer[i] + at, walk_.weight.data ? weighed(sum[i], weight) : sum[i]);
      for (int i = 0; i < D::inputs; ++i) in[i].data += kLanes;
      for (int i = 0; i < D::outputs; ++i) out[i].data += kLanes;
    }

    for (int i = 0; i < D::outputs; ++i)
      if (out[i].wanted && out[i].data - padded == staged_out[i]) write(walk_.outputs[i], tile, staged_out[i], pitch_);
    for (int i = 0; i < D::row_outputs; ++i) add_up(i, tile, sum_buffer[i], partial);
  }

  const Walk& walk_;
  C params_[kAtLeast1<D::params>];
  uint64_t seed_ = 0, offset_ = 0;
  bool streams_;                       // outputs go past the caches
  int64_t stack_ = D::planes ? 0 : 1;  // numbers per element, of all inputs and outputs
  // of staged planes; the pitch is no power of 2, or they would share cache sets
  int planes_tile_ = 0, pitch_ = 0;
  int64_t scratch_ = 0;  // numbers that the density keeps beside them
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
  const Entry* entry = find(kEntries, density);
  if (entry == nullptr) return false;
  (walk.wide ? entry->wide : entry->narrow)(walk, threads);
  return true;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
