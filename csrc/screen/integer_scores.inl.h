// Products of integer rows as screening scores in bfloat16: what PyTorch's bfloat16 products are to screened_*.
#pragma once
#include "screen/integer_tile.inl.h"

namespace {
namespace screen {
namespace integers {

// Scores of one group of latents for `count` tokens of a tile; `lanes` of its 32 latents are there.
inline void store_scores(const sk_integer_latents& latents, int64_t at, int lanes, const float* steps, int count,
                         const int32_t* products, bf16* out, int64_t stride) {
  for (int l = 0; l < lanes; l += kLanes) {
    const vf a = load(latents.scale + at + l), b = load(latents.offset + at + l);
    const int n = lanes - l < kLanes ? lanes - l : kLanes;
    for (int t = 0; t < count; ++t) {
      const vf score = fma(a, as_floats(products + t * kAbreast + l), b) * splat(steps[t]);
      bf16* row = out + t * stride + l;
      if (n == kLanes) {
        const vh h = narrow_bf16(score);
        memcpy(row, &h, sizeof h);
      } else {
        store_part(row, score, n);
      }
    }
  }
}

template <class Kind>
struct Scores {
  const sk_integer_tokens& tokens;
  const sk_integer_latents& latents;
  const sk_output& out;
  int64_t bytes;  // of a row
  TokenTile<Kind> layout;

  // All latents for some tiles. False: no memory.
  bool run(int64_t first_tile, int64_t last_tile) const {
    const int64_t tile = layout.tokens, groups = (latents.count + kAbreast - 1) / kAbreast;
#if SK_TILES
    const tiles::InUse here(tile >= 16);
#endif
    const Scratch<int32_t> products(kMostTokens * kAbreast), room(kMostTokens * 16);
    if (!products.data || !room.data) return false;
    const int64_t block = 1 + kBlockBytes / (bytes * kAbreast);
    for (int64_t b = 0; b < groups; b += block)
      for (int64_t t = first_tile; t < last_tile; ++t) {
        const int64_t row = t * tile;
        const int count = int(tokens.n - row < tile ? tokens.n - row : tile);
        int32_t each[kMostTokens] = {};
        float steps[kMostTokens] = {};
        for (int i = 0; i < count; ++i) each[i] = tokens.start[row + i], steps[i] = tokens.scale[row + i];
        const int32_t* starts = ready_starts(tile, each, room.data);
        const char* xs = static_cast<const char*>(tokens.packed) + t * layout.size;
        for (int64_t g = b; g < groups && g < b + block; ++g) {
          const int64_t at = g * kAbreast;
          const uint8_t* ws = static_cast<const uint8_t*>(latents.packed) + at * bytes;
          tile_products<Kind>(tile, xs, ws, bytes / 4, starts, products.data);
          const int lanes = int(latents.count - at < kAbreast ? latents.count - at : kAbreast);
          bf16* to = static_cast<bf16*>(out.data) + row * out.stride + at;
          store_scores(latents, at, lanes, steps, count, products.data, to, out.stride);
        }
      }
    return true;
  }
};

}  // namespace integers
}  // namespace screen

sk_status integer_scores(int32_t bits, sk_integer_tokens tokens, sk_integer_latents latents, int64_t d,
                         sk_output scores, int32_t threads) {
  using namespace screen::integers;
  if (d < 0 || d > kMostColumns || scores.rows != tokens.n || scores.cols != latents.count)
    return failure(SK_BAD_SIZE);
  if (tokens.n == 0) return success();
  return for_bits(bits, [&](auto kind) {
    using Kind = decltype(kind);
    const int64_t bytes = row_bytes<Kind>(d);
    const TokenTile<Kind> layout(tokens.n, bytes);
    const int64_t tiles = (tokens.n + layout.tokens - 1) / layout.tokens;
    const Scores<Kind> all{tokens, latents, scores, bytes, layout};
    const int64_t runs = threads < 1 ? 1 : threads < tiles ? threads : tiles;
    int32_t full = 0;
    parallel_runs(runs, 1, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u)
        if (!all.run(tiles * u / runs, tiles * (u + 1) / runs)) __atomic_store_n(&full, 1, __ATOMIC_RELAXED);
    });
    return full ? failure(SK_NO_MEMORY) : success();
  });
}

}  // namespace
