// The `rows` walk on NVIDIA GPUs.
//
// The draw is cut into packs of consecutive elements: 16 bytes of a tensor, 4 elements at least, hence one Philox block
// or two. A group of 1, 2, 4 ... 1024 threads owns a row, or a piece of a long one, and each of its threads maps a pack
// or two. Where a row begins inside a pack, two rows share the pack and each masks the other's elements. Sums go
// through shuffles and shared memory in one fixed order; the pieces of a long row are added up by a second kernel.
// Nothing depends on the device or on the order of the blocks.
//
// Tensors of one type whose packs are aligned take `map_packs`, all of a thread's loads in flight before the first is
// used; any other strides, types and weights take `map_elements`. Elements that are stacks of planes take `map_planes`.
//
// Predicted for float32 from sm_90 machine code, not measured (rsample_kl_forward; _backward): 12; 20 bytes and about
// 111; 114 instructions an element, 60 of them the noise; at most 64 registers, so 1024 threads and 64; 96 KiB of loads
// in flight on a multiprocessor. At 132 multiprocessors of 128 lanes and 1.7 GHz that is 3.1; 5.0 TB/s, so an H100 is
// bound by memory in both, an H200 by instructions in the forward; half types are bound by instructions on both.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <type_traits>

#include "cuda/device.h"
#include "cuda/math.h"
//
#include "density/noise.h"
#include "density/table.h"
#include "walk.h"

namespace vaefast::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;  // in a block
constexpr int kLeastThreads = 128;
constexpr int kPieceThreads = 256;  // of a group that owns a piece of a row
constexpr int kPlanesEach = 8;      // elements of a thread, where they are stacks of planes
constexpr int kEndless = 1 << 20;   // elements, more than a piece has

template <int N>
constexpr int kAtLeast1 = N > 0 ? N : 1;

// S is what is stored.
template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;
template <class S>
constexpr int kPack = sizeof(S) == 2 ? 8 : 4;  // elements
template <class S>
constexpr int kPacks = sizeof(S) == 4 ? 2 : 1;  // of a thread: 8 elements, 4 doubles
// In a block: 1024 threads leave each 64 registers, which doubles do not fit in.
template <class S>
constexpr int kThreads = sizeof(S) == 8 ? kMostThreads / 2 : kMostThreads;
template <class S>
constexpr DType kDType = std::is_same_v<S, double>   ? DType::float64
                         : std::is_same_v<S, float>  ? DType::float32
                         : std::is_same_v<S, __half> ? DType::float16
                                                     : DType::bfloat16;

template <class S>
struct alignas(16) Pack {
  S values[kPack<S>];
};

// A pack as it is loaded and stored, by intrinsics: the compiler takes plain 16-byte accesses apart.
template <class S>
struct Words {
  uint4 words[sizeof(Pack<S>) / 16];
};

// What a kernel is told: the part of Walk that the density has, and how the work is cut.
template <class D, class C>
struct Task {
  int64_t rows, cols;
  int group_log2;  // threads that own a row or a piece of one
  Elements inputs[kAtLeast1<D::inputs>], outputs[kAtLeast1<D::outputs>], weight;
  Rows row_inputs[kAtLeast1<D::row_inputs>], row_outputs[kAtLeast1<D::row_outputs>];
  C params[kAtLeast1<D::params>];
  C* pieces;  // [row output, row, piece] where rows are cut
  const int64_t* seed;
};

// A pack of a row: the column of its first element, negative where the row begins inside it, and which of its elements
// [from, to) belong to the row.
struct Span {
  int64_t col;
  int from, to;

  __device__ __forceinline__ bool has(int j) const { return j >= from && j < to; }
  template <class S>
  __device__ __forceinline__ bool is_whole() const {
    return from == 0 && to == kPack<S>;
  }
  template <class S>
  __device__ __forceinline__ S* first(const Elements& e, int64_t row) const {
    return static_cast<S*>(e.data) + row * e.row.stride + col;
  }
  template <class S>
  __device__ __forceinline__ uint4* words(const Elements& e, int64_t row) const {
    return reinterpret_cast<uint4*>(first<S>(e, row));
  }
};

// What a thread maps: packs of S, a group's width apart, of one row.
template <class S>
struct Share {
  int group_log2, lane;
  int64_t row, begin;  // begin: of the piece, counted from the row's first pack
  uint64_t first;      // the row's first element in the draw
  int shift;           // and in its first pack
  int from, to;        // the row's elements in the piece
  bool exists;

