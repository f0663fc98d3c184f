// Screening scores of a few tokens by AMX: as dots.inl.h has them of vectors, in tiles of 16 latents by 16 tokens, four at
// once. Latents are read where they lie in the kept copy; tokens are packed once, in pairs of coordinates side by side.
// Tested in emulation; never timed.
#pragma once
#include "common/tiles.h"
#include "few/dots.inl.h"
#include "screen/bound.inl.h"

#if SK_TILES
namespace {
namespace few {

constexpr int64_t kStep = 32;           // coordinates of a tile of bf16
constexpr int64_t kTiledTokens = 4;     // with fewer, reading W takes as long either way
constexpr int64_t kTileElements = 512;  // 16 by 32

// rows[i][j] of 16 by 16 becomes rows[j][i], by blocks of kSide.
template <int kSide>
SK_INLINE void exchange(vf* rows) {
  vi low, high;
  for (int j = 0; j < 16; ++j) {
    low[j] = j & kSide ? 16 + j - kSide : j;
    high[j] = j & kSide ? 16 + j : j + kSide;
  }
  SK_UNROLL
  for (int i = 0; i < 16; ++i) {
    if (i & kSide) continue;
    const __m512 one = (__m512)rows[i], other = (__m512)rows[i + kSide];
    rows[i] = (vf)_mm512_permutex2var_ps(one, (__m512i)low, other);
    rows[i + kSide] = (vf)_mm512_permutex2var_ps(one, (__m512i)high, other);
  }
}

// Tokens rounded to bf16. For 16 tokens after 16 tokens, for 32 coordinates after 32 coordinates, a tile: row p holds
// coordinates 2p and 2p + 1 of each token. Zeros behind the last coordinate and the last token.
template <class T>
struct PackedTokens {
  int64_t steps, columns;  // tiles along d; tokens, in whole tiles or pairs of them
  Scratch<bf16> tiles;
  Scratch<screen::Slack> slack;

  explicit PackedTokens(const sk_matrix& x)
      : steps((x.cols + kStep - 1) / kStep), columns(x.rows <= 16 ? 16 : (x.rows + 31) / 32 * 32),
        tiles(columns * steps * kStep), slack(x.rows) {
    const Scratch<bf16> row(steps * kStep);
    if (!ready() || !row.data) {
      failed = true;
      return;
    }
    memset(tiles.data, 0, size_t(columns * steps * kStep) * sizeof(bf16));
    memset(row.data, 0, size_t(steps * kStep) * sizeof(bf16));
    for (int64_t t = 0; t < x.rows; ++t) {
      float norm, dropped;
      screen::round_row(row_of<T>(x, t), x.cols, row.data, &norm, &dropped);
      slack[t] = screen::slack_of(norm, dropped, x.cols);
      bf16* out = tiles.data + t / 16 * steps * kTileElements + t % 16 * 2;
      for (int64_t i = 0; i < steps * kStep; i += 2) memcpy(out + i / 2 * 32, row.data + i, 4);
    }
  }
  bool ready() const { return tiles.data && slack.data && !failed; }

 private:
  bool failed = false;
};

struct TiledScores {
  int64_t n, d, steps;
  const bf16 *x, *W;  // tokens, packed; the copy, rows next to each other

  typedef tiles::InUse Thread;

  // However long rows are: it is groups of 16 to 64 latents that stay in cache while all tokens pass over them.
  int64_t block_size() const { return kMostLatents; }

  void block(int64_t first, int64_t count, int64_t end, float* out, int64_t out_stride) const {
    if (n <= 16) return groups<4, 1>(first, count, end, out, out_stride);
    groups<2, 2>(first, count, end, out, out_stride);
  }

 private:
  // kTall tiles of latents by kWide tiles of tokens.
  template <int kTall, int kWide>
  void groups(int64_t first, int64_t count, int64_t end, float* out, int64_t out_stride) const {
    constexpr int64_t kLatents = 16 * kTall, kTokens = 16 * kWide;
    const int64_t passes = (n + kTokens - 1) / kTokens;
    // The next group, in the order in which it lies in memory, a part in each pass over this one.
    const int lines = int((kLatents + passes - 1) / passes);
    for (int64_t l = 0; l < count; l += kLatents) {
      const bf16* w = W + (first + l) * d;
      const int64_t there = end - first - l < kLatents ? end - first - l : kLatents;
      const char* ahead = reinterpret_cast<const char*>(w + kLatents * d);
      for (int64_t t = 0; t < n; t += kTokens) {
        group<kTall, kWide>(w, there, x + t * steps * kStep, ahead, lines);
        alignas(64) float found[4 * 256];
        keep<kTall, kWide>(found);
        for (int wide = 0; wide < kWide && t + 16 * wide < n; ++wide)
          for (int tall = 0; tall < kTall; ++tall)
            turn(found + (tall * kWide + wide) * 256, n - t - 16 * wide, out + (t + 16 * wide) * out_stride + l + 16 * tall,
                 out_stride);
      }
    }
  }

