// Prints the float32 bits of the first normals of a draw, then z and kl of a latent: for test_build.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "walk.h"

namespace vaefast {
namespace baseline {
bool run_rows(const char*, const Walk&, int);
}
}  // namespace vaefast
using namespace vaefast;

int main(int, char** argv) {
  constexpr int rows = 5, cols = 50, size = rows * cols;
  int64_t seed[2] = {atoll(argv[1]), atoll(argv[2])};
  float normals[size], mu[size], logvar[size], z[size], kl[rows];
  auto dense = [](float* data) { return Elements{data, DType::float32, {kAll, 0, cols}, {cols, 0, 1}}; };

  Walk draw{};
  draw.rows = rows, draw.cols = cols, draw.seed = seed;
  draw.outputs[0] = dense(normals);
  baseline::run_rows("standard_normal", draw, 1);

  for (int i = 0; i < size; ++i) mu[i] = i / 100.f - 1, logvar[i] = 1 - i / 80.f;
  Walk latent = draw;
  latent.inputs[0] = dense(mu), latent.inputs[1] = dense(logvar), latent.outputs[0] = dense(z);
  latent.row_outputs[0] = {kl, 1};
  latent.params[0] = -1e30, latent.params[1] = 1e30;
  baseline::run_rows("rsample_kl_forward", latent, 1);

  for (float x : normals) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    printf("%u ", bits);
  }
  for (float x : z) printf("%.9g ", x);
  for (float x : kl) printf("%.9g ", x);
}
