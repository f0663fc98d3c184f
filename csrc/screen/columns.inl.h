// Columns of a matrix as rows: weights that are stored (d_in, d_sae), some latents at a time.
#pragma once
#include "common/codes.h"

namespace {
namespace screen {

constexpr int kTall = 16, kWideBlock = 32;  // of a block: rows read, columns they become rows of

template <class T>
SK_INLINE void turn_block(const T* from, int64_t stride, int rows, int cols, T* to, int64_t to_stride) {
  T block[kTall][kWideBlock];
  for (int i = 0; i < rows; ++i) memcpy(block[i], from + i * stride, size_t(cols) * sizeof(T));
  for (int j = 0; j < cols; ++j) {
    T* row = to + j * to_stride;
    if (rows == kTall) {
#pragma GCC unroll 16
      for (int i = 0; i < kTall; ++i) row[i] = block[i][j];
    } else {
      for (int i = 0; i < rows; ++i) row[i] = block[i][j];
    }
  }
}

}  // namespace screen

// out (a.cols, a.rows): rows next to each other.
sk_status columns(int32_t dtype, sk_matrix a, void* out, int32_t threads) {
  using namespace screen;
  if (a.rows < 0 || a.cols < 0) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t blocks = (a.cols + kWideBlock - 1) / kWideBlock;
    parallel_runs(blocks, 1 + (1 << 12) / (a.rows + 1), threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t j = b * kWideBlock;
        const int cols = int(a.cols - j < kWideBlock ? a.cols - j : kWideBlock);
        for (int64_t i = 0; i < a.rows; i += kTall) {
          const int rows = int(a.rows - i < kTall ? a.rows - i : kTall);
          turn_block(row_of<T>(a, i) + j, a.stride, rows, cols, static_cast<T*>(out) + j * a.rows + i, a.rows);
        }
      }
    });
    return success();
  });
}

}  // namespace
