// vaefast._C: the walks, called with pointers, sizes and strides. No PyTorch header, so one module serves every torch.
#include <pybind11/pybind11.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <string>
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

// Tensors are read through their Python attributes; vaefast/_extension.py hands these over when it loads the module.
struct Torch {
  PyObject *is_contiguous, *is_neg, *data_ptr, *dtype, *shape, *readable, *plain;
  PyObject* dtypes[kDTypes];  // in the order of DType
} torch_;

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

DType dtype(PyObject* tensor) {
  py::object found = owned(PyObject_GetAttr(tensor, torch_.dtype));
  for (int i = 0; i < kDTypes; ++i)
    if (found.ptr() == torch_.dtypes[i]) return static_cast<DType>(i);
  throw py::type_error("a walk takes no tensor of this type");
}

int64_t product(PyObject* shape, int64_t from, int64_t to) {
  int64_t result = 1;
  for (int64_t i = from; i < to; ++i) result *= integer(PyTuple_GET_ITEM(shape, i));
  return result;
}

bool is_contiguous(PyObject* tensor) { return method(tensor, torch_.is_contiguous).ptr() == Py_True; }

// Whether its memory holds its values: not those of a negative that PyTorch has put off, nor of zeros without memory.
bool is_plain(PyObject* tensor, const void* data) {
  return data != nullptr && method(tensor, torch_.is_neg).ptr() != Py_True;
}

// Where a tensor that is read has its values; `keep` holds what had to be made for it.
void* read_pointer(PyObject* tensor, std::vector<py::object>& keep) {
  void* data = pointer(tensor);
  if (is_plain(tensor, data)) return data;
  keep.push_back(py::reinterpret_borrow<py::object>(torch_.plain)(py::handle(tensor)));
  return pointer(keep.back().ptr());
}

// A call of a walk, as Python makes it: the walk itself, and what must live until it has run.
struct Call {
  Walk walk{};  // outputs that nobody asked for stay null
  std::vector<py::object> keep;
  int batch_ndim, row_levels;

  // row_levels: of strides that the walk knows among the rows
  Call(int row_levels, int batch_ndim, const py::tuple& inputs, const py::tuple& row_inputs, const py::tuple& outputs,
       const py::tuple& row_outputs, const py::object& seed, const py::tuple& params, const py::object& weight)
      : batch_ndim(batch_ndim), row_levels(row_levels) {
    py::object first = (inputs.empty() ? outputs : inputs)[0];  // its shape is that of all
    PyObject* head = PyTuple_Check(first.ptr()) ? PyTuple_GET_ITEM(first.ptr(), 0) : first.ptr();
    py::object shape = owned(PyObject_GetAttr(head, torch_.shape));
    walk.rows = product(shape.ptr(), 0, batch_ndim);
    walk.cols = product(shape.ptr(), batch_ndim, PyTuple_GET_SIZE(shape.ptr())) / parts(first.ptr(), shape.ptr());
    walk.wide = dtype(head) == DType::float64;
    elements(inputs, walk.inputs);
    if (!weight.is_none()) element(weight.ptr(), &walk.weight);
    elements(outputs, walk.outputs);
    rows(row_inputs, walk.row_inputs);
    rows(row_outputs, walk.row_outputs);
    if (!seed.is_none()) walk.seed = static_cast<const int64_t*>(pointer(seed.ptr()));
    limit(params, kMaxParams);
    for (size_t i = 0; i < params.size(); ++i) {
      walk.params[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(params.ptr(), i));
      if (PyErr_Occurred()) throw py::error_already_set();
    }
  }

  void limit(const py::tuple& tensors, int most) {
    if (tensors.size() > static_cast<size_t>(most)) throw py::value_error("too many arguments for a walk");
  }

  void elements(const py::tuple& tensors, Elements* to) {
    limit(tensors, kMaxElements);
    for (size_t i = 0; i < tensors.size(); ++i) element(PyTuple_GET_ITEM(tensors.ptr(), i), to + i);
  }

  static bool has_planes(PyObject* argument) { return PyTuple_Check(argument) && PyTuple_GET_SIZE(argument) == 2; }

