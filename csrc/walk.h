// What a walk is told: sizes, strided tensors, row tensors, the seed and the density's numbers. Shared by every
// backend.
#pragma once
#include <cstdint>
#include <cstring>

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

// A call of the `pairs` walk: every row's point against every col's. All tensors are contiguous and of the compute
// type.
struct Pairs {
  int64_t rows, cols, dims;
  const void* points;                          // [rows, dims]
  const void *centres, *logvar, *log_weights;  // [cols, dims], and null where the density has none; [cols] or null
  // [rows], [rows, dims]: written forward, read backward; but where no logarithm is taken, backward writes value too
  void *value, *values;
  const void *grad_value, *grad_values;        // backward: null where the density has none
  void *grad_points, *grad_centres, *grad_logvar, *grad_log_weights;
  double every, own, next;  // added to the weight of every pair, of (i, i) beyond that, of (i, i + 1 mod cols)
  int64_t first;            // the rows' own cols begin here: i is first + row
  // Of points with themselves (centres are points): each pair of two counts once, twice as much, and grad_points is the
  // gradient of the points in both their parts.
  bool symmetric;
  const double* scales;  // the density's own numbers
  int scale_count;
  bool wide;      // compute in float64 instead of float32
  bool backward;  // which needs more scratch
  void* scratch;  // in the compute type, as many as `scratch_size` says

  // Scratch is laid out in whole vectors; 16 is a multiple of every vector's lanes.
  static constexpr int64_t kAlign = 16, kMostParts = 16, kPart = 128;
  int64_t padded() const { return (cols + kAlign - 1) / kAlign * kAlign; }
  // Backward cuts the longer side into parts, each with sums of its own for the shorter side: this depends on sizes
  // alone, so results do not depend on the number of threads.
  static int64_t parts(int64_t n) { return n < 2 * kPart ? 1 : n / kPart < kMostParts ? n / kPart : kMostParts; }
  int64_t row_parts() const { return cols < rows ? parts(rows) : 1; }
  int64_t col_parts() const { return cols < rows ? 1 : parts(cols); }
  int64_t packed_size() const { return padded() * (3 * dims + 1); }
  int64_t sums_size() const { return padded() * (3 * dims + 1); }
  // A part's gradients of the points; where no logarithm is taken, which is of points alone, their values too.
  int64_t points_size() const { return rows * (dims + (logvar == nullptr)); }
  int64_t scratch_size() const {
    return packed_size() + (backward ? row_parts() * sums_size() + col_parts() * points_size() : 0);
  }
};

// The entry of a backend's table under this name, or null.
template <class Entry, int N>
const Entry* find(const Entry (&entries)[N], const char* name) {
  for (const Entry& entry : entries)
    if (strcmp(entry.name, name) == 0) return &entry;
  return nullptr;
}

}  // namespace vaefast
