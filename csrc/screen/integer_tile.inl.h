// Integer products of a tile of tokens and a group of 32 latents, all of whose sums stay in registers.
#pragma once
#include "screen/integer_rows.inl.h"

namespace {
namespace screen {
namespace integers {

constexpr int64_t kBlockBytes = 1 << 18;  // of latents that all of a run's tokens see before the next

SK_INLINE vf as_floats(const int32_t* p) {
  vi v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vf);
}

#if defined(__AVX512F__)
// Assembly: the intrinsics need flags this file is not compiled with, and GCC 12 spills their sums.
SK_INLINE void add_products(Eight, __m512i& sum, __m512i bytes, __m512i tokens) {  // bytes: unsigned
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(tokens));
}
SK_INLINE void add_products(Sixteen, __m512i& sum, __m512i words, __m512i tokens) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(words), "v"(tokens));
}

// kChains: sums of one product that do not wait for each other.
template <class Kind, int kTokens, int kChains>
__attribute__((noinline)) void products(const int32_t* x, const uint8_t* w, int64_t fours, const int32_t* starts,
                                        int32_t* out) {
  constexpr int64_t kStep = 4 * Kind::kSide;
  const uint8_t* other = Kind::kSide == kAbreast ? w + 64 : w + fours * kStep;  // of the latents from 16 on
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
    for (int c = 0; c < kChains; ++c, x += kTokens, w += kStep, other += kStep) {
      const __m512i low = _mm512_loadu_si512(w), high = _mm512_loadu_si512(other);
#pragma GCC unroll 12
      for (int t = 0; t < kTokens; ++t) {
        const __m512i token = _mm512_set1_epi32(x[t]);
        add_products(Kind{}, sums[c][t][0], low, token);
        add_products(Kind{}, sums[c][t][1], high, token);
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
template <class Kind, int kTokens>
inline void portable_products(const int32_t* x, const uint8_t* w, int64_t fours, const int32_t* starts, int32_t* out) {
  using Number = typename Kind::Number;
  constexpr int kSide = Kind::kSide, kNumbers = 4 / sizeof(Number);
  for (int first = 0; first < kAbreast; first += kSide, w += fours * 4 * kSide)
    for (int t = 0; t < kTokens; ++t) {
      uint32_t sums[kSide];
      for (int l = 0; l < kSide; ++l) sums[l] = uint32_t(starts[t]);
      for (int64_t i = 0; i < fours; ++i) {
        Number mine[kNumbers];
        memcpy(mine, x + i * kTokens + t, 4);
        using Latent = typename std::conditional<Kind::kFlip != 0, uint8_t, Number>::type;
        Latent theirs[kSide * kNumbers];
        memcpy(theirs, w + i * 4 * kSide, sizeof theirs);
        for (int l = 0; l < kSide; ++l)
          for (int j = 0; j < kNumbers; ++j) sums[l] += uint32_t(theirs[kNumbers * l + j] * mine[j]);
      }
      memcpy(out + t * kAbreast + first, sums, sizeof sums);
    }
}

template <class Kind, int kTokens, int kChains>
inline void products(const int32_t* x, const uint8_t* w, int64_t fours, const int32_t* starts, int32_t* out) {
#if defined(__AVX2__)
  if constexpr (std::is_same<Kind, Sixteen>::value) {
    // 12 sums, two vectors of latents and two to work with are all the registers there are; GCC 12 by itself spills.
    for (const uint8_t* end = w + fours * 4 * kAbreast; w < end; out += 16) {
      const int32_t* token = x;
      __m256i sums[kTokens][2];
      SK_UNROLL
      for (int t = 0; t < kTokens; ++t) sums[t][0] = sums[t][1] = _mm256_set1_epi32(starts[t]);
      for (int64_t i = 0; i < fours; ++i, token += kTokens, w += 64) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32));
        SK_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          __m256i one, two;
          asm("vpbroadcastd %6, %3\n\tvpmaddwd %3, %4, %2\n\tvpmaddwd %3, %5, %3\n\t"
              "vpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
              : "+x"(sums[t][0]), "+x"(sums[t][1]), "=&x"(one), "=&x"(two)
              : "x"(low), "x"(high), "m"(token[t]));
        }
      }
      SK_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + t * kAbreast), sums[t][0]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + t * kAbreast + 8), sums[t][1]);
      }
    }
    return;
  }
