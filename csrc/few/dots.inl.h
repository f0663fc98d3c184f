// Scores of a few tokens against block after block of latents: what a GEMM does, for so few rows that reading W once is
// most of the work. Tiles of tokens by latents stay in registers along d.
#pragma once
#include "common/codes.h"
#include "few/sums.inl.h"

// dispatch.cpp: 1 where this machine's vdpbf16ps is faster than widening to float32.
extern "C" int sk_fast_bf16_dots();

namespace {
namespace few {

constexpr bool kManyRegisters = kLanes == 16;

// The latents of the tile after the next, prefetched in the order in which they lie in memory: several rows read side by
// side reach half of its bandwidth. Into L2: with the tokens and two tiles, L1 would be full.
struct Ahead {
  const char* at;

  template <int kLines>
  SK_INLINE void step() {
    if (!at) return;
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(at + 64 * line, 0, 2);
    at += 64 * kLines;
  }
};

// Loads it once: compilers would rather read memory again for every use.
template <class V>
SK_INLINE V in_register(V v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__SSE2__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// W as it is, tokens in float32: the bits of dot_rows (common/dots.h), whatever the tile.
template <class T>
struct ExactTile {
  typedef T Latent;
  typedef float Token;
  static constexpr int tokens = kManyRegisters ? 4 : 2, rows = kManyRegisters ? 3 : 2;
  int64_t d;

  template <int kCount>
  inline void scores(const float* const* x, const T* const* w, Ahead ahead, float* out) const {
    constexpr int kLine = 64 / int(sizeof(T)), kStep = kLine > 2 * kLanes ? kLine : 2 * kLanes;
    vf even[kCount * rows], odd[kCount * rows];
    SK_UNROLL
    for (int p = 0; p < kCount * rows; ++p) even[p] = odd[p] = vf{};
    int64_t i = 0;
    for (; i + 2 * kLanes <= d; i += 2 * kLanes) {
      if (i % kStep == 0) ahead.step<rows * kStep / kLine>();
      add<kCount>(x, w, i, even);
      add<kCount>(x, w, i + kLanes, odd);
    }
    for (; i < d; i += kLanes) {
      const int n = d - i < kLanes ? int(d - i) : kLanes;
      vf wide[rows];
      SK_UNROLL
      for (int r = 0; r < rows; ++r) wide[r] = load_n(w[r] + i, n);
      SK_UNROLL
      for (int t = 0; t < kCount; ++t) {
        const vf a = load_n(x[t] + i, n);
        SK_UNROLL
        for (int r = 0; r < rows; ++r) even[t * rows + r] = fma(a, wide[r], even[t * rows + r]);
      }
    }
    SK_UNROLL
    for (int p = 0; p < kCount * rows; ++p) even[p] += odd[p];
    sums<kCount * rows>(even, out);
  }

 private:
  template <int kCount>
  static SK_INLINE void add(const float* const* x, const T* const* w, int64_t i, vf* to) {
    vf wide[rows];
    SK_UNROLL
    for (int r = 0; r < rows; ++r) wide[r] = in_register(load(w[r] + i));
    SK_UNROLL
    for (int t = 0; t < kCount; ++t) {
      const vf a = in_register(load(x[t] + i));
      SK_UNROLL
      for (int r = 0; r < rows; ++r) to[t * rows + r] = fma(a, wide[r], to[t * rows + r]);
    }
  }
};

constexpr int kPair = 2 * kLanes;  // elements of a row of the kept copy that are read at once

// Latents rounded to bf16, tokens in float32: per kPair elements the even ones, then the odd ones; zeros behind d.
struct WidenedTile {
  typedef bf16 Latent;
  typedef float Token;
  static constexpr int tokens = kManyRegisters ? 8 : 4, rows = kManyRegisters ? 3 : 2;
  int64_t d;

  static SK_INLINE vu pairs(const bf16* w, int64_t n) {
    vu v;
    if (n >= kPair) {
      memcpy(&v, w, sizeof v);
      return v;
    }
#if defined(__AVX512BW__)
    show_sanitizer(w, int(n));
    return (vu)_mm512_maskz_loadu_epi16(__mmask32((uint32_t(1) << n) - 1), w);
#else
    uint16_t some[kPair] = {};
    memcpy(some, w, size_t(n) * sizeof(bf16));
    memcpy(&v, some, sizeof v);
    return v;
#endif
  }

  template <int kCount>
  inline void scores(const float* const* x, const bf16* const* w, Ahead ahead, float* out) const {
    vf total[kCount * rows];
    SK_UNROLL
    for (int p = 0; p < kCount * rows; ++p) total[p] = vf{};
    for (int64_t i = 0; i < d; i += kPair) {
      ahead.step<(rows * 2 * kPair + 63) / 64>();
      vf low[rows], high[rows];
      SK_UNROLL
      for (int r = 0; r < rows; ++r) {
        const vu both = pairs(w[r] + i, d - i);
        low[r] = (vf)(both << 16);
        high[r] = (vf)(both & splat_u(0xffff0000));
      }
      SK_UNROLL
      for (int t = 0; t < kCount; ++t) {
        const vf even = in_register(load(x[t] + i));
        SK_UNROLL
        for (int r = 0; r < rows; ++r) total[t * rows + r] = fma(even, low[r], total[t * rows + r]);
        const vf odd = in_register(load(x[t] + i + kLanes));
        SK_UNROLL
        for (int r = 0; r < rows; ++r) total[t * rows + r] = fma(odd, high[r], total[t * rows + r]);
      }
    }
    sums<kCount * rows>(total, out);
  }
};

#if defined(__AVX512BW__) && (defined(__clang__) || __GNUC__ >= 10)
#define SK_BF16_DOTS 1
// Both rounded to bf16, tokens with zeros behind d, for vdpbf16ps: not part of this instruction set, asked for by name.
struct DotTile {
  typedef bf16 Latent;
  typedef bf16 Token;
  static constexpr int tokens = 8, rows = 3;
  int64_t d;

  template <int kCount>
  __attribute__((target("avx512bf16"), noinline)) void scores(const bf16* const* x, const bf16* const* w, Ahead ahead,
                                                              float* out) const {
    __m512 total[kCount * rows];
    SK_UNROLL
    for (int p = 0; p < kCount * rows; ++p) total[p] = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += kPair) {
      ahead.step<rows>();
      __m512i wide[rows];
      SK_UNROLL
      for (int r = 0; r < rows; ++r) wide[r] = in_register((__m512i)WidenedTile::pairs(w[r] + i, d - i));
      SK_UNROLL
      for (int t = 0; t < kCount; ++t) {
        const __m512i a = in_register(_mm512_loadu_si512(x[t] + i));
        SK_UNROLL
        for (int r = 0; r < rows; ++r)
          total[t * rows + r] = _mm512_dpbf16_ps(total[t * rows + r], (__m512bh)a, (__m512bh)wide[r]);
      }
    }
    vf all[kCount * rows];
    SK_UNROLL
    for (int p = 0; p < kCount * rows; ++p) all[p] = (vf)total[p];
    sums<kCount * rows>(all, out);
  }
};
#endif

constexpr int64_t kMostLatents = 192;     // of a block: so many make up tiles and vectors alike
constexpr int64_t kBlockBytes = 1 << 19;  // of W that tokens go over again, where there are more than a tile's

// n tokens, `x_stride` apart; latents, rows `stride` apart.
template <class Tile>
struct Scores {
  Tile tile;
  const typename Tile::Token* x;
  int64_t n, x_stride;
  const typename Tile::Latent* W;
  int64_t stride;

