// Dot products of one row with several others, side by side: sddmm, and what screening computes exactly.
#pragma once
#include "common/codes.h"
#include "common/pairs.h"

namespace {

struct InOrder {
  template <class T>
  static SK_INLINE Pair load(const T* p) {
    return {::load(p), ::load(p + kLanes)};
  }
};
struct Split {  // the faster one in bfloat16, whose sums have other bits there
  template <class T>
  static SK_INLINE Pair load(const T* p) {
    return load_pair(p);
  }
};

// Two partial sums a row of b, so that a dot product's bits do not depend on the company it is computed in.
template <int R, class Order = InOrder, class T>
inline void dot_rows(const T* a, const T* const* rows, int64_t d, float* dots, const T* const* next) {
  constexpr int kLine = 64 / sizeof(T), kStep = kLine > kPair ? kLine : kPair;
  vf even[R], odd[R];
  for (int r = 0; r < R; ++r) even[r] = odd[r] = vf{};
  int64_t i = 0;
  for (; i + kPair <= d; i += kPair) {
    if (next && i % kStep == 0 && i + kStep <= d)
      for (int r = 0; r < R; ++r)
        for (int line = 0; line < kStep; line += kLine) prefetch(next[r] + i + line);
    const Pair left = Order::load(a + i);
    for (int r = 0; r < R; ++r) {
      const Pair right = Order::load(rows[r] + i);
      even[r] = fma(left.a, right.a, even[r]);
      odd[r] = fma(left.b, right.b, odd[r]);
    }
  }
  for (; i < d; i += kLanes) {
    const int n = d - i < kLanes ? static_cast<int>(d - i) : kLanes;
    const vf left = load_n(a + i, n);
    for (int r = 0; r < R; ++r) even[r] = fma(left, load_n(rows[r] + i, n), even[r]);
  }
  for (int r = 0; r < R; ++r) dots[r] = sum(even[r] + odd[r]);
}

}  // namespace
