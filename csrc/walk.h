// What a walk is told: sizes, strided tensors, row tensors, the seed and the density's numbers. Shared by every
// backend.
#pragma once
#include <cstdint>

namespace vaefast {

enum class DType : int { float32, float64, float16, bfloat16, uint8, int32, int64, boolean };  // integers: inputs only
constexpr int kDTypes = 8;
constexpr int64_t kSizes[kDTypes] = {4, 8, 2, 2, 1, 4, 8, 1};  // bytes

// Where the rows, or the cols of a row, lie: (i / segment) * segment_stride + (i % segment) * stride.
struct Axis {
  int64_t segment, segment_stride, stride;
};
constexpr int64_t kAll = int64_t{1} << 62;  // a segment that nothing lies beyond

struct Elements {
  void* data;  // null: an output that nobody asked for
  DType dtype;
  Axis row, col;
  int64_t planes = 1, plane_stride = 0;  // an element is a stack of so many numbers; 1 in most tensors
};

// One number per row, in the compute type.
struct Rows {
  void* data;
  int64_t stride;
};

constexpr int kMaxElements = 8, kMaxRows = 4, kMaxParams = 8;

struct Walk {
  int64_t rows, cols;
  Elements inputs[kMaxElements], outputs[kMaxElements];
  Rows row_inputs[kMaxRows], row_outputs[kMaxRows];
  Elements weight;  // data null: none. Else each element's row terms, or its numbers of the row, are multiplied by it
  const int64_t* seed;  // (seed, offset), in the device's memory
  double params[kMaxParams];
  bool wide;     // compute in float64 instead of float32
  void* pieces;  // CUDA: room for the sums of pieces of rows, as many as cuda::pieces says
};

}  // namespace vaefast