  template <class D, class C>
  __device__ __forceinline__ explicit Share(const Task<D, C>& task) : group_log2(task.group_log2) {
    const int64_t block = blockIdx.y + static_cast<int64_t>(gridDim.y) * blockIdx.z;
    lane = threadIdx.x & ((1 << group_log2) - 1);
    row = block * (blockDim.x >> group_log2) + (threadIdx.x >> group_log2);
    exists = row < task.rows;
    first = row * task.cols;
    shift = first % kPack<S>;
    begin = static_cast<int64_t>(blockIdx.x) * (kPack<S> * kPacks<S>) << group_log2;
    from = begin == 0 ? shift : 0;
    const int64_t left = shift + task.cols - begin;
    to = !exists ? 0 : left < kEndless ? static_cast<int>(left) : kEndless;
  }

  __device__ __forceinline__ Span span(int pack) const {
    const int at = (lane + (pack << group_log2)) * kPack<S>;
    return {begin - shift + at, max(from - at, 0), min(max(to - at, 0), kPack<S>)};
  }
};

// The normals of these Philox blocks.
template <int N>
__device__ __forceinline__ void normals(const uint64_t (&blocks)[N], const int64_t* seed, float* to) {
  const uint64_t key = seed[0], offset = seed[1];
  const uint32_t offset_lo = static_cast<uint32_t>(offset), offset_hi = static_cast<uint32_t>(offset >> 32);
  Counter<uint32_t, uint32_t, uint32_t, uint32_t> w[N];
#pragma unroll
  for (int q = 0; q < N; ++q)
    w[q] = philox4x32(
        counter(static_cast<uint32_t>(blocks[q]), static_cast<uint32_t>(blocks[q] >> 32), offset_lo, offset_hi), key);
#pragma unroll
  for (int q = 0; q < N; ++q) {
    box_muller(w[q].a, w[q].b, to[4 * q], to[4 * q + 1]);
    box_muller(w[q].c, w[q].d, to[4 * q + 2], to[4 * q + 3]);
  }
}

template <class S>
__device__ __forceinline__ Pack<S> load(const Elements& e, int64_t row, const Span& span) {
  if (span.is_whole<S>()) {
    Words<S> w;
    for (int i = 0; i < static_cast<int>(sizeof(w) / 16); ++i) w.words[i] = __ldg(span.words<S>(e, row) + i);
    return bits<Pack<S>>(w);
  }
  Pack<S> pack = {};
#pragma unroll
  for (int j = 0; j < kPack<S>; ++j)
    if (span.has(j)) pack.values[j] = span.first<S>(e, row)[j];
  return pack;
}

template <class S>
__device__ __forceinline__ void store(const Elements& e, int64_t row, const Span& span, const Pack<S>& pack) {
  if (span.is_whole<S>()) {
    const auto w = bits<Words<S>>(pack);
    for (int i = 0; i < static_cast<int>(sizeof(w) / 16); ++i) __stwb(span.words<S>(e, row) + i, w.words[i]);
    return;
  }
#pragma unroll
  for (int j = 0; j < kPack<S>; ++j)
    if (span.has(j)) span.first<S>(e, row)[j] = pack.values[j];
}

// The sums of N numbers over a group, in its first thread. Every thread of the block takes part.
template <int N, class C>
__device__ __forceinline__ void add_group(C* values, int group, int lane) {
  __shared__ C of_warp[N][kMostThreads / kWarp];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    if (offset < group)
#pragma unroll
      for (int k = 0; k < N; ++k) values[k] += __shfl_xor_sync(0xffffffffu, values[k], offset);
  if (group <= kWarp) return;
  const int warp = threadIdx.x / kWarp;
  if (lane % kWarp == 0)
    for (int k = 0; k < N; ++k) of_warp[k][warp] = values[k];
  __syncthreads();
  if (lane == 0)
    for (int k = 0; k < N; ++k)
      for (int i = 1; i < group / kWarp; ++i) values[k] += of_warp[k][warp + i];
}

template <class D, class C, class Place>
__device__ __forceinline__ void load_rows(const Task<D, C>& task, const Place& share, C* of_row) {
#pragma unroll
  for (int i = 0; i < D::row_inputs; ++i) {
    const Rows& from = task.row_inputs[i];
    of_row[i] = share.exists ? static_cast<const C*>(from.data)[share.row * from.stride] : 0;
  }
}

