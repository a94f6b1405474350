// vaefast._C: the walks, called with pointers, sizes and strides. No PyTorch header, so one module serves every torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "build_facts.h"
#include "density/pairs.h"
#include "density/table.h"
#include "walk.h"

#define VAEFAST_DECLARE(isa)                                            \
  namespace isa {                                                       \
  bool run_rows(const char* density, const Walk& walk, int threads);    \
  bool run_pairs(const char* density, const Pairs& pairs, int threads); \
  }

namespace vaefast {
#ifdef VAEFAST_HAS_BASELINE
VAEFAST_DECLARE(baseline)
#endif
#ifdef VAEFAST_HAS_AVX2
VAEFAST_DECLARE(avx2)
#endif
#ifdef VAEFAST_HAS_AVX512
VAEFAST_DECLARE(avx512)
#endif
#ifdef VAEFAST_HAS_CUDA
namespace cuda {
// Throws std::runtime_error with CUDA's own words.
bool run_rows(const char* density, const Walk& walk, int device, void* stream);
int64_t pieces(const char* density, const Walk& walk);
bool run_pairs(const char* density, const Pairs& pairs, int device, void* stream);
int64_t pairs_scratch(const char* density, const Pairs& pairs);
}  // namespace cuda
#endif
}  // namespace vaefast

namespace py = pybind11;
using namespace vaefast;