#endif
  portable_products<Kind, kTokens>(x, w, fours, starts, out);
}
#endif

#if SK_TILES
// By AMX, the same integers: tokens, 16 a tile, are rows of 64 coordinates; latents, 16 a tile, are columns as they lie.
// starts: 16 times each. Tested in emulation; never timed.
template <int kTall>
__attribute__((noinline)) void tiled_products(const int8_t* x, const uint8_t* w, int64_t fours, const int32_t* starts,
                                              int32_t* out) {
  constexpr int64_t kRow = 4 * kAbreast, kOut = kAbreast * 4;  // bytes
  tiles::load<0>(starts, tiles::kBytes);
  tiles::load<1>(starts, tiles::kBytes);
  if (kTall == 2) {
    tiles::load<2>(starts + 256, tiles::kBytes);
    tiles::load<3>(starts + 256, tiles::kBytes);
  }
  alignas(64) uint8_t part[tiles::kRows * kRow];
  for (int64_t i = 0; i < fours; i += tiles::kRows, x += kTall * 1024, w += tiles::kRows * kRow) {
    const uint8_t* from = w;
    if (fours - i < tiles::kRows) {  // tokens have zeros there, but the last group's bytes end here
      const int64_t there = (fours - i) * kRow;
      memcpy(part, w, size_t(there));
      memset(part + there, 0, size_t(tiles::kRows * kRow - there));
      from = part;
    }
    tiles::load<4>(x, tiles::kBytes);
    tiles::load<6>(from, kRow);
    tiles::add_bytes<0, 4, 6>();
    tiles::load<7>(from + tiles::kBytes, kRow);
    tiles::add_bytes<1, 4, 7>();
    if (kTall == 2) {
      tiles::load<5>(x + 1024, tiles::kBytes);
      tiles::add_bytes<2, 5, 6>();
      tiles::add_bytes<3, 5, 7>();
    }
  }
  tiles::store<0>(out, kOut);
  tiles::store<1>(out + 16, kOut);
  if (kTall == 2) {
    tiles::store<2>(out + 16 * kAbreast, kOut);
    tiles::store<3>(out + 16 * kAbreast + 16, kOut);
  }
}
#endif

// Where a token's sums with all latents start: `starts` as products take them. room: 16 times as many, on a cache line.
inline const int32_t* ready_starts(int64_t tile, const int32_t* starts, int32_t* room) {
  if (tile < 16) return starts;
  for (int64_t t = 0; t < tile; ++t)
    for (int i = 0; i < 16; ++i) room[16 * t + i] = starts[t];
  return room;
}

// out (tile, 32) = starts + x . w, `fours` being a multiple of 4.
template <class Kind>
inline void tile_products(int64_t tile, const void* tokens, const uint8_t* w, int64_t fours, const int32_t* starts,
                          int32_t* out) {
#if SK_TILES
  if (tile >= 16) {
    const int8_t* rows = static_cast<const int8_t*>(tokens);
    return tile == 16 ? tiled_products<1>(rows, w, fours, starts, out) : tiled_products<2>(rows, w, fours, starts, out);
  }
#endif
  const int32_t* x = static_cast<const int32_t*>(tokens);
  constexpr int kMost = Kind::kTiled ? 4 : Kind::kTokens;
  switch (tile) {
    case 1: return products<Kind, 1, 4>(x, w, fours, starts, out);
    case 2: return products<Kind, 2, 4>(x, w, fours, starts, out);
    case 4: return products<Kind, 4, 2>(x, w, fours, starts, out);
    case 8: if constexpr (kMost > 8) return products<Kind, 8, 1>(x, w, fours, starts, out);
  }
  if constexpr (kMost > 4) products<Kind, kMost, 1>(x, w, fours, starts, out);
}

}  // namespace integers
}  // namespace screen
}  // namespace