template <class D, class C, class Place>
__device__ __forceinline__ void store_sums(const Task<D, C>& task, const Place& share, C* sums) {
  if constexpr (D::row_outputs > 0) {
    add_group<D::row_outputs>(sums, 1 << share.group_log2, share.lane);
    if (share.lane != 0 || !share.exists) return;
#pragma unroll
    for (int k = 0; k < D::row_outputs; ++k) {
      const Rows& to = task.row_outputs[k];
      C* sum = gridDim.x == 1 ? static_cast<C*>(to.data) + share.row * to.stride
                              : task.pieces + (k * task.rows + share.row) * gridDim.x + blockIdx.x;
      *sum = sums[k];
    }
  }
}

// Tensors of one type S, whose packs lie together and aligned.
template <class D, class S>
__global__ void __launch_bounds__(kThreads<S>) map_packs(const Task<D, Compute<S>> task) {
  using C = Compute<S>;
  constexpr int P = kPack<S>, U = kPacks<S>, Q = P / 4;
  const Share<S> share(task);

  Pack<S> in[U][kAtLeast1<D::inputs>];
#pragma unroll
  for (int u = 0; u < U; ++u)
#pragma unroll
    for (int i = 0; i < D::inputs; ++i) in[u][i] = load<S>(task.inputs[i], share.row, share.span(u));
  C of_row[kAtLeast1<D::row_inputs>], sums[kAtLeast1<D::row_outputs>] = {};
  load_rows(task, share, of_row);
  float eps[U * P] = {};
  if constexpr (D::noise) {
    uint64_t blocks[U * Q];
#pragma unroll
    for (int q = 0; q < U * Q; ++q) blocks[q] = (share.first + share.span(q / Q).col) / 4 + q % Q;
    normals(blocks, task.seed, eps);
  }

#pragma unroll
  for (int u = 0; u < U; ++u) {
    const Span span = share.span(u);
    if (span.from >= span.to) continue;
    Pack<S> out[kAtLeast1<D::outputs>];
    C terms[kAtLeast1<D::row_outputs>][P];
#pragma unroll
    for (int j = 0; j < P; ++j) {
      C x[kAtLeast1<D::inputs>], y[kAtLeast1<D::outputs>], term[kAtLeast1<D::row_outputs>];
#pragma unroll
      for (int i = 0; i < D::inputs; ++i) x[i] = static_cast<C>(in[u][i].values[j]);
      Whole<D>()(x, of_row, static_cast<C>(eps[u * P + j]), task.params, y, term);
#pragma unroll
      for (int i = 0; i < D::outputs; ++i) out[i].values[j] = static_cast<S>(y[i]);
#pragma unroll
      for (int k = 0; k < D::row_outputs; ++k) terms[k][j] = term[k];
    }
#pragma unroll
    for (int i = 0; i < D::outputs; ++i)
      if (task.outputs[i].data != nullptr) store<S>(task.outputs[i], share.row, span, out[i]);
    const bool is_whole = span.is_whole<S>();
#pragma unroll
    for (int k = 0; k < D::row_outputs; ++k)
#pragma unroll
      for (int j = 0; j < P; ++j) sums[k] += is_whole || span.has(j) ? terms[k][j] : 0;
  }
  store_sums(task, share, sums);
}

template <class C>
__device__ __forceinline__ C read(const Elements& e, int64_t at) {
  switch (e.dtype) {
    case DType::float32:
      return static_cast<const float*>(e.data)[at];
    case DType::float64:
      return static_cast<const double*>(e.data)[at];
    case DType::float16:
      return static_cast<float>(static_cast<const __half*>(e.data)[at]);
    case DType::bfloat16:
      return static_cast<float>(static_cast<const __nv_bfloat16*>(e.data)[at]);
    case DType::int32:
      return static_cast<const int32_t*>(e.data)[at];
    case DType::int64:
      return static_cast<const int64_t*>(e.data)[at];
    default:
      return static_cast<const uint8_t*>(e.data)[at];
  }
}

template <class C>
__device__ __forceinline__ void write(const Elements& e, int64_t at, C value) {
  switch (e.dtype) {
    case DType::float32:
      static_cast<float*>(e.data)[at] = value;
      break;
    case DType::float64:
      static_cast<double*>(e.data)[at] = value;
      break;
    case DType::float16:
      static_cast<__half*>(e.data)[at] = static_cast<__half>(static_cast<float>(value));
      break;
    default:
      static_cast<__nv_bfloat16*>(e.data)[at] = static_cast<__nv_bfloat16>(static_cast<float>(value));
  }
}

