// Normals of a draw, two vectors of Philox blocks at a time, in the order of the elements.
#pragma once
#include "cpu/pair.h"
#include "density/noise.h"

namespace vaefast {
inline namespace VAEFAST_ISA {

constexpr int kGroup = 4 * kFloats;   // the normals that one vector of blocks makes; a draw is counted in groups
constexpr int kNormals = 2 * kGroup;  // those made at a time

// The normals of one group, n[0] and n[1] from words a and b of each block, n[2] and n[3] from c and d.
VF_FN void store_normals(float* to, F32 n0, F32 n1, F32 n2, F32 n3) {
  F32 n02 = interleave_lo(n0, n2), n13 = interleave_lo(n1, n3);
  store(to, interleave_lo(n02, n13));
  store(to + kFloats, interleave_hi(n02, n13));
  n02 = interleave_hi(n0, n2), n13 = interleave_hi(n1, n3);
  store(to + 2 * kFloats, interleave_lo(n02, n13));
  store(to + 3 * kFloats, interleave_hi(n02, n13));
}

// Normals [kGroup * group, kGroup * group + kNormals) of the draw.
VF_FN void normals(float* to, int64_t group, uint64_t seed, uint64_t offset) {
  // by group, and in each the even blocks and the odd ones: put side by side they are one vector of 32-bit words
  Pair<Pair<U64>> block;
  Pair<uint32_t> block_hi;  // a group's blocks share it
  U64 even;
  for (int i = 0; i < kFloats / 2; ++i) even[i] = 2 * i;
  uint64_t first = static_cast<uint64_t>(group) * kFloats, second = first + kFloats;
  block = pair(pair(even + first, even + (first + 1)), pair(even + second, even + (second + 1)));
  block_hi = {static_cast<uint32_t>(first >> 32), static_cast<uint32_t>(second >> 32)};
  auto w =
      philox4x32(counter(block, block_hi, static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32)), seed);
  auto joined = [](Pair<U64> word) { return (U32)((word.first & 0xffffffffu) | (word.second << 32)); };
  auto both = [&](Pair<Pair<U64>> x, Pair<Pair<U64>> y) {
    return pair(pair(joined(x.first), joined(y.first)), pair(joined(x.second), joined(y.second)));
  };
  Pair<Pair<F32>> cosines, sines;
  box_muller(both(w.a, w.c), both(w.b, w.d), cosines, sines);
  store_normals(to, cosines.first.first, sines.first.first, cosines.first.second, sines.first.second);
  store_normals(to + kGroup, cosines.second.first, sines.second.first, cosines.second.second, sines.second.second);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
