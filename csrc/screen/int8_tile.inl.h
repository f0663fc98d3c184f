// Integer products of a tile of tokens and a group of 32 latents, all of whose sums stay in registers.
#pragma once
#include "screen/int8_rows.inl.h"

namespace {
namespace screen {
namespace int8 {

#if defined(__AVX512F__)
// Assembly: the intrinsic needs flags this file is not compiled with, and GCC 12 spills its sums. bytes: unsigned.
SK_INLINE void add_products(__m512i& sum, __m512i bytes, __m512i tokens) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(tokens));
}

// kChains: sums of one product that do not wait for each other.
template <int kTokens, int kChains>
__attribute__((noinline)) void products(const int32_t* x, const uint8_t* w, int64_t fours, const int32_t* starts,
                                        int32_t* out) {
  __m512i sums[kChains][kTokens][2];  // every loop over them unrolled: else they live in memory
#pragma GCC unroll 4
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t) {
      sums[c][t][0] = c ? _mm512_setzero_si512() : _mm512_set1_epi32(starts[t]);
      sums[c][t][1] = sums[c][t][0];
    }
  for (int64_t i = 0; i < fours; i += kChains)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c, x += kTokens, w += 4 * kAbreast) {
      const __m512i low = _mm512_loadu_si512(w), high = _mm512_loadu_si512(w + 64);
#pragma GCC unroll 12
      for (int t = 0; t < kTokens; ++t) {
        const __m512i token = _mm512_set1_epi32(x[t]);
        add_products(sums[c][t][0], low, token);
        add_products(sums[c][t][1], high, token);
      }
    }
#pragma GCC unroll 12
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int c = 1; c < kChains; ++c) {
      sums[0][t][0] = _mm512_add_epi32(sums[0][t][0], sums[c][t][0]);
      sums[0][t][1] = _mm512_add_epi32(sums[0][t][1], sums[c][t][1]);
    }
    _mm512_storeu_si512(out + t * kAbreast, sums[0][t][0]);
    _mm512_storeu_si512(out + t * kAbreast + 16, sums[0][t][1]);
  }
}
#else
template <int kTokens, int kChains>
inline void products(const int32_t* x, const uint8_t* w, int64_t fours, const int32_t* starts, int32_t* out) {
  for (int t = 0; t < kTokens; ++t) {
    uint32_t sums[kAbreast];
    for (int l = 0; l < kAbreast; ++l) sums[l] = uint32_t(starts[t]);
    for (int64_t i = 0; i < fours; ++i) {
      int8_t four[4];
      memcpy(four, x + i * kTokens + t, 4);
      const uint8_t* row = w + i * 4 * kAbreast;
      for (int l = 0; l < kAbreast; ++l)
        for (int j = 0; j < 4; ++j) sums[l] += uint32_t(row[4 * l + j] * four[j]);
    }
    memcpy(out + t * kAbreast, sums, sizeof sums);
  }
}
#endif

// out (tile, 32) = starts + x . w, `fours` being a multiple of 4.
inline void tile_products(int tile, const int32_t* x, const uint8_t* w, int64_t fours, const int32_t* starts,
                          int32_t* out) {
  switch (tile) {
    case 1: return products<1, 4>(x, w, fours, starts, out);
    case 2: return products<2, 4>(x, w, fours, starts, out);
    case 4: return products<4, 2>(x, w, fours, starts, out);
    case 8: return products<8, 1>(x, w, fours, starts, out);
    default: return products<kTile, 1>(x, w, fours, starts, out);
  }
}

}  // namespace int8
}  // namespace screen
}  // namespace