__device__ __forceinline__ int64_t offset(const Elements& e, int64_t row, int64_t col) {
  const int64_t segment = static_cast<uint64_t>(col) / static_cast<uint64_t>(e.col.segment);  // unsigned is cheaper
  return row * e.row.stride + segment * e.col.segment_stride + (col - segment * e.col.segment) * e.col.stride;
}

// Tensors of any strides and types, weighed or not: one element after the other, in the order in which map_packs<D, S>
// adds them, so that sums do not depend on the strides. The 1 lets the compiler take the registers that it needs;
// without it, it spills to fit more threads.
template <class D, class S>
__global__ void __launch_bounds__(kThreads<S>, 1) map_elements(const Task<D, Compute<S>> task) {
  using C = Compute<S>;
  const Share<S> share(task);
  C of_row[kAtLeast1<D::row_inputs>], sums[kAtLeast1<D::row_outputs>] = {};
  load_rows(task, share, of_row);
#pragma unroll 1
  for (int quad = 0; quad < kPacks<S> * kPack<S> / 4; ++quad) {
    const Span span = share.span(quad * 4 / kPack<S>);
    const int at = quad * 4 % kPack<S>, to = min(span.to, at + 4);
    float eps[4] = {};
    if constexpr (D::noise) normals({(share.first + span.col + at) / 4}, task.seed, eps);
#pragma unroll 1
    for (int j = max(span.from, at); j < to; ++j) {
      C x[kAtLeast1<D::inputs>], y[kAtLeast1<D::outputs>], term[kAtLeast1<D::row_outputs>];
      C weight = 1, weighed[kAtLeast1<D::row_inputs>];
      const int64_t col = span.col + j;
      if (task.weight.data != nullptr) weight = read<C>(task.weight, offset(task.weight, share.row, col));
#pragma unroll
      for (int i = 0; i < D::inputs; ++i) x[i] = read<C>(task.inputs[i], offset(task.inputs[i], share.row, col));
#pragma unroll
      for (int i = 0; i < D::row_inputs; ++i) weighed[i] = product(weight, of_row[i]);
      const float e = j == at ? eps[0] : j == at + 1 ? eps[1] : j == at + 2 ? eps[2] : eps[3];
      Whole<D>()(x, weighed, static_cast<C>(e), task.params, y, term);
#pragma unroll
      for (int i = 0; i < D::outputs; ++i)
        if (task.outputs[i].data != nullptr) write(task.outputs[i], offset(task.outputs[i], share.row, col), y[i]);
#pragma unroll
      for (int k = 0; k < D::row_outputs; ++k) sums[k] += product(weight, term[k]);
    }
  }
  store_sums(task, share, sums);
}

// The planes of one element.
template <class C>
struct Stack {
  const Elements* e;
  int64_t first, planes;
  bool wanted;

  Stack() = default;
  __device__ __forceinline__ Stack(const Elements& e, int64_t row, int64_t col)
      : e(&e), first(0), planes(e.planes), wanted(e.data != nullptr) {
    if (wanted) first = offset(e, row, col);
  }
  __device__ __forceinline__ C operator[](int64_t plane) const { return read<C>(*e, first + plane * e->plane_stride); }
  __device__ __forceinline__ C at(C plane) const { return (*this)[static_cast<int64_t>(plane)]; }
  __device__ __forceinline__ void put(int64_t plane, C value) const {
    if (wanted) write(*e, first + plane * e->plane_stride, value);
  }
};

struct Nothing {  // a thread has no room to keep a stack
  static constexpr bool kept = false;
};

// Where a thread works: its group owns a row, or a piece of one.
struct Lane {
  int group_log2, lane;
  int64_t row;
  bool exists;
};

