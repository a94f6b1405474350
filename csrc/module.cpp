// vaefast._C: the walks, called with pointers, sizes and strides. No PyTorch header, so one module serves every torch.
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "build_facts.h"
#include "density/table.h"
#include "walk.h"

#define VAEFAST_DECLARE(isa) \
  namespace isa {            \
  bool run_rows(const char* density, const Walk& walk, int threads); \
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
}
#endif
}  // namespace vaefast

namespace py = pybind11;
using namespace vaefast;

namespace {

struct InstructionSet {
  const char* name;
  bool (*run_rows)(const char*, const Walk&, int);
  bool supported;
};

// Best first.
std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
#ifdef VAEFAST_HAS_AVX512
  sets.push_back({"avx512", avx512::run_rows,
                  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")});
#endif
#ifdef VAEFAST_HAS_AVX2
  sets.push_back({"avx2", avx2::run_rows, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")});
#endif
#ifdef VAEFAST_HAS_BASELINE
  sets.push_back({"baseline", baseline::run_rows, true});
#endif
  return sets;
}

const std::vector<InstructionSet>& sets() {
  static const std::vector<InstructionSet> found = instruction_sets();
  return found;
}

int64_t integer(PyObject* tuple, Py_ssize_t i) {
  int64_t value = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

void* pointer(PyObject* tuple, Py_ssize_t i) {
  void* value = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, i));
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

void limit(Py_ssize_t size, int most) {
  if (size > most) throw py::value_error("too many tensors for a walk");
}

// (pointer, dtype, row stride, segment, segment stride, stride) each
void read_elements(const py::tuple& tensors, Elements* to) {
  limit(py::ssize_t(tensors.size()), kMaxElements);
  for (py::ssize_t i = 0; i < py::ssize_t(tensors.size()); ++i) {
    PyObject* t = PyTuple_GET_ITEM(tensors.ptr(), i);
    to[i] = {pointer(t, 0), static_cast<DType>(integer(t, 1)), integer(t, 2), integer(t, 3), integer(t, 4), integer(t, 5)};
  }
}

// (pointer, stride) each
void read_rows(const py::tuple& tensors, Rows* to) {
  limit(py::ssize_t(tensors.size()), kMaxRows);
  for (py::ssize_t i = 0; i < py::ssize_t(tensors.size()); ++i) {
    PyObject* t = PyTuple_GET_ITEM(tensors.ptr(), i);
    to[i] = {pointer(t, 0), integer(t, 1)};
  }
}

Walk read_walk(int64_t rows, int64_t cols, bool wide, const py::tuple& inputs, const py::tuple& row_inputs,
               const py::tuple& outputs, const py::tuple& row_outputs, uintptr_t seed, const py::tuple& params) {
  Walk walk{};
  walk.rows = rows;
  walk.cols = cols;
  walk.wide = wide;
  read_elements(inputs, walk.inputs);
  read_elements(outputs, walk.outputs);
  read_rows(row_inputs, walk.row_inputs);
  read_rows(row_outputs, walk.row_outputs);
  walk.seed = reinterpret_cast<const int64_t*>(seed);
  limit(py::ssize_t(params.size()), kMaxParams);
  for (py::ssize_t i = 0; i < py::ssize_t(params.size()); ++i)
    walk.params[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(params.ptr(), i));
  return walk;
}

void unknown(const char* density) { throw py::key_error(std::string("no density named ") + density); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("build_facts") = VAEFAST_BUILD_FACTS;

  py::list densities;
#define VAEFAST_NAME(name, D) densities.append(name);
  VAEFAST_DENSITIES(VAEFAST_NAME)
  m.attr("densities") = py::tuple(densities);

  py::list names;
  for (const auto& set : sets())
    if (set.supported) names.append(set.name);
  m.attr("instruction_sets") = py::tuple(names);  // those that this machine runs, best first

  m.def("cpu_rows", [](const std::string& isa, int threads, const char* density, int64_t rows, int64_t cols, bool wide,
                       const py::tuple& inputs, const py::tuple& row_inputs, const py::tuple& outputs,
                       const py::tuple& row_outputs, uintptr_t seed, const py::tuple& params) {
    Walk walk = read_walk(rows, cols, wide, inputs, row_inputs, outputs, row_outputs, seed, params);
    for (const auto& set : sets())
      if (isa == set.name) {
        bool known;
        {
          py::gil_scoped_release release;
          known = set.run_rows(density, walk, threads);
        }
        if (!known) unknown(density);
        return;
      }
    throw py::key_error("no instruction set named " + isa);
  });

#ifdef VAEFAST_HAS_CUDA
  m.def("cuda_rows", [](int device, uintptr_t stream, const char* density, int64_t rows, int64_t cols, bool wide,
                        const py::tuple& inputs, const py::tuple& row_inputs, const py::tuple& outputs,
                        const py::tuple& row_outputs, uintptr_t seed, const py::tuple& params) {
    Walk walk = read_walk(rows, cols, wide, inputs, row_inputs, outputs, row_outputs, seed, params);
    bool known;
    {
      py::gil_scoped_release release;
      known = cuda::run_rows(density, walk, device, reinterpret_cast<void*>(stream));
    }
    if (!known) unknown(density);
  });
#endif
}