  // out[t * out_stride + i] = that of token t and latent first + i, for i < count; kSpare floats behind each row's end may
  // be overwritten. Latents from `end` on are not there.
  static constexpr int64_t kSpare = 4;
  struct Thread {};  // what a thread has while it computes

  int64_t block_size() const {
    int64_t block = kMostLatents;
    while (block > 48 && block * (tile.d + 1) * int64_t(sizeof(typename Tile::Latent)) > kBlockBytes) block /= 2;
    return block;
  }
  void block(int64_t first, int64_t count, int64_t end, float* out, int64_t out_stride) const {
    for (int64_t t = 0; t < n; t += Tile::tokens) {
      const int64_t left = n - t < Tile::tokens ? n - t : Tile::tokens;
      const typename Tile::Token* mine[Tile::tokens];
      for (int64_t i = 0; i < Tile::tokens; ++i) mine[i] = x + (t + (i < left ? i : left - 1)) * x_stride;
      for (int64_t l = 0; l < count; l += Tile::rows) {
        const typename Tile::Latent* w[Tile::rows];
        for (int r = 0; r < Tile::rows; ++r) {
          const int64_t latent = first + l + r;
          w[r] = W + (latent < end ? latent : end - 1) * stride;
        }
        const Ahead ahead{t == 0 ? reinterpret_cast<const char*>(w[0] + 2 * Tile::rows * stride) : nullptr};
        float found[kMostSums];
        if (left == 1) tile.template scores<1>(mine, w, ahead, found);
        else if (left == 2) tile.template scores<2>(mine, w, ahead, found);
        else if (left <= 4) tile.template scores<Tile::tokens < 4 ? 2 : 4>(mine, w, ahead, found);
        else tile.template scores<Tile::tokens>(mine, w, ahead, found);
        for (int64_t i = 0; i < left; ++i)
          for (int r = 0; r < Tile::rows; ++r) out[(t + i) * out_stride + l + r] = found[i * Tile::rows + r];
      }
    }
  }
};

}  // namespace few
}  // namespace
