// screen_round: rows rounded to bfloat16 for the fast GEMM, and the two norms that say what rounding may have
// cost: of the row, and of what rounding dropped. Both are rounded up.
#pragma once
#include "common/codes.h"

namespace {
namespace screen {

// Added to every norm: what float arithmetic that flushes denormals may not have seen of a row.
constexpr float kUnseen = 0x1p-100f;
// Past it sums of products could overflow on their way, even to NaN; up to it they stay below 2^103, half a unit in the
// last place of the largest float, so that no finite bias makes one infinite. A row past it, and one that is not finite,
// gets a NaN for a norm, and nothing bounds its scores.
constexpr double kLargest = 0x1p50;

// Sums of squares in float64, in which no float's square over- or underflows.
struct Squares {
#if defined(__AVX512F__)
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  SK_INLINE void add(vf v) {
    const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
    low = _mm512_fmadd_pd(a, a, low);
    high = _mm512_fmadd_pd(b, b, high);
  }
  SK_INLINE double total() const {
    double lanes[8], sum = 0;
    _mm512_storeu_pd(lanes, _mm512_add_pd(low, high));
    for (double lane : lanes) sum += lane;
    return sum;
  }
#elif defined(__AVX2__)
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  SK_INLINE void add(vf v) {
    const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    const __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
    low = _mm256_fmadd_pd(a, a, low);
    high = _mm256_fmadd_pd(b, b, high);
  }
  SK_INLINE double total() const {
    double lanes[4], sum = 0;
    _mm256_storeu_pd(lanes, _mm256_add_pd(low, high));
    for (double lane : lanes) sum += lane;
    return sum;
  }
#else
  double lanes[kLanes] = {};
  SK_INLINE void add(vf v) {
    for (int i = 0; i < kLanes; ++i) lanes[i] += double(v[i]) * double(v[i]);
  }
  SK_INLINE double total() const {
    double sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    return sum;
  }
#endif
};

inline float norm_above(const Squares& squares) {
  const double norm = __builtin_sqrt(squares.total());
  return norm <= kLargest ? float(norm * (1 + 0x1p-20)) + kUnseen : __builtin_nanf("");
}

// One row: rounded to `out`, or left as it is where that is null.
template <class T>
inline void round_row(const T* row, int64_t d, bf16* out, float* norm, float* dropped) {
  Squares whole, lost;
  for (int64_t i = 0; i < d; i += kLanes) {
    const int n = d - i < kLanes ? int(d - i) : kLanes;
    const vf v = load_n(row + i, n);
    whole.add(v);
    if (!out) continue;
    const vh h = narrow_bf16(v);
    lost.add(v - widen_bf16(h));
    if (n == kLanes) memcpy(out + i, &h, sizeof h);
    else store_half_part(out + i, h, n);
  }
  *norm = norm_above(whole);
  *dropped = out ? norm_above(lost) : 0;
}

}  // namespace screen

// rounded (rows, cols) may be NULL where `a` is bfloat16 already. norms and dropped (rows,): of the rows, and of what
// rounding dropped.
sk_status screen_round(int32_t dtype, sk_matrix a, void* rounded, float* norms, float* dropped, int32_t threads) {
  if (a.rows < 0 || a.cols < 0 || (!rounded && dtype != SK_BF16)) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t d = a.cols, run = 1 + (1 << 14) / (d > 0 ? d : 1);
    parallel_runs(a.rows, run, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        bf16* out = rounded ? static_cast<bf16*>(rounded) + r * d : nullptr;
        screen::round_row(row_of<T>(a, r), d, out, norms + r, dropped + r);
      }
    });
    return success();
  });
}

// Whether 16 columns, from first_col on, of every step-th row are not what `rounded` says.
sk_status screen_differs(int32_t dtype, sk_matrix a, const void* rounded, int64_t first_row, int64_t step,
                         int64_t first_col, int32_t threads) {
  if (first_row < 0 || step < 1 || first_col < 0 || first_col > a.cols || !rounded) return failure(SK_BAD_SIZE);
  const int64_t last_col = first_col + 16 < a.cols ? first_col + 16 : a.cols;
  const int64_t count = first_row < a.rows ? (a.rows - first_row + step - 1) / step : 0;
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    int differs = 0;
    parallel_runs(count, 1 << 12, threads, [&](int, int64_t begin, int64_t end) {
      constexpr int64_t kAhead = 16;  // rows lie far apart
      const bf16* copy = static_cast<const bf16*>(rounded);
      bool other = false;
      for (int64_t i = begin; i < end && !other; ++i) {
        const int64_t r = first_row + i * step;
        if (i + kAhead < end) {
          prefetch(row_of<T>(a, r + kAhead * step) + first_col);
          prefetch(copy + (r + kAhead * step) * a.cols + first_col);
        }
        for (int64_t j = first_col; j < last_col; j += kLanes) {
          const int n = last_col - j < kLanes ? int(last_col - j) : kLanes;
          const vf v = load_n(row_of<T>(a, r) + j, n);
          const vh mine = narrow_bf16(v), theirs = n == kLanes ? load_half(copy + r * a.cols + j)
                                                               : load_half_part(copy + r * a.cols + j, n);
          other |= memcmp(&mine, &theirs, sizeof mine) != 0;
        }
      }
      if (other) __atomic_store_n(&differs, 1, __ATOMIC_RELAXED);
    });
    return failure(SK_OK, differs);
  });
}

}  // namespace