  // How many pieces along its dimension an argument takes or is taken from: planes, halves, or 1 for a tensor.
  static int64_t parts(PyObject* argument, PyObject* shape) {
    if (!PyTuple_Check(argument)) return 1;
    return has_planes(argument) ? integer(PyTuple_GET_ITEM(shape, integer(PyTuple_GET_ITEM(argument, 1)))) : 2;
  }

  // A tensor, None for an output that nobody asked for, (tensor, dim, which) for a half of its chunk(2, dim), or
  // (tensor, dim) for all planes along a dimension, of which each is an argument of the walk's shape.
  void element(PyObject* argument, Elements* to) {
    if (argument == Py_None) return;
    bool part = PyTuple_Check(argument);
    PyObject* tensor = part ? PyTuple_GET_ITEM(argument, 0) : argument;
    *to = {nullptr, dtype(tensor), {kAll, 0, walk.cols}, {walk.cols, 0, 1}};
    int64_t offset = 0;
    if (!is_contiguous(tensor)) {
      tensor = strided(argument, to);
    } else if (part) {
      py::object shape = owned(PyObject_GetAttr(tensor, torch_.shape));
      int64_t dim = integer(PyTuple_GET_ITEM(argument, 1)), count = parts(argument, shape.ptr());
      int64_t segment = product(shape.ptr(), dim, PyTuple_GET_SIZE(shape.ptr())) / count;
      to->row.stride = count * walk.cols;
      to->col.segment = segment;
      to->col.segment_stride = count * segment;
      if (has_planes(argument)) {
        to->planes = count;
        to->plane_stride = segment;
      } else {
        offset = integer(PyTuple_GET_ITEM(argument, 2)) * segment * kSizes[static_cast<int>(to->dtype)];
      }
    }
    to->data = static_cast<char*>(read_pointer(tensor, keep)) + offset;
  }

  // Python finds the layout of what is not contiguous, or copies; returns the tensor to read.
  PyObject* strided(PyObject* argument, Elements* to) {
    keep.push_back(
        py::reinterpret_borrow<py::object>(torch_.readable)(py::handle(argument), batch_ndim, walk.cols, row_levels));
    PyObject* layout = PyTuple_GET_ITEM(keep.back().ptr(), 1);
    int64_t level[6];
    for (int i = 0; i < 6; ++i) level[i] = integer(PyTuple_GET_ITEM(layout, i));
    to->row = {level[4], level[5], level[0]};
    to->col = {level[1], level[2], level[3]};
    PyObject* tensor = PyTuple_GET_ITEM(keep.back().ptr(), 0);
    if (has_planes(argument)) {
      auto read = py::reinterpret_borrow<py::object>(tensor);
      py::handle dim = PyTuple_GET_ITEM(argument, 1);
      to->planes = read.attr("size")(dim).cast<int64_t>();
      to->plane_stride = read.attr("stride")(dim).cast<int64_t>();
    }
    return tensor;
  }

  void rows(const py::tuple& tensors, Rows* to) {
    limit(tensors, kMaxRows);
    for (size_t i = 0; i < tensors.size(); ++i) {
      py::object tensor = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(tensors.ptr(), i));
      if (!is_contiguous(tensor.ptr())) {
        keep.push_back(tensor.attr("contiguous")());
        tensor = keep.back();
      }
      to[i] = {read_pointer(tensor.ptr(), keep), 1};
    }
  }
};

// A call of the `pairs` walk: tensors in the order below, None for what the density does not have.
struct PairsCall {
  Pairs pairs{};
  std::vector<double> scales;
  std::vector<py::object> keep;
  py::object scratch;

