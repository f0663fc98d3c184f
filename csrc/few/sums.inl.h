// Sums over the lanes of several vectors at once, each by the tree of `sum` (common/simd.h): the same bits, for a quarter
// of the instructions where vectors have 16 lanes.
#pragma once
#include "common/simd.h"

namespace {
namespace few {

#if defined(__AVX512F__)
SK_INLINE void sums_of_16(const vf* a, float* out) {
  constexpr __mmask16 all = 0xffff;  // the forms without a mask make GCC 12 warn of its own headers
  // The last step leaves vector i of its sixteen at lane 4 (i % 4) + i / 4.
  __m512 halves[8], quarters[4], eighths[2];
  for (int i = 0; i < 8; ++i) {
    const int first = 2 * i, second = first + 1;
    const __m512 x = (__m512)a[first % 4 * 4 + first / 4], y = (__m512)a[second % 4 * 4 + second / 4];
    halves[i] = _mm512_add_ps(_mm512_maskz_shuffle_f32x4(all, x, y, 0x44), _mm512_maskz_shuffle_f32x4(all, x, y, 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 x = halves[2 * i], y = halves[2 * i + 1];
    quarters[i] = _mm512_add_ps(_mm512_maskz_shuffle_f32x4(all, x, y, 0x88), _mm512_maskz_shuffle_f32x4(all, x, y, 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512 x = quarters[2 * i], y = quarters[2 * i + 1];
    eighths[i] = _mm512_add_ps(_mm512_maskz_shuffle_ps(all, x, y, 0x44), _mm512_maskz_shuffle_ps(all, x, y, 0xee));
  }
  const __m512 x = eighths[0], y = eighths[1];
  const __m512 odd = _mm512_maskz_shuffle_ps(all, x, y, 0xdd);
  _mm512_storeu_ps(out, _mm512_add_ps(_mm512_maskz_shuffle_ps(all, x, y, 0x88), odd));
}
#endif

constexpr int kMostSums = 32;  // out has room for so many

// out[i] = sum(a[i]), i < kCount
template <int kCount>
SK_INLINE void sums(const vf* a, float* out) {
  static_assert(kCount <= kMostSums, "room");
#if defined(__AVX512F__)
  constexpr int kPadded = (kCount + 15) / 16 * 16;
  vf some[kPadded];
  SK_UNROLL
  for (int i = 0; i < kPadded; ++i) some[i] = i < kCount ? a[i] : vf{};
  SK_UNROLL
  for (int i = 0; i < kPadded; i += 16) sums_of_16(some + i, out + i);
#else
  for (int i = 0; i < kCount; ++i) out[i] = sum(a[i]);
#endif
}

}  // namespace few
}  // namespace
