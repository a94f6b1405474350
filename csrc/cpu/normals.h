// Normals of a draw, a vector of Philox blocks at a time, in the order of the elements.
#pragma once
#include "cpu/simd.h"
#include "density/noise.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

constexpr int kNormals = 4 * kFloats;  // a group: the normals that one vector of Philox blocks makes

// Normals [kNormals * group, kNormals * (group + 1)) of the draw.
VF_FN void normals(float* to, int64_t group, uint64_t seed, uint64_t offset) {
  constexpr int half = kFloats / 2;
  U64 words[2][4];  // the even blocks and the odd ones: put side by side they are one vector of 32-bit words
  for (int odd = 0; odd < 2; ++odd) {
    U64 lane;
    for (int i = 0; i < half; ++i) lane[i] = 2 * i + odd;
    U64 block = lane + static_cast<uint64_t>(group) * kFloats;
    U64* r = words[odd];
    r[0] = block;
    r[1] = block >> 32;
    r[2] = U64{} + static_cast<uint32_t>(offset);
    r[3] = U64{} + static_cast<uint32_t>(offset >> 32);
  }
  philox4x32(words, seed);
  U32 r[4];
  for (int i = 0; i < 4; ++i) r[i] = (U32)((words[0][i] & 0xffffffffu) | (words[1][i] << 32));
  F32 n0, n1, n2, n3;
  box_muller(r[0], r[1], n0, n1);
  box_muller(r[2], r[3], n2, n3);
  F32 n02 = interleave_lo(n0, n2), n13 = interleave_lo(n1, n3);
  store(to, interleave_lo(n02, n13));
  store(to + kFloats, interleave_hi(n02, n13));
  n02 = interleave_hi(n0, n2), n13 = interleave_hi(n1, n3);
  store(to + 2 * kFloats, interleave_lo(n02, n13));
  store(to + 3 * kFloats, interleave_hi(n02, n13));
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