  PairsCall(const py::tuple& tensors, double every, double own, double next, const py::tuple& numbers,
            bool symmetric, int64_t first) {
    void* data[12] = {};
    if (tensors.size() != 12) throw py::value_error("the pairs walk takes 12 tensors");
    for (int i = 0; i < 12; ++i) {
      PyObject* tensor = PyTuple_GET_ITEM(tensors.ptr(), i);
      if (tensor != Py_None) data[i] = read_pointer(tensor, keep);
    }
    pairs.points = data[0], pairs.centres = data[1], pairs.logvar = data[2], pairs.log_weights = data[3];
    pairs.value = data[4], pairs.values = data[5], pairs.grad_value = data[6], pairs.grad_values = data[7];
    pairs.grad_points = data[8], pairs.grad_centres = data[9];
    pairs.grad_logvar = data[10], pairs.grad_log_weights = data[11];
    pairs.every = every, pairs.own = own, pairs.next = next, pairs.symmetric = symmetric, pairs.first = first;
    for (const py::handle& number : numbers) scales.push_back(number.cast<double>());
    pairs.scales = scales.data(), pairs.scale_count = static_cast<int>(scales.size());
    py::object points = tensors[0], centres = tensors[1], grad = tensors[6];
    py::object row_shape = owned(PyObject_GetAttr(points.ptr(), torch_.shape));
    py::object col_shape = owned(PyObject_GetAttr(centres.ptr(), torch_.shape));
    pairs.rows = product(row_shape.ptr(), 0, 1), pairs.cols = product(col_shape.ptr(), 0, 1);
    pairs.dims = product(row_shape.ptr(), 1, 2);
    pairs.wide = dtype(points.ptr()) == DType::float64;
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

// Runs a walk, which says whether it knows the density, while Python's other threads go on.
template <class Run>
void run(const char* density, Run walk) {
  bool known;
  {
    py::gil_scoped_release release;
    known = walk();
  }
  if (!known) throw py::key_error(std::string("no density named ") + density);
}

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

  m.def("attach", [](const py::tuple& dtypes, const py::object& readable, const py::object& plain) {
    torch_ = {PyUnicode_InternFromString("is_contiguous"),
              PyUnicode_InternFromString("is_neg"),
              PyUnicode_InternFromString("data_ptr"),
              PyUnicode_InternFromString("dtype"),
              PyUnicode_InternFromString("shape"),
              readable.inc_ref().ptr(),
              plain.inc_ref().ptr(),
              {}};
    for (int i = 0; i < kDTypes; ++i) torch_.dtypes[i] = py::object(dtypes[i]).inc_ref().ptr();
  });

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
        run(density, [&] { return chosen->run_rows(density, call.walk, thread_count()); });
      },
      VAEFAST_WALK_ARGUMENTS);

  m.def(
      "cpu_pairs",
      [](const char* density, const py::tuple& tensors, double every, double own, double next,
         const py::tuple& numbers, bool symmetric, int64_t first) {
        PairsCall call(tensors, every, own, next, numbers, symmetric, first);
        call.allocate(tensors, call.pairs.scratch_size());
        run(density, [&] { return chosen->run_pairs(density, call.pairs, thread_count()); });
      },
      VAEFAST_PAIRS_ARGUMENTS);

#ifdef VAEFAST_HAS_CUDA
  m.def(
      "cuda_rows",
      [](int device, uintptr_t stream, const char* density, int batch_ndim, const py::tuple& inputs,
         const py::tuple& row_inputs, const py::tuple& outputs, const py::tuple& row_outputs, const py::object& seed,
         const py::tuple& params, const py::object& weight) {
        Call call(1, batch_ndim, inputs, row_inputs, outputs, row_outputs, seed, params, weight);
        int64_t pieces = row_outputs.empty() ? 1 : cuda::pieces(density, call.walk);
        if (pieces > 1) {  // PyTorch's memory: ordered by the stream, and a CUDA graph's own while one is captured
          call.keep.push_back(row_outputs[0].attr("new_empty")(row_outputs.size() * call.walk.rows * pieces));
          call.walk.pieces = pointer(call.keep.back().ptr());
        }
        run(density, [&] { return cuda::run_rows(density, call.walk, device, reinterpret_cast<void*>(stream)); });
      },
      py::arg("device"), py::arg("stream"), VAEFAST_WALK_ARGUMENTS);

  m.def(
      "cuda_pairs",
      [](int device, uintptr_t stream, const char* density, const py::tuple& tensors, double every, double own,
         double next, const py::tuple& numbers, bool symmetric, int64_t first) {
        PairsCall call(tensors, every, own, next, numbers, symmetric, first);
        call.allocate(tensors, cuda::pairs_scratch(density, call.pairs));
        run(density, [&] { return cuda::run_pairs(density, call.pairs, device, reinterpret_cast<void*>(stream)); });
      },
      py::arg("device"), py::arg("stream"), VAEFAST_PAIRS_ARGUMENTS);
#endif
}
