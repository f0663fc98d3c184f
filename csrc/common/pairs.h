// Two vectors of a row at a time. Of bfloat16, one load, a shift and a mask give the 2 * kLanes numbers, even places
// in one vector and odd ones in the other; widening them in order would take two loads, two shuffles and two shifts.
// Which lane a number is in does not matter until a result is stored: `store_pair` puts them back.
#pragma once
#include "common/simd.h"

namespace {

constexpr int kPair = 2 * kLanes;

struct Pair {
  vf a, b;
};

template <class T>
SK_INLINE Pair load_pair(const T* p) {
  return {load(p), load(p + kLanes)};
}
SK_INLINE Pair load_pair(const bf16* p) {
  vu both;
  memcpy(&both, p, sizeof both);
  return {(vf)(both << 16), (vf)(both & splat_u(0xffff0000))};
}

template <class T>
SK_INLINE void store_pair(T* p, Pair x) {
  store(p, x.a);
  store(p + kLanes, x.b);
}
SK_INLINE void store_pair(bf16* p, Pair x) {
  const vu both = round_bf16(x.a) | round_bf16(x.b) << 16;
  memcpy(p, &both, sizeof both);
}

}  // namespace
