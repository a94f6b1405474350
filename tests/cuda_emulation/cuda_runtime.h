// Enough of CUDA to run csrc/cuda on the CPU: tests/test_cuda.py compiles the kernels with a C++ compiler and this
// folder first on the include path. Blocks run one after the other; the threads of a block are fibers, which take turns
// in order of their index from one barrier to the next. A shuffle is two barriers of the whole block, so it is stricter
// than the hardware's: threads that leave while others wait are an error.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#define __CUDACC__
#define __global__
#define __host__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

using std::max, std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 __ldg(const uint4* from) { return *from; }
inline void __stwb(uint4* to, uint4 value) { *to = value; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kMostThreads = 1024;
constexpr size_t kStack = 1 << 16;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done;
};

inline std::vector<Fiber> fibers(kMostThreads);
inline std::function<void()> body;
inline ucontext_t scheduler;

inline void wait() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }

inline void start() {
  body();
  fibers[threadIdx.x].done = true;
}

inline void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = &scheduler;
  fiber.done = false;
  makecontext(&fiber.context, start, 0);
}

inline void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) prepare(fibers[t]);
  for (unsigned done = 0; done < threads;) {
    for (unsigned t = 0; t < threads; ++t) {
      threadIdx = dim3(t);
      if (!fibers[t].done) swapcontext(&scheduler, &fibers[t].context);
    }
    done = std::count_if(fibers.begin(), fibers.begin() + threads, [](const Fiber& f) { return f.done; });
    if (done != 0 && done != threads) throw std::logic_error("some threads left while others wait at a barrier");
  }
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static T slots[emulation::kMostThreads];
  slots[threadIdx.x] = value;
  emulation::wait();
  T other = slots[threadIdx.x ^ mask];
  emulation::wait();
  return other;
}

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
using cudaStream_t = void*;

inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

// VAEFAST_EMULATED_BLOCKS=n runs the last n blocks only, for sizes that nobody would wait for.
template <class... A>
cudaError_t cudaLaunchKernel(void (*kernel)(A...), dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t) {
  if (block.x == 0 || block.x > emulation::kMostThreads || block.y * block.z != 1 || grid.x == 0 ||
      grid.x > 0x7fffffffu || grid.y - 1 > 65534u || grid.z - 1 > 65534u)
    return cudaErrorInvalidConfiguration;
  gridDim = grid;
  blockDim = block;
  emulation::body = [&] { emulation::call(kernel, arguments, std::index_sequence_for<A...>()); };
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  const char* last = getenv("VAEFAST_EMULATED_BLOCKS");
  for (uint64_t b = last ? blocks - std::min(blocks, uint64_t(atoll(last))) : 0; b < blocks; ++b) {
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    emulation::run_block(block.x);
  }
  return cudaSuccess;
}