namespace {

struct InstructionSet {
  const char* name;
  bool (*run_rows)(const char*, const Walk&, int);
  bool (*run_pairs)(const char*, const Pairs&, int);
  bool supported;
};

// Best first.
std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
#ifdef VAEFAST_HAS_AVX512
  sets.push_back({"avx512", avx512::run_rows, avx512::run_pairs,
                  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")});
#endif
#ifdef VAEFAST_HAS_AVX2
  sets.push_back({"avx2", avx2::run_rows, avx2::run_pairs,
                  __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")});
#endif
#ifdef VAEFAST_HAS_BASELINE
  sets.push_back({"baseline", baseline::run_rows, baseline::run_pairs, true});
#endif
  return sets;
}

const std::vector<InstructionSet>& sets() {
  static const std::vector<InstructionSet> found = instruction_sets();
  return found;
}

const InstructionSet* chosen = nullptr;

// What PyTorch lends to other C code, from dlpack.h: how a tensor lies in memory, and how that is asked without Python.
struct DLTensor {
  void* data;
  struct {
    int32_t type, index;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DLPackExchangeAPI {
  struct {
    uint32_t major, minor;
  } version;
  void *older, *allocate, *own, *give;
  int (*view)(PyObject* tensor, DLTensor* to);  // -1: a Python error is pending
};

// PyTorch's objects, as far as this module calls them.
struct Torch {
  PyObject *is_contiguous, *is_neg, *data_ptr, *dtype, *shape, *new_empty, *get_device;  // names
  PyObject *readable, *plain;                                                            // of vaefast/_layout.py
  PyObject *empty_like, *contiguous_format, *cuda_stream;
  PyObject *memory_format, *dtype_only;  // names of one keyword
  PyObject* dtypes[kDTypes];             // in the order of DType
  PyObject *tensor, *fake_mode;          // torch.Tensor; the name of what a fake one has
  PyObject *eager, *constants, *to_save, *saved_tensors, *needs_input_grad;  // names, of an Op and a Function's ctx
  PyObject* is_grad_enabled;
  PyObject* dispatch_modes;           // counts those that listen at the dispatcher
  int (*view)(PyObject*, DLTensor*);  // null: this PyTorch does not lend it, and tensors are read by their attributes
} torch_;

bool is_exact_tensor(PyObject* object) { return reinterpret_cast<PyObject*>(Py_TYPE(object)) == torch_.tensor; }

[[noreturn]] void throw_without_memory() { throw py::type_error("a walk takes no tensor without memory"); }

// Asks how a tensor lies in memory; false where only its attributes tell.
bool lend(PyObject* tensor, DLTensor* to) {
  if (torch_.view == nullptr) return false;
  if (torch_.view(tensor, to) == 0) return true;
  PyErr_Clear();
  return false;
}

// kDTypes for a type that no walk takes.
int dtype_of(const DLTensor& lent) {
  enum : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6 };
  constexpr uint8_t kinds[kDTypes][2] = {{kFloat, 32}, {kFloat, 64}, {kFloat, 16}, {kBFloat, 16},
                                         {kUInt, 8},   {kInt, 32},   {kInt, 64},   {kBool, 8}};  // in DType's order
  int i = 0;
  while (i < kDTypes && (lent.dtype.code != kinds[i][0] || lent.dtype.bits != kinds[i][1])) ++i;
  return i;
}

// A new reference that is dropped at the end of its scope; null is the pending Python error.
py::object owned(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

py::object method(PyObject* self, PyObject* name) { return owned(PyObject_CallMethodNoArgs(self, name)); }

void* pointer(PyObject* tensor) {
  void* value = PyLong_AsVoidPtr(method(tensor, torch_.data_ptr).ptr());
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

int64_t integer(PyObject* object) {
  int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

double number(PyObject* object) {
  double value = PyFloat_AsDouble(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// How a tensor lies in memory, for as long as it lives and nobody changes it.
class Tensor {
 public:
  void* data;
  DType dtype;
  int64_t ndim;
  const int64_t* shape;
  const int64_t* strides = nullptr;  // null where only Python knows them
  bool contiguous;
  bool usual = false;  // contiguous, with the strides that a new tensor has, also where they do not count
  PyObject* object;

  explicit Tensor(PyObject* tensor) : object(tensor) {
    // asking a fake tensor for its memory would only earn PyTorch's warning, once, which hides the error
    if (!is_exact_tensor(tensor) && PyObject_HasAttr(tensor, torch_.fake_mode)) throw_without_memory();
    DLTensor lent;
    if (lend(tensor, &lent) && dtype_of(lent) < kDTypes)
      take(lent);
    else
      ask();
  }
  Tensor(const Tensor&) = delete;

  int64_t product(int64_t from, int64_t to) const {
    int64_t result = 1;
    for (int64_t i = from; i < to; ++i) result *= shape[i];
    return result;
  }
  int64_t product(int64_t from) const { return product(from, ndim); }

 private:
  std::vector<int64_t> sizes_;

  void take(const DLTensor& lent) {
    dtype = static_cast<DType>(dtype_of(lent));
    data = static_cast<char*>(lent.data) + lent.byte_offset;
    ndim = lent.ndim;
    shape = lent.shape;
    strides = lent.strides;
    bool empty = false;
    contiguous = usual = true;
    for (int64_t i = ndim - 1, expected = 1; i >= 0; --i) {
      bool same = strides[i] == expected;
      usual &= same;
      contiguous &= same || shape[i] == 1;
      empty |= shape[i] == 0;
      expected *= shape[i] > 1 ? shape[i] : 1;
    }
    contiguous |= empty;
  }

  void ask() {
    data = pointer(object);
    py::object type = owned(PyObject_GetAttr(object, torch_.dtype));
    int i = 0;
    while (i < kDTypes && type.ptr() != torch_.dtypes[i]) ++i;
    if (i == kDTypes) throw py::type_error("a walk takes no tensor of this type");
    dtype = static_cast<DType>(i);
    py::object sizes = owned(PyObject_GetAttr(object, torch_.shape));
    ndim = PyTuple_GET_SIZE(sizes.ptr());
    for (int64_t d = 0; d < ndim; ++d) sizes_.push_back(integer(PyTuple_GET_ITEM(sizes.ptr(), d)));
    shape = sizes_.data();
    contiguous = method(object, torch_.is_contiguous).ptr() == Py_True;
  }
};

// Whether a tensor's memory holds its values: not those of a negative that PyTorch has put off, nor of zeros without
// memory.
bool is_plain(const Tensor& seen) {
  return seen.data != nullptr && method(seen.object, torch_.is_neg).ptr() != Py_True;
}

// Where a tensor that is read has its values; `keep` holds what had to be made for it.
void* read_pointer(const Tensor& seen, std::vector<py::object>& keep) {
  if (is_plain(seen)) return seen.data;
  keep.push_back(owned(PyObject_CallOneArg(torch_.plain, seen.object)));
  void* made = pointer(keep.back().ptr());
  if (made == nullptr && seen.product(0) != 0) throw_without_memory();
  return made;
}

// An elementwise argument of a walk: a tensor, a half of its chunk(2, dim), or all its planes along dim, of which each
// is an argument of the walk's shape.
struct Argument {
  PyObject* tensor;
  int64_t dim = -1, half = -1;

  Argument(PyObject* tensor, int64_t dim, int64_t half = -1) : tensor(tensor), dim(dim), half(half) {}
  // A tensor, (tensor, dim, which half) or (tensor, dim).
  explicit Argument(PyObject* given) : tensor(given) {
    if (!PyTuple_Check(given)) return;
    tensor = PyTuple_GET_ITEM(given, 0);
    dim = integer(PyTuple_GET_ITEM(given, 1));
    if (PyTuple_GET_SIZE(given) == 3) half = integer(PyTuple_GET_ITEM(given, 2));
  }

  bool whole() const { return dim < 0; }
  bool planes() const { return dim >= 0 && half < 0; }
  // How many pieces along its dimension it takes or is taken from.
  int64_t parts(const Tensor& seen) const { return whole() ? 1 : planes() ? seen.shape[dim] : 2; }
  py::object for_python() const {
    py::handle t = tensor;
    if (whole()) return py::reinterpret_borrow<py::object>(t);
    return planes() ? py::object(py::make_tuple(t, dim)) : py::object(py::make_tuple(t, dim, half));
  }
};

// A call of the `rows` walk: the walk itself, and what must live until it has run.
struct Call {
  Walk walk{};  // outputs that nobody asked for stay null
  std::vector<py::object> keep;
  int64_t batch_ndim;
  int row_levels;  // of strides that the walk knows among the rows

  // first: the argument whose shape is that of all
  Call(int row_levels, int64_t batch_ndim, const Argument& first) : batch_ndim(batch_ndim), row_levels(row_levels) {
    Tensor seen(first.tensor);
    if (batch_ndim > seen.ndim) throw py::value_error("batch_ndim must not be above the number of dimensions");
    walk.rows = seen.product(0, batch_ndim);
    walk.cols = seen.product(batch_ndim) / first.parts(seen);
    walk.wide = seen.dtype == DType::float64;
  }

  // As vaefast/ops calls a walk.
  Call(int row_levels, int64_t batch_ndim, const py::tuple& inputs, const py::tuple& row_inputs,
       const py::tuple& outputs, const py::tuple& row_outputs, const py::object& seed, const py::tuple& params,
       const py::object& weight)
      : Call(row_levels, batch_ndim, Argument(py::object((inputs.empty() ? outputs : inputs)[0]).ptr())) {
    limit(inputs.size(), kMaxElements), limit(outputs.size(), kMaxElements);
    limit(row_inputs.size(), kMaxRows), limit(row_outputs.size(), kMaxRows), limit(params.size(), kMaxParams);
    for (size_t i = 0; i < inputs.size(); ++i) element(Argument(inputs[i].ptr()), walk.inputs[i]);
    if (!weight.is_none()) element(Argument(weight.ptr()), walk.weight);
    for (size_t i = 0; i < outputs.size(); ++i)
      if (!outputs[i].is_none()) element(Argument(outputs[i].ptr()), walk.outputs[i]);
    for (size_t i = 0; i < row_inputs.size(); ++i) row(row_inputs[i].ptr(), walk.row_inputs[i]);
    for (size_t i = 0; i < row_outputs.size(); ++i) row(row_outputs[i].ptr(), walk.row_outputs[i]);
    if (!seed.is_none()) walk.seed = static_cast<const int64_t*>(read_pointer(Tensor(seed.ptr()), keep));
    for (size_t i = 0; i < params.size(); ++i) walk.params[i] = number(params[i].ptr());
  }

  static void limit(size_t count, int most) {
    if (count > static_cast<size_t>(most)) throw py::value_error("too many arguments for a walk");
  }

  // fresh: a new tensor, whose memory needs no second look
  void element(const Argument& argument, Elements& to, bool fresh = false) {
    Tensor seen(argument.tensor);
    to = {nullptr, seen.dtype, {kAll, 0, walk.cols}, {walk.cols, 0, 1}};
    if (!seen.contiguous) {
      PyObject* tensor = strided(argument, to);
      to.data = read_pointer(Tensor(tensor), keep);
      return;
    }
    int64_t offset = 0;
    if (!argument.whole()) {
      int64_t count = argument.parts(seen), segment = seen.product(argument.dim) / count;
      to.row.stride = count * walk.cols;
      to.col.segment = segment;
      to.col.segment_stride = count * segment;
      if (argument.planes()) {
        to.planes = count;
        to.plane_stride = segment;
      } else {
        offset = argument.half * segment * kSizes[static_cast<int>(to.dtype)];
      }
    }
    to.data = static_cast<char*>(fresh ? seen.data : read_pointer(seen, keep)) + offset;
  }

  // Python finds the layout of what is not contiguous, or copies; returns the tensor to read.
  PyObject* strided(const Argument& argument, Elements& to) {
    keep.push_back(
        py::reinterpret_borrow<py::object>(torch_.readable)(argument.for_python(), batch_ndim, walk.cols, row_levels));
    PyObject* layout = PyTuple_GET_ITEM(keep.back().ptr(), 1);
    int64_t level[6];
    for (int i = 0; i < 6; ++i) level[i] = integer(PyTuple_GET_ITEM(layout, i));
    to.row = {level[4], level[5], level[0]};
    to.col = {level[1], level[2], level[3]};
    PyObject* tensor = PyTuple_GET_ITEM(keep.back().ptr(), 0);
    if (argument.planes()) {
      auto read = py::reinterpret_borrow<py::object>(tensor);
      to.planes = read.attr("size")(argument.dim).cast<int64_t>();
      to.plane_stride = read.attr("stride")(argument.dim).cast<int64_t>();
    }
    return tensor;
  }

  void row(PyObject* tensor, Rows& to) {
    Tensor seen(tensor);
    if (seen.contiguous) {
      to = {read_pointer(seen, keep), 1};
    } else if (seen.ndim == 1 && seen.strides && is_plain(seen)) {  // a mean's gradient is one number, expanded
      to = {seen.data, seen.strides[0]};
    } else {
      keep.push_back(py::reinterpret_borrow<py::object>(tensor).attr("contiguous")());
      to = {read_pointer(Tensor(keep.back().ptr()), keep), 1};
    }
  }
};

// A call of the `pairs` walk: tensors in the order below, None for what the density does not have.
struct PairsCall {
  Pairs pairs{};
  std::vector<double> scales;
  std::vector<py::object> keep;
  py::object scratch;

  PairsCall(const py::tuple& tensors, double every, double own, double next, const py::tuple& numbers, bool symmetric,
            int64_t first) {
    void* data[12] = {};
    if (tensors.size() != 12) throw py::value_error("the pairs walk takes 12 tensors");
    for (int i = 0; i < 12; ++i) {
      PyObject* tensor = PyTuple_GET_ITEM(tensors.ptr(), i);
      if (tensor != Py_None) data[i] = read_pointer(Tensor(tensor), keep);
    }
    pairs.points = data[0], pairs.centres = data[1], pairs.logvar = data[2], pairs.log_weights = data[3];
    pairs.value = data[4], pairs.values = data[5], pairs.grad_value = data[6], pairs.grad_values = data[7];
    pairs.grad_points = data[8], pairs.grad_centres = data[9];
    pairs.grad_logvar = data[10], pairs.grad_log_weights = data[11];
    pairs.every = every, pairs.own = own, pairs.next = next, pairs.symmetric = symmetric, pairs.first = first;
    for (const py::handle& number : numbers) scales.push_back(number.cast<double>());
    pairs.scales = scales.data(), pairs.scale_count = static_cast<int>(scales.size());
    py::object points = tensors[0], centres = tensors[1], grad = tensors[6];
    Tensor row_points(points.ptr()), col_points(centres.ptr());
    pairs.rows = row_points.shape[0], pairs.cols = col_points.shape[0], pairs.dims = row_points.shape[1];
    pairs.wide = row_points.dtype == DType::float64;
    pairs.backward = !grad.is_none();  // not by the pointer, which is null where there are no rows
  }

  // PyTorch's memory, which its own profiler sees
  void allocate(const py::tuple& tensors, int64_t size) {
    scratch = tensors[0].attr("new_empty")(size);
    pairs.scratch = pointer(scratch.ptr());
  }
};

int thread_count() {
#ifdef _OPENMP
  return omp_get_max_threads();  // torch.set_num_threads sets it: both share one OpenMP runtime
#else
  return 1;
#endif
}

// Runs a walk, which says whether it knows the density; while Python's other threads go on, unless it is over before
// they could.
template <class Run>
void run(const char* density, bool short_, Run walk) {
  bool known;
  {
    std::optional<py::gil_scoped_release> release;
    if (!short_) release.emplace();
    known = walk();
  }
  if (!known) throw py::key_error(std::string("no density named ") + density);
}

void run_on_cpu(const char* density, Call& call) {
  constexpr int64_t kShort = 4096;  // elements, some microseconds
  bool is_short = call.walk.rows * call.walk.cols <= kShort;
  run(density, is_short, [&] { return chosen->run_rows(density, call.walk, thread_count()); });
}

#ifdef VAEFAST_HAS_CUDA
void* stream_of(int device) {
  py::object stream = owned(PyObject_CallFunction(torch_.cuda_stream, "i", device));
  return PyLong_AsVoidPtr(stream.ptr());
}

// first_sum: the tensor of the first sums per row, null where there are none
void run_on_cuda(const char* density, Call& call, int64_t sums, PyObject* first_sum, int device, void* stream) {
  int64_t pieces = sums ? cuda::pieces(density, call.walk) : 1;
  if (pieces > 1) {  // PyTorch's memory: ordered by the stream, and a CUDA graph's own while one is captured
    call.keep.push_back(py::handle(first_sum).attr("new_empty")(sums * call.walk.rows * pieces));
    call.walk.pieces = pointer(call.keep.back().ptr());
  }
  run(density, false, [&] { return cuda::run_rows(density, call.walk, device, stream); });
}
#endif

// --- an op's fused body ---

// The same as Body in vaefast/ops/_body.py, for the walks of this module.
struct Body {
  struct Output {
    int like, wanted;  // the argument that it is like; its place in the list of those wanted, or -1
    char form;         // e: it has that one's shape; p: and its planes; h: and is written as two halves; o: one half's
    bool written;
  };
  std::string density, roles;  // a letter for each argument
  std::vector<Output> outputs;
  int sums;
  py::object rest;  // fills the outputs that are wanted and that the density does not write; None where there are none
  bool cuda;

  py::object operator()(PyObject* const* given, size_t count) const {
    if (count != roles.size()) throw py::type_error("an op was called with another number of arguments");
    int64_t batch_ndim = 1, dim = -1;
    PyObject* wanted = nullptr;
    for (size_t i = 0; i < count; ++i) {
      if (roles[i] == 'b') batch_ndim = integer(given[i]);
      if (roles[i] == 'd') dim = integer(given[i]);
      if (roles[i] == 'w') wanted = given[i];
    }
    // of a tensor in the form that its role or its output has
    auto argument = [&](PyObject* tensor, char form, int64_t half = 0) {
      if (form == 'h') return Argument(tensor, dim, half);
      return Argument(tensor, form == 'p' ? batch_ndim : -1);
    };
    size_t of_shape = roles.find_first_of("ephl");
    PyObject* first = given[of_shape];
    Call call(cuda ? 1 : 2, batch_ndim, argument(first, roles[of_shape]));
    int elements = 0, rows = 0, params = 0;
    for (size_t i = 0; i < count; ++i) switch (roles[i]) {
        case 'h':
          call.element(argument(given[i], 'h', 0), call.walk.inputs[elements++]);
          call.element(argument(given[i], 'h', 1), call.walk.inputs[elements++]);
          break;
        case 'e':
        case 'p':
          call.element(argument(given[i], roles[i]), call.walk.inputs[elements++]);
          break;
        case 'm':
          if (given[i] != Py_None) call.element(Argument(given[i]), call.walk.weight);
          break;
        case 'r':
          call.row(given[i], call.walk.row_inputs[rows++]);
          break;
        case 's':
          call.walk.seed = static_cast<const int64_t*>(read_pointer(Tensor(given[i]), call.keep));
          break;
        case 'n':
          call.walk.params[params++] = number(given[i]);
          break;
      }
    py::tuple made(outputs.size() + sums);
    bool unwritten = false;
    int written = 0;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const Output& output = outputs[i];
      bool asked = output.wanted < 0 || is_true(wanted, output.wanted);
      PyObject* like = given[output.like];
      py::object tensor = !asked               ? new_empty(like, py::int_(0), nullptr)
                          : output.form == 'o' ? empty_half(like, dim)
                                               : empty_like(like);
      if (output.written) {
        for (int half = 0; half < (output.form == 'h' ? 2 : 1); ++half, ++written)
          if (asked) call.element(argument(tensor.ptr(), output.form, half), call.walk.outputs[written], true);
      } else {
        unwritten |= asked;
      }
      made[i] = std::move(tensor);
    }
    for (int i = 0; i < sums; ++i) {
      py::object tensor = empty_rows(first, batch_ndim);
      call.walk.row_outputs[i] = {Tensor(tensor.ptr()).data, 1};
      made[outputs.size() + i] = std::move(tensor);
    }
    run_walk(call, first, sums ? PyTuple_GET_ITEM(made.ptr(), outputs.size()) : nullptr);
    if (unwritten) {
      py::tuple arguments(count);
      for (size_t i = 0; i < count; ++i) arguments[i] = py::handle(given[i]);
      rest(arguments, made);
    }
    return made.size() == 1 ? py::object(made[0]) : py::object(std::move(made));
  }

 private:
  static bool is_true(PyObject* wanted, int i) {
    py::object item = owned(PySequence_GetItem(wanted, i));
    return item.ptr() == Py_True;
  }

  static py::object empty_like(PyObject* tensor) {
    if (Tensor(tensor).usual) return owned(PyObject_CallOneArg(torch_.empty_like, tensor));  // keeps strides
    PyObject* arguments[] = {tensor, torch_.contiguous_format};
    return owned(PyObject_Vectorcall(torch_.empty_like, arguments, 1, torch_.memory_format));
  }

  static py::object new_empty(PyObject* tensor, const py::object& shape, PyObject* dtype) {
    PyObject* arguments[] = {tensor, shape.ptr(), dtype};
    return owned(PyObject_VectorcallMethod(torch_.new_empty, arguments, 2, dtype ? torch_.dtype_only : nullptr));
  }

  static py::object empty_half(PyObject* like, int64_t dim) {
    Tensor seen(like);
    py::tuple shape(seen.ndim);
    for (int64_t i = 0; i < seen.ndim; ++i) shape[i] = i == dim ? seen.shape[i] / 2 : seen.shape[i];
    return new_empty(like, shape, nullptr);
  }

  // One number per row, in the compute type of `like`.
  static py::object empty_rows(PyObject* like, int64_t batch_ndim) {
    Tensor seen(like);
    bool half = seen.dtype == DType::float16 || seen.dtype == DType::bfloat16;
    PyObject* dtype = half ? torch_.dtypes[static_cast<int>(DType::float32)] : nullptr;
    if (batch_ndim == 1) return new_empty(like, py::int_(seen.shape[0]), dtype);
    py::tuple shape(batch_ndim);
    for (int64_t i = 0; i < batch_ndim; ++i) shape[i] = seen.shape[i];
    return new_empty(like, shape, dtype);
  }

  void run_walk(Call& call, PyObject* first, PyObject* first_sum) const {
#ifdef VAEFAST_HAS_CUDA
    if (cuda) {
      int device = static_cast<int>(integer(method(first, torch_.get_device).ptr()));
      return run_on_cuda(density.c_str(), call, sums, first_sum, device, stream_of(device));
    }
#endif
    (void)first, (void)first_sum;
    run_on_cpu(density.c_str(), call);
  }
};

// What `call` returns, for Python, which takes null and a pending error for an exception.
template <class Call>
PyObject* without_exceptions(Call call) {
  try {
    return call().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* call_body(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  return without_exceptions(
      [&] { return (*static_cast<const Body*>(PyCapsule_GetPointer(self, nullptr)))(given, count); });
}

// --- what Python would ask on the way to a body, tensor by tensor ---

constexpr int kCPU = 1, kCUDA = 2;  // dlpack.h's names of devices

bool nobody_listens() { return integer(owned(PyObject_CallNoArgs(torch_.dispatch_modes)).ptr()) == 0; }

// An op as its eager caller knows it: the body that is ready for the first argument's device, where that is a plain
// tensor and nobody listens at the dispatcher; else `general`.
struct Entry {
  py::object general;
  py::dict ready;             // of vaefast/_backends.py
  py::tuple on_cpu, on_cuda;  // its keys

  py::object find(PyObject* first) const {
    DLTensor lent;
    if (!is_exact_tensor(first) || !lend(first, &lent)) return general;
    const py::tuple* key = lent.device.type == kCPU ? &on_cpu : lent.device.type == kCUDA ? &on_cuda : nullptr;
    if (key == nullptr || !nobody_listens()) return general;
    PyObject* found = PyDict_GetItemWithError(ready.ptr(), key->ptr());
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return found ? py::reinterpret_borrow<py::object>(found) : general;
  }
};

PyObject* call_entry(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  return without_exceptions([&] {
    if (count == 0) throw py::type_error("an op takes at least one argument");
    py::object run = static_cast<const Entry*>(PyCapsule_GetPointer(self, nullptr))->find(given[0]);
    return owned(PyObject_Vectorcall(run.ptr(), given, count, nullptr));
  });
}

// (batch_ndim, roles, *tensors): whether all are plain dense tensors of one shape on one device, batch_ndim is an int
// that fits it, and those whose letter in roles is f are floating and of one type (d: of any that a walk takes). What
// is not may be right all the same: Python looks, and says what is wrong.
PyObject* usual(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count < 3 || !PyLong_CheckExact(given[0]) || !PyUnicode_Check(given[1])) Py_RETURN_FALSE;
  Py_ssize_t length;
  const char* roles = PyUnicode_AsUTF8AndSize(given[1], &length);
  if (roles == nullptr) return nullptr;
  if (length != count - 2) Py_RETURN_FALSE;
  DLTensor first{}, lent;
  for (Py_ssize_t i = 2; i < count; ++i) {
    if (!is_exact_tensor(given[i]) || !lend(given[i], &lent)) Py_RETURN_FALSE;
    int dtype = dtype_of(lent);
    if (i == 2) first = lent;
    bool same = lent.device.type == first.device.type && lent.device.index == first.device.index &&
                lent.ndim == first.ndim && std::equal(lent.shape, lent.shape + lent.ndim, first.shape);
    bool floating = dtype <= static_cast<int>(DType::bfloat16) && dtype == dtype_of(first);
    if (!same || dtype == kDTypes || (roles[i - 2] == 'f' && !floating)) Py_RETURN_FALSE;
  }
  int overflow = 0;
  long batch_ndim = PyLong_AsLongAndOverflow(given[0], &overflow);
  return PyBool_FromLong(first.ndim > 0 && !overflow && batch_ndim >= 0 && batch_ndim <= first.ndim);
}

// Whether a plain tensor has memory; what is none is left alone.
bool is_alive(PyObject* arg) {
  DLTensor lent;
  return !is_exact_tensor(arg) || lend(arg, &lent);
}

// (args): whether every plain tensor of this tuple has memory, so that none is left over from a transform that ended.
PyObject* alive(PyObject*, PyObject* args) {
  if (!PyTuple_Check(args)) Py_RETURN_FALSE;
  PyObject** first = &PyTuple_GET_ITEM(args, 0);
  return PyBool_FromLong(std::all_of(first, first + PyTuple_GET_SIZE(args), is_alive));
}

// --- an op's autograd.Function ---

// What `differentiable` (vaefast/ops/_define.py) writes in Python, where the numbers are explained, without Python's
// frames. What is out of the ordinary goes there.
struct Function {
  py::object forward_op, backward_op;
  py::object slow_apply, slow_forward, slow_backward;  // Python's
  size_t tensors, saved, grads, arguments;             // arguments: of apply
  bool results, hinted;
  py::object base_apply{};  // PyTorch's, of a class with the methods below

  // Of (*arguments).
  py::object apply(PyObject* const* given, size_t count) const {
    return call(std::all_of(given, given + count, is_alive) ? base_apply : slow_apply, given, count);
  }

  // Of (ctx, *arguments).
  py::object forward(PyObject* const* given, size_t count) const {
    PyObject* hint = hinted && count > 1 ? given[1] : Py_None;
    bool made = PyTuple_Check(hint);  // `Made`
    if (count != 1 + arguments || (hint != Py_None && !made)) return call(slow_forward, given, count);
    PyObject *ctx = given[0], *const *args = given + 1 + hinted, *const *end = given + count;
    py::object result = made ? py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(hint, 0))
                             : call(get(forward_op.ptr(), torch_.eager), args, end - args);
    py::object kept = packed(args, args + saved);
    if (results) kept = owned(PySequence_Concat(kept.ptr(), as_tuple(result).ptr()));
    set(ctx, torch_.to_save, kept);
    set(ctx, torch_.constants, packed(args + tensors, end));
    return result;
  }

  // Of (ctx, *gradients of the results).
  py::object backward(PyObject* const* given, size_t count) const {
    // not to be differentiated, nor of gradients that autograd's own vmap has batched
    bool usual = owned(PyObject_CallNoArgs(torch_.is_grad_enabled)).ptr() == Py_False;
    if (!usual || !std::all_of(given + 1, given + count, is_alive)) return call(slow_backward, given, count);
    PyObject* ctx = given[0];
    py::tuple kept = get(ctx, torch_.saved_tensors);  // which a checkpoint gives once
    if (hinted && kept.size() != saved) {
      PyObject* more[] = {ctx, given[1], kept.ptr()};
      return call(slow_backward, more, 3);
    }
    std::vector<PyObject*> args(given + 1, given + count);
    py::tuple constants = get(ctx, torch_.constants);
    for (py::handle each : kept) args.push_back(each.ptr());
    for (py::handle each : constants) args.push_back(each.ptr());
    py::object wanted;
    if (hinted) {
      wanted = owned(PySequence_List(get(ctx, torch_.needs_input_grad).ptr()));
      wanted = owned(PyList_GetSlice(wanted.ptr(), 1, 1 + grads));
      args.push_back(wanted.ptr());
    }
    py::tuple made = as_tuple(call(get(backward_op.ptr(), torch_.eager), args.data(), args.size()));
    py::tuple returned(arguments);
    for (size_t i = 0; i < arguments; ++i)
      returned[i] = i < hinted || i >= hinted + grads ? py::handle(Py_None) : py::handle(made[i - hinted]);
    return returned;
  }

 private:
  static py::object call(const py::object& function, PyObject* const* given, size_t count) {
    return owned(PyObject_Vectorcall(function.ptr(), given, count, nullptr));
  }
  static py::object get(PyObject* object, PyObject* name) { return owned(PyObject_GetAttr(object, name)); }
  static void set(PyObject* object, PyObject* name, const py::object& value) {
    if (PyObject_SetAttr(object, name, value.ptr()) != 0) throw py::error_already_set();
  }
  static py::tuple packed(PyObject* const* first, PyObject* const* last) {
    py::tuple made(last - first);
    for (size_t i = 0; first + i < last; ++i) made[i] = py::handle(first[i]);
    return made;
  }
  static py::tuple as_tuple(const py::object& result) {
    return PyTuple_Check(result.ptr()) ? py::reinterpret_borrow<py::tuple>(result) : py::make_tuple(result);
  }
};

template <py::object (Function::*method)(PyObject* const*, size_t) const>
PyObject* call_function(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  return without_exceptions(
      [&] { return (static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr))->*method)(given, count); });
}

PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef entry_method = {"entry", fast(call_entry), METH_FASTCALL, nullptr};
PyMethodDef questions[] = {{"usual", fast(usual), METH_FASTCALL, nullptr}, {"alive", alive, METH_O, nullptr}, {}};

PyMethodDef function_methods[] = {{"apply", fast(call_function<&Function::apply>), METH_FASTCALL, nullptr},
                                  {"forward", fast(call_function<&Function::forward>), METH_FASTCALL, nullptr},
                                  {"backward", fast(call_function<&Function::backward>), METH_FASTCALL, nullptr}};

PyMethodDef body_method = {"body", fast(call_body), METH_FASTCALL, nullptr};

}  // namespace

#define VAEFAST_WALK_ARGUMENTS                                                                                       \
  py::arg("density"), py::arg("batch_ndim"), py::arg("inputs") = py::tuple(), py::arg("row_inputs") = py::tuple(),   \
                                             py::arg("outputs") = py::tuple(), py::arg("row_outputs") = py::tuple(), \
                                             py::arg("seed") = py::none(), py::arg("params") = py::tuple(),          \
                                             py::arg("weight") = py::none()
#define VAEFAST_PAIRS_ARGUMENTS                                                                           \
  py::arg("density"), py::arg("tensors"), py::arg("every") = 0, py::arg("own") = 0, py::arg("next") = 0,  \
                                          py::arg("numbers") = py::tuple(), py::arg("symmetric") = false, \
                                          py::arg("first") = 0

PYBIND11_MODULE(_C, m) {
  m.attr("build_facts") = VAEFAST_BUILD_FACTS;

  py::list densities;
#define VAEFAST_NAME(name, D) densities.append(name);
  VAEFAST_DENSITIES(VAEFAST_NAME)
  m.attr("densities") = py::tuple(densities);

  py::list pair_densities;
#define VAEFAST_PAIR_NAMES(name, D)       \
  pair_densities.append(name "_forward"); \
  pair_densities.append(name "_backward");
  VAEFAST_PAIR_DENSITIES(VAEFAST_PAIR_NAMES)
  m.attr("pair_densities") = py::tuple(pair_densities);

  py::list names;
  for (const auto& set : sets())
    if (set.supported) {
      names.append(set.name);
      if (chosen == nullptr) chosen = &set;
    }
  m.attr("instruction_sets") = py::tuple(names);  // those that this machine runs, best first
#ifdef __x86_64__
  m.attr("intel") = static_cast<bool>(__builtin_cpu_is("intel"));
#else
  m.attr("intel") = false;
#endif

  // dtypes: in the order of DType. exchange: torch.Tensor's capsule of this name, or None. cuda_stream(device): the
  // address of the current one.
  m.def("attach", [](const py::tuple& dtypes, const py::object& readable, const py::object& plain,
                     const py::object& exchange, const py::object& cuda_stream) {
    auto name = [](const char* text) { return PyUnicode_InternFromString(text); };
    auto keyword = [&](const char* text) { return py::make_tuple(py::reinterpret_steal<py::str>(name(text))); };
    py::module_ torch = py::module_::import("torch");
    torch_.is_contiguous = name("is_contiguous"), torch_.is_neg = name("is_neg"), torch_.data_ptr = name("data_ptr");
    torch_.dtype = name("dtype"), torch_.shape = name("shape"), torch_.get_device = name("get_device");
    torch_.new_empty = name("new_empty");
    torch_.memory_format = keyword("memory_format").release().ptr();
    torch_.dtype_only = keyword("dtype").release().ptr();
    torch_.readable = py::object(readable).release().ptr(), torch_.plain = py::object(plain).release().ptr();
    torch_.cuda_stream = py::object(cuda_stream).release().ptr();
    torch_.fake_mode = name("fake_mode");
    torch_.eager = name("eager"), torch_.constants = name("constants"), torch_.to_save = name("to_save");
    torch_.saved_tensors = name("saved_tensors"), torch_.needs_input_grad = name("needs_input_grad");
    torch_.is_grad_enabled = torch.attr("is_grad_enabled").cast<py::object>().release().ptr();
    torch_.tensor = torch.attr("Tensor").cast<py::object>().release().ptr();
    torch_.dispatch_modes = torch.attr("_C").attr("_len_torch_dispatch_stack").cast<py::object>().release().ptr();
    torch_.empty_like = torch.attr("empty_like").cast<py::object>().release().ptr();
    torch_.contiguous_format = torch.attr("contiguous_format").cast<py::object>().release().ptr();
    for (int i = 0; i < kDTypes; ++i) torch_.dtypes[i] = py::object(dtypes[i]).release().ptr();
    torch_.view = nullptr;
    const char* kExchange = "dlpack_exchange_api";
    if (PyCapsule_IsValid(exchange.ptr(), kExchange)) {
      auto api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(exchange.ptr(), kExchange));
      if (api->version.major == 1) torch_.view = api->view;
    }
  });

  // density, a letter per argument, (like, place in wanted, form, written) per output, sums, rest, on CUDA
  m.def("body", [](std::string density, std::string roles, const std::vector<std::tuple<int, int, char, bool>>& outputs,
                   int sums, py::object rest, bool cuda) {
    auto count = [&](char role) { return std::count(roles.begin(), roles.end(), role); };
    size_t written = 0;
    for (const auto& output : outputs) written += std::get<char>(output) == 'h' ? 2 : 1;
    Call::limit(count('e') + count('p') + 2 * count('h'), kMaxElements), Call::limit(written, kMaxElements);
    Call::limit(count('r'), kMaxRows), Call::limit(sums, kMaxRows), Call::limit(count('n'), kMaxParams);
    auto body = new Body{std::move(density), std::move(roles), {}, sums, std::move(rest), cuda};
    for (const auto& [like, wanted, form, written] : outputs) body->outputs.push_back({like, wanted, form, written});
    py::capsule self(body, [](void* pointer) { delete static_cast<Body*>(pointer); });
    return owned(PyCFunction_New(&body_method, self.ptr()));
  });

  // general, ready, its keys for the CPU and for CUDA
  m.def("entry", [](py::object general, py::dict ready, py::tuple on_cpu, py::tuple on_cuda) {
    auto entry = new Entry{std::move(general), std::move(ready), std::move(on_cpu), std::move(on_cuda)};
    py::capsule self(entry, [](void* pointer) { delete static_cast<Entry*>(pointer); });
    return owned(PyCFunction_New(&entry_method, self.ptr()));
  });

  // The ops, Python's own apply, forward and backward, the numbers that `differentiable` knows, and what makes
  // PyTorch's apply of a class that has such a forward and backward; returns apply.
  m.def("function", [](py::object forward_op, py::object backward_op, py::object apply, py::object forward,
                       py::object backward, size_t tensors, size_t saved, size_t grads, size_t arguments, bool results,
                       bool hinted, const py::object& base_apply) {
    auto function = new Function{forward_op, backward_op, apply,     forward, backward, tensors,
                                 saved,      grads,       arguments, results, hinted};
    py::capsule self(function, [](void* pointer) { delete static_cast<Function*>(pointer); });
    auto method = [&](int i) { return owned(PyCFunction_New(&function_methods[i], self.ptr())); };
    function->base_apply = base_apply(method(1), owned(PyInstanceMethod_New(method(2).ptr())));
    return method(0);
  });

  if (PyModule_AddFunctions(m.ptr(), questions) != 0) throw py::error_already_set();

  m.def("use_instruction_set", [](const std::string& name) {
    for (const auto& set : sets())
      if (set.supported && name == set.name) {
        chosen = &set;
        return;
      }
    throw py::value_error("no instruction set named " + name + " on this machine");
  });

  m.def(
      "cpu_rows",
      [](const char* density, int batch_ndim, const py::tuple& inputs, const py::tuple& row_inputs,
         const py::tuple& outputs, const py::tuple& row_outputs, const py::object& seed, const py::tuple& params,
         const py::object& weight) {
        Call call(2, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, weight);
        run_on_cpu(density, call);
      },
      VAEFAST_WALK_ARGUMENTS);

  m.def(
      "cpu_pairs",
      [](const char* density, const py::tuple& tensors, double every, double own, double next, const py::tuple& numbers,
         bool symmetric, int64_t first) {
        PairsCall call(tensors, every, own, next, numbers, symmetric, first);
        call.allocate(tensors, call.pairs.scratch_size());
        run(density, false, [&] { return chosen->run_pairs(density, call.pairs, thread_count()); });
      },
      VAEFAST_PAIRS_ARGUMENTS);

#ifdef VAEFAST_HAS_CUDA
  m.def(
      "cuda_rows",
      [](int device, uintptr_t stream, const char* density, int batch_ndim, const py::tuple& inputs,
         const py::tuple& row_inputs, const py::tuple& outputs, const py::tuple& row_outputs, const py::object& seed,
         const py::tuple& params, const py::object& weight) {
        Call call(1, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, weight);
        PyObject* first_sum = row_outputs.empty() ? nullptr : PyTuple_GET_ITEM(row_outputs.ptr(), 0);
        run_on_cuda(density, call, row_outputs.size(), first_sum, device, reinterpret_cast<void*>(stream));
      },
      py::arg("device"), py::arg("stream"), VAEFAST_WALK_ARGUMENTS);

  m.def(
      "cuda_pairs",
      [](int device, uintptr_t stream, const char* density, const py::tuple& tensors, double every, double own,
         double next, const py::tuple& numbers, bool symmetric, int64_t first) {
        PairsCall call(tensors, every, own, next, numbers, symmetric, first);
        call.allocate(tensors, cuda::pairs_scratch(density, call.pairs));
        run(density, false,
            [&] { return cuda::run_pairs(density, call.pairs, device, reinterpret_cast<void*>(stream)); });
      },
      py::arg("device"), py::arg("stream"), VAEFAST_PAIRS_ARGUMENTS);
#endif
}
