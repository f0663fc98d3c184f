// Dot products of one row with several others, side by side: sddmm, and what screening computes exactly.
#pragma once
#include "common/codes.h"

namespace {

// Two partial sums a row of b, so that a dot product's bits do not depend on the company it is computed in.
template <int R, class T>
inline void dot_rows(const T* a, const T* const* rows, int64_t d, float* dots, const T* const* next) {
  constexpr int kLine = 64 / sizeof(T), kStep = kLine > 2 * kLanes ? kLine : 2 * kLanes;
  vf even[R], odd[R];
  for (int r = 0; r < R; ++r) even[r] = odd[r] = vf{};
  int64_t i = 0;
  for (; i + kStep <= d; i += kStep) {
    if (next)
      for (int r = 0; r < R; ++r)
        for (int line = 0; line < kStep; line += kLine) prefetch(next[r] + i + line);
    for (int j = 0; j < kStep; j += 2 * kLanes) {
      const vf a0 = load(a + i + j), a1 = load(a + i + j + kLanes);
      for (int r = 0; r < R; ++r) {
        even[r] = fma(a0, load(rows[r] + i + j), even[r]);
        odd[r] = fma(a1, load(rows[r] + i + j + kLanes), odd[r]);
      }
    }
  }
  for (; i < d; i += kLanes) {
    const int n = d - i < kLanes ? static_cast<int>(d - i) : kLanes;
    const vf a0 = load_n(a + i, n);
    for (int r = 0; r < R; ++r) even[r] = fma(a0, load_n(rows[r] + i, n), even[r]);
  }
  for (int r = 0; r < R; ++r) dots[r] = sum(even[r] + odd[r]);
}

}  // namespace