  // Sums of all products, in tiles 0 to 3: latents of the first 16, then of the next.
  template <int kTall, int kWide>
  inline void group(const bf16* w, int64_t there, const bf16* tokens, const char*& ahead, int lines) const {
    constexpr int64_t kLatents = 16 * kTall;
    alignas(64) bf16 part[kLatents * kStep];
    tiles::zero<0>();
    tiles::zero<1>();
    tiles::zero<2>();
    tiles::zero<3>();
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t i = step * kStep;
      const bf16* from = w + i;
      int64_t stride = d;
      if (there < kLatents || d - i < kStep) {
        take_part<kLatents>(from, there, d - i < kStep ? d - i : kStep, part);
        from = part;
        stride = kStep;
      }
      for (int line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      multiply(Shape<kTall, kWide>(), from, stride * int64_t(sizeof(bf16)), tokens + step * kTileElements);
    }
  }

  // What there is of a group's rows, zeros in place of the rest: what lies behind a row may be NaN, or not be there.
  template <int64_t kLatents>
  void take_part(const bf16* w, int64_t there, int64_t columns, bf16* part) const {
    for (int64_t r = 0; r < kLatents; ++r) {
      const vu row = r < there ? WidenedTile::pairs(w + r * d, columns) : vu{};
      memcpy(part + r * kStep, &row, sizeof row);
    }
  }

  template <int kTall, int kWide>
  struct Shape {};

  SK_INLINE void multiply(Shape<2, 2>, const bf16* w, int64_t stride, const bf16* tokens) const {
    tiles::load<4>(tokens, tiles::kBytes);
    tiles::load<6>(w, stride);
    tiles::add_bf16<0, 6, 4>();
    tiles::load<5>(tokens + steps * kTileElements, tiles::kBytes);
    tiles::add_bf16<1, 6, 5>();
    tiles::load<7>(below(w, stride, 1), stride);
    tiles::add_bf16<2, 7, 4>();
    tiles::add_bf16<3, 7, 5>();
  }
  SK_INLINE void multiply(Shape<4, 1>, const bf16* w, int64_t stride, const bf16* tokens) const {
    tiles::load<4>(tokens, tiles::kBytes);
    tiles::load<5>(w, stride);
    tiles::add_bf16<0, 5, 4>();
    tiles::load<6>(below(w, stride, 1), stride);
    tiles::add_bf16<1, 6, 4>();
    tiles::load<7>(below(w, stride, 2), stride);
    tiles::add_bf16<2, 7, 4>();
    tiles::load<5>(below(w, stride, 3), stride);
    tiles::add_bf16<3, 5, 4>();
  }
  static SK_INLINE const char* below(const bf16* w, int64_t stride, int64_t tall) {
    return reinterpret_cast<const char*>(w) + 16 * tall * stride;
  }

  template <int kTall, int kWide>
  static SK_INLINE void keep(float* found) {
    tiles::store<0>(found, tiles::kBytes);
    tiles::store<1>(found + 256, tiles::kBytes);
    tiles::store<2>(found + 512, tiles::kBytes);
    tiles::store<3>(found + 768, tiles::kBytes);
  }

  // 16 latents by 16 tokens to the tokens' rows.
  static inline void turn(const float* found, int64_t tokens, float* out, int64_t out_stride) {
    vf rows[16];
    SK_UNROLL
    for (int i = 0; i < 16; ++i) rows[i] = load(found + 16 * i);
    exchange<1>(rows);
    exchange<2>(rows);
    exchange<4>(rows);
    exchange<8>(rows);
    SK_UNROLL
    for (int i = 0; i < 16; ++i)
      if (i < tokens) store(out + i * out_stride, rows[i]);
  }
};

}  // namespace few
}  // namespace
#endif