// Stacks of planes of any strides and types, weighed or not: a thread an element, neighbours side by side.
template <class D, class C>
__global__ void __launch_bounds__(kPieceThreads, 1) map_planes(const Task<D, C> task) {
  const int group = 1 << task.group_log2, threads = blockDim.x;
  const int64_t block = blockIdx.y + static_cast<int64_t>(gridDim.y) * blockIdx.z;
  const int64_t row = block * (threads >> task.group_log2) + (threadIdx.x >> task.group_log2);
  const Lane share{task.group_log2, static_cast<int>(threadIdx.x) & (group - 1), row, row < task.rows};
  C of_row[kAtLeast1<D::row_inputs>], sums[kAtLeast1<D::row_outputs>] = {};
  load_rows(task, share, of_row);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPlanesEach * group;
#pragma unroll 1
  for (int j = 0; j < kPlanesEach; ++j) {
    const int64_t col = begin + j * group + share.lane;
    if (!share.exists || col >= task.cols) break;
    Stack<C> in[D::inputs], out[kAtLeast1<D::outputs>];
    for (int i = 0; i < D::inputs; ++i) in[i] = Stack<C>(task.inputs[i], row, col);
    for (int i = 0; i < D::outputs; ++i) out[i] = Stack<C>(task.outputs[i], row, col);
    C weight = 1, weighed[kAtLeast1<D::row_inputs>], term[kAtLeast1<D::row_outputs>];
    if (task.weight.data != nullptr) weight = read<C>(task.weight, offset(task.weight, row, col));
    for (int i = 0; i < D::row_inputs; ++i) weighed[i] = product(weight, of_row[i]);
    D()(in, weighed, task.params, out, term, Nothing{});
    for (int k = 0; k < D::row_outputs; ++k) sums[k] += product(weight, term[k]);
  }
  store_sums(task, share, sums);
}

// One block a row: the sum of its pieces.
template <class C>
__global__ void __launch_bounds__(kMostThreads) add_pieces(const C* pieces, int64_t count, Rows to) {
  const int64_t row = blockIdx.x;
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) total += pieces[row * count + i];
  add_group<1>(&total, blockDim.x, threadIdx.x);
  if (threadIdx.x == 0) static_cast<C*>(to.data)[row * to.stride] = static_cast<C>(total);
}

// ---- host ----

struct Cut {
  int group_log2;
  int64_t pieces;  // of a row
  int threads;     // in a block
};

template <class S>
Cut cut(int64_t rows, int64_t cols, bool sums) {
  constexpr int64_t pack = kPack<S>, packs = kPacks<S>;
  const int64_t shift = rows == 1 ? 0 : pack - std::gcd(cols, pack);  // the most that a row begins inside its pack
  const int64_t row_packs = divide_up(cols + shift, pack);
  // a row that is summed stays in one block where it can, which saves the second kernel
  const int64_t most = sums ? kThreads<S> : kPieceThreads;
  const bool whole_row = row_packs <= most * packs;
  const int64_t threads = whole_row ? divide_up(row_packs, packs) : kPieceThreads;
  int group_log2 = 0;
  while (1 << group_log2 < threads) ++group_log2;
  const int64_t pieces = whole_row ? 1 : divide_up(row_packs, packs << group_log2);
  return {group_log2, pieces, std::max(1 << group_log2, kLeastThreads)};
}

Cut cut_planes(int64_t cols) {
  int group_log2 = 0;
  while (1 << group_log2 < std::min<int64_t>(cols, kPieceThreads)) ++group_log2;
  return {group_log2, std::max<int64_t>(divide_up(cols, kPlanesEach << group_log2), 1), kPieceThreads};
}

bool dense_rows(const Elements& e, int64_t cols) { return e.col.stride == 1 && e.col.segment >= cols; }

template <class S>
bool dense_packs(const Elements& e, int64_t rows, int64_t cols) {
  return dense_rows(e, cols) && e.dtype == kDType<S> && reinterpret_cast<uintptr_t>(e.data) % alignof(Pack<S>) == 0 &&
         (rows == 1 || (e.row.stride - cols) % kPack<S> == 0);
}

template <class D, class C>
void launch(void (*kernel)(Task<D, C>), Task<D, C>& task, const Cut& cut, cudaStream_t stream) {
  task.group_log2 = cut.group_log2;
  // x: pieces of a row; y and z, which hold 65535 each: blocks of rows
  const int64_t blocks = divide_up(task.rows, cut.threads >> cut.group_log2), z = divide_up(blocks, 65535);
  const dim3 grid(cut.pieces, divide_up(blocks, z), z);
  void* arguments[] = {&task};
  check(cudaLaunchKernel(kernel, grid, dim3(cut.threads), arguments, 0, stream));
  if (cut.pieces == 1) return;
  int threads = kWarp;
  while (threads < kMostThreads && threads < cut.pieces) threads *= 2;
  for (Rows& to : task.row_outputs) {
    if (to.data == nullptr) continue;
    const C* pieces = task.pieces + (&to - task.row_outputs) * task.rows * cut.pieces;
    int64_t count = cut.pieces;
    void* arguments[] = {&pieces, &count, &to};
    check(cudaLaunchKernel(add_pieces<C>, dim3(task.rows), dim3(threads), arguments, 0, stream));
  }
}

template <class D, class C>
Task<D, C> as_task(const Walk& walk) {
  Task<D, C> task{};
  task.rows = walk.rows, task.cols = walk.cols;
  task.weight = walk.weight, task.seed = walk.seed, task.pieces = static_cast<C*>(walk.pieces);
  std::copy_n(walk.inputs, D::inputs, task.inputs);
  std::copy_n(walk.outputs, D::outputs, task.outputs);
  std::copy_n(walk.row_inputs, D::row_inputs, task.row_inputs);
  std::copy_n(walk.row_outputs, D::row_outputs, task.row_outputs);
  std::copy_n(walk.params, D::params, task.params);
  return task;
}

template <class D, class C>
void run_planes(const Walk& walk, cudaStream_t stream) {
  Task<D, C> task = as_task<D, C>(walk);
  if (task.rows == 0 || (task.cols == 0 && D::row_outputs == 0)) return;
  launch(map_planes<D, C>, task, cut_planes(task.cols), stream);
}

template <class D, class S>
void run(const Walk& walk, cudaStream_t stream) {
  using C = Compute<S>;
  Task<D, C> task = as_task<D, C>(walk);
  auto all = [&](auto holds) {
    auto unused_or_holds = [&](const Elements& e) { return e.data == nullptr || holds(e); };
    return std::all_of(task.inputs, task.inputs + D::inputs, unused_or_holds) &&
           std::all_of(task.outputs, task.outputs + D::outputs, unused_or_holds);
  };
  auto contiguous = [&](const Elements& e) {
    return dense_rows(e, walk.cols) && (walk.rows == 1 || e.row.stride == walk.cols);
  };
  if (D::row_inputs + D::row_outputs == 0 && all(contiguous)) {  // then nothing depends on what a row is
    task.rows = 1, task.cols = walk.rows * walk.cols;
    for (Elements& e : task.inputs) e.col.segment = task.cols;
    for (Elements& e : task.outputs) e.col.segment = task.cols;
  }
  if (task.rows == 0 || (task.cols == 0 && D::row_outputs == 0)) return;
  const Cut cut = cuda::cut<S>(task.rows, task.cols, D::row_outputs > 0);
  if constexpr (!D::heavy)
    if (task.weight.data == nullptr && all([&](const Elements& e) { return dense_packs<S>(e, task.rows, task.cols); }))
      return launch(map_packs<D, S>, task, cut, stream);
  launch(map_elements<D, std::conditional_t<sizeof(S) == 2, __half, S>>, task, cut, stream);  // which cuts like S
}

template <class D>
void run_density(const Walk& walk, cudaStream_t stream) {
  if constexpr (D::planes) {
    return walk.wide ? run_planes<D, double>(walk, stream) : run_planes<D, float>(walk, stream);
  } else {
    switch ((D::inputs ? walk.inputs : walk.outputs)[0].dtype) {
      case DType::float32:
        return run<D, float>(walk, stream);
      case DType::float64:
        return run<D, double>(walk, stream);
      case DType::float16:
        return run<D, __half>(walk, stream);
      case DType::bfloat16:
        return run<D, __nv_bfloat16>(walk, stream);
      default:
        throw std::runtime_error("the first tensor of a walk must be floating-point");
    }
  }
}

struct Entry {
  const char* name;
  void (*run)(const Walk&, cudaStream_t);
  bool planes;
};

#define VAEFAST_ENTRY(name, D) {name, run_density<D>, D::planes},
constexpr Entry kEntries[] = {VAEFAST_DENSITIES(VAEFAST_ENTRY)};

}  // namespace

// Numbers that Walk::pieces must have room for, for each row output and row; at 1 it is not used.
int64_t pieces(const char* density, const Walk& walk) {
  const Entry* entry = find(kEntries, density);
  if (entry != nullptr && entry->planes) return cut_planes(walk.cols).pieces;
  switch (walk.inputs[0].dtype) {
    case DType::float32:
      return cut<float>(walk.rows, walk.cols, true).pieces;
    case DType::float64:
      return cut<double>(walk.rows, walk.cols, true).pieces;
    default:
      return cut<__half>(walk.rows, walk.cols, true).pieces;
  }
}

// False: no density of that name. Throws std::runtime_error with CUDA's own words.
bool run_rows(const char* density, const Walk& walk, int device, void* stream) {
  const Entry* entry = find(kEntries, density);
  if (entry == nullptr) return false;
  CurrentDevice current(device);
  entry->run(walk, static_cast<cudaStream_t>(stream));
  return true;
}

}  // namespace vaefast::cuda
