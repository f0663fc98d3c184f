// linear_topk's selection, screened by products of rows of integers: the filter follows each tile's products while they
// are in the first cache, and what it lets through is settled in float32 as in screened_topk.inl.h.
//
// How far a screening score may lie from x . w as `dot_rows` computes it. For certain (widths 0), with |x - x'| and
// |w - w'| as kept, what rounding left of the rotated rows, and |x'| <= |x| + |x - x'|:
//
//   |x - x'| |w| + (|x| + |x - x'|) |w - w'|                   Cauchy-Schwarz
//
// Or but for the probability that `widths` stands for (derived in sae_kernels/kernels/_screen/integers.py; |w| and |x| as
// kept, rounded up):
//
//   widths sqrt((s_x |w|)^2 + (s_w X)^2)                       chance: the dithers'; X = |x| + s_x sqrt(d) / 2
//     <= widths X |w| (a / (2 r) (a + (s_w / |w|)^2 / a) + ...) as a tangent: two numbers a latent, two a token
//
// Both and what the grid, the rotation and float arithmetic leave for certain, a multiple of X |w|.
#pragma once
#include "screen/by_latent.inl.h"
#include "screen/integer_tile.inl.h"

namespace {
namespace screen {
namespace integers {

// One score computed exactly for every so many screened costs about as much as screening saves.
constexpr int64_t kScreenedAComputed = 48;

// A token's share of the bound: of_norm |w| + of_spread s_w^2 / |w| + what the bias adds; where it is certain, |w - w'|
// stands in the place of s_w^2 / |w|.
struct Share {
  float of_norm, of_spread;
};

inline Share share_of(const sk_integer_tokens& tokens, int64_t r, int64_t width, float widths) {
  const float step = tokens.scale[r], norm = tokens.norm[r], rest = tokens.rest[r];
  const double up = 1 + 0x1p-12;
  if (widths == 0) return {rest, float(up * (double(norm) + rest))};
  const double X = double(norm) + step * __builtin_sqrt(double(width)) / 2, alpha = step / X;
  // sqrt(a^2 + b^2) <= (a^2 + b^2) / (2 r) + r / 2, with equality at r = sqrt(2) a if b = a
  const double at = __builtin_sqrt(2.0) * alpha;
  const double of_norm = widths * X * (alpha * alpha / (2 * at) + at / 2);
  return {float(up * (of_norm + tokens.unseen[r])), float(up * widths * X / (2 * at))};
}

// What a token's scores are made with, and compared with.
struct Token {
  float step, least;  // s_x; a score whose upper bound lies below `least` cannot be chosen any more
  Share share;
  int64_t computed;
  bool open;  // false: candidates enough that nothing ranks above, or given up
};

// Bits of lanes whose score may reach `least`, NaNs among them.
SK_INLINE uint64_t not_below(vf high, vf least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)high, (__m512)least, _CMP_NLT_UQ);
#else
  return sel::at_least((Vector<int32_t>)(high < least), Vector<int32_t>{});  // true is -1
#endif
}

// What the scores of 32 latents need beside their products.
struct Group {
  const float *scale, *offset, *norm, *spread;
  float bias[kAbreast], slack[kAbreast];  // slack: what adding the bias rounds away, and what flushed denormals were
  uint64_t allowed;

  Group(const sk_integer_latents& latents, const float* spreads, const float* biases, const uint8_t* among, int64_t at)
      : scale(latents.scale + at), offset(latents.offset + at), norm(latents.norm + at), spread(spreads + at) {
    const int64_t left = latents.count - at, first = latents.first + at;
    allowed = left < kAbreast ? (uint64_t(1) << left) - 1 : 0xffffffffu;
    for (int l = 0; l < kAbreast; l += kLanes) {
      const int n = left - l < kLanes ? int(left - l) : kLanes;
      const vf b = !biases || n <= 0 ? vf{} : load_n(biases + first + l, n);
      const vf size = (vf)((vu)b & splat_u(0x7fffffff)), most = splat(__FLT_MAX__);
      store(bias + l, b);
      store(slack + l, fma(splat(0x1p-21f), size < most ? size : most, splat(0x1p-100f)));
    }
    for (int l = 0; among && l < kAbreast && l < left; ++l) allowed &= ~(uint64_t(!among[first + l]) << l);
  }

  SK_INLINE vf score(int l, const int32_t* products, float step) const {
    return fma(fma(load(scale + l), as_floats(products + l), load(offset + l)), splat(step), load(bias + l));
  }
  SK_INLINE vf reach(int l, Share share) const {
    return fma(load(spread + l), splat(share.of_spread), fma(load(norm + l), splat(share.of_norm), load(slack + l)));
  }

  // bits[t]: which of them token t may have to choose.
  SK_INLINE void filter(int count, const int32_t* products, const Token* tokens, uint64_t* bits) const {
    for (int t = 0; t < count; ++t) bits[t] = 0;
    for (int l = 0; l < kAbreast; l += kLanes) {
      const vf a = load(scale + l), b = load(offset + l), top = load(bias + l) + load(slack + l);
      const vf size = load(norm + l), spreads = load(spread + l);
      for (int t = 0; t < count; ++t) {
        const vf around = fma(fma(a, as_floats(products + t * kAbreast + l), b), splat(tokens[t].step), top);
        const Share share = tokens[t].share;
        const vf high = fma(spreads, splat(share.of_spread), fma(size, splat(share.of_norm), around));
        bits[t] |= not_below(high, splat(tokens[t].least)) << l;
      }
    }
    for (int t = 0; t < count; ++t) bits[t] &= allowed;
  }
};

// Counts of rows that are given up: candidates took too many exact computations, or an exact score lay outside its
// bounds (they are other weights', or chance had it so).
constexpr int32_t kUnsettled = -1, kContradicted = -2;

inline bool open(const Candidates& c) { return c.count >= 0 && !c.closed(); }

// A score below this one cannot be chosen any more.
inline float least_of(const Candidates& c) {
  return c.bound >= Float32::kFirstNaN ? __builtin_inff() : sel::score_of(c.bound);
}

template <class Kind, class T>
struct Fold {
  const sk_screened_topk& s;
  int64_t parts;
  const sk_integer_tokens& tokens;
  const sk_integer_latents& latents;
  const sk_matrix &x, &W;
  const float* bias;
  const uint8_t* among;
  float widths;
  int64_t size, bytes;  // of a row: numbers, and what they take
  TokenTile<Kind> layout;

  Candidates candidates(int64_t part, int64_t r) const { return candidates_of(s, part * tokens.n + r, true); }
  void keep(int64_t part, int64_t r, const Candidates& c) const {
    s.count[part * tokens.n + r] = int32_t(c.count);
    s.bound[part * tokens.n + r] = c.bound;
  }

  // Takes in what `bits` names of a group, whose first latent is `first`; `screened` counts it too.
  void take(int64_t part, int64_t r, Token& token, const Group& group, const int32_t* products, uint64_t bits,
            int64_t first, int64_t screened) const {
    Candidates c = candidates(part, r);
    const Exactly<T> exactly{row_of<T>(x, r), W, 0, bias};
    const int64_t allowance = (widths == 0 ? 16 : 8) * s.k;
    for (int l = 0; l < kAbreast; l += kLanes) {
      const uint64_t here = bits >> l & ((uint64_t(1) << kLanes) - 1);
      if (!here) continue;
      const vf score = group.score(l, products, token.step), reach = group.reach(l, token.share);
      c.append(score + reach, score - reach, here, first + l);
      if (!c.full()) continue;
      c.shrink(exactly);
      if (c.contradicted) c.count = kContradicted;
      else if (token.computed + c.computed > allowance + screened / kScreenedAComputed) c.count = kUnsettled;
      if (c.count < 0) break;
    }
    token.computed += c.computed;
    token.least = least_of(c);
    token.open = open(c);
    keep(part, r, c);
  }

  // One part's latents for some tiles. False: no memory.
  bool run(int64_t part, int64_t first_tile, int64_t last_tile) const {
    const int64_t tile = layout.tokens;
#if SK_TILES
    const tiles::InUse here(tile >= 16);
#endif
    const int64_t first_row = first_tile * tile, end_row = last_tile * tile < tokens.n ? last_tile * tile : tokens.n;
    const Scratch<Token> known(end_row - first_row);
    const Scratch<int32_t> products(kMostTokens * kAbreast), room(kMostTokens * 16);
    if (!known.data || !products.data || !room.data) return false;
    for (int64_t r = first_row; r < end_row; ++r) {
      if (latents.first == 0) s.count[part * tokens.n + r] = 0, s.bound[part * tokens.n + r] = Float32::kLeast;
      const Candidates c = candidates(part, r);
      const Share share = share_of(tokens, r, size, widths);
      known[r - first_row] = {tokens.scale[r], least_of(c), share, 0, open(c)};
    }
    const float* spreads = widths == 0 ? latents.rest : latents.spread;
    const int64_t groups = (latents.count + kAbreast - 1) / kAbreast, begin = groups * part / parts;
    const int64_t end = groups * (part + 1) / parts, block = 1 + kBlockBytes / (bytes * kAbreast);
    for (int64_t b = begin; b < end; b += block)
      for (int64_t t = first_tile; t < last_tile; ++t) {
        Token* mine = known.data + (t - first_tile) * tile;
        const int count = int(end_row - t * tile < tile ? end_row - t * tile : tile);
        bool any = false;
        for (int i = 0; i < count; ++i) any |= mine[i].open;
        if (!any) continue;
        int32_t each[kMostTokens] = {};
        for (int i = 0; i < count; ++i) each[i] = tokens.start[t * tile + i];
        const int32_t* starts = ready_starts(tile, each, room.data);
        const char* xs = static_cast<const char*>(tokens.packed) + t * layout.size;
        for (int64_t g = b; g < end && g < b + block; ++g) {
          const uint8_t* ws = static_cast<const uint8_t*>(latents.packed) + g * kAbreast * bytes;
          tile_products<Kind>(tile, xs, ws, bytes / 4, starts, products.data);
          const Group group(latents, spreads, bias, among, g * kAbreast);
          uint64_t bits[kMostTokens];
          group.filter(count, products.data, mine, bits);
          for (int i = 0; i < count; ++i)
            if (bits[i] && mine[i].open)
              take(part, t * tile + i, mine[i], group, products.data + i * kAbreast, bits[i],
                   latents.first + g * kAbreast, (g + 1 - begin) * kAbreast);
        }
      }
    int64_t computed = 0;
    for (int64_t i = 0; i < end_row - first_row; ++i) computed += known[i].computed;
    __atomic_fetch_add(s.computed, computed, __ATOMIC_RELAXED);
    return true;
  }
};

inline bool fits(const sk_screened_topk& s, int64_t parts, const sk_matrix& x, const sk_matrix& W) {
  return s.k >= 1 && s.room >= candidate_room(s.k) && parts >= 1 && s.n == parts * x.rows &&
         x.cols == W.cols && x.cols <= kMostColumns &&
         W.rows <= INT32_MAX;
}

// The lists of a row's parts as one. False: no memory.
template <class T, class Body>
inline bool with_all(const sk_screened_topk& s, int64_t parts, int64_t r, const Body& body) {
  const int64_t n = s.n / parts;
  if (parts == 1) {
    body(candidates_of(s, r, true));
    return true;
  }
  int64_t total = 0, at = 0;
  for (int64_t p = 0; p < parts; ++p) total += s.count[p * n + r];
  const int64_t room = total + sel::kSlack;
  const Scratch<int32_t> lists(3 * room);
  if (!lists.data) return false;
  Candidates all{lists.data, lists.data + room, lists.data + 2 * room, total, total, s.k, Float32::kLeast, 0};
  for (int64_t p = 0; p < parts; ++p) {
    const Candidates c = candidates_of(s, p * n + r, true);
    const size_t bytes = size_t(c.count) * sizeof(int32_t);
    memcpy(all.upper + at, c.upper, bytes);
    memcpy(all.lower + at, c.lower, bytes);
    memcpy(all.index + at, c.index, bytes);
    at += c.count;
    if (c.bound > all.bound) all.bound = c.bound;
  }
  body(all);
  return true;
}

}  // namespace integers
}  // namespace screen

// Folds latents in, ascending from call to call; those of one call only where there are several parts. state.n = parts
// times the tokens: each part of the latents has lists of its own.
sk_status integer_topk_fold(int32_t dtype, int32_t bits, sk_screened_topk s, int64_t parts, sk_integer_tokens tokens,
                            sk_integer_latents latents, sk_matrix x, sk_matrix W, const float* bias,
                            const uint8_t* among, float widths, int32_t threads) {
  using namespace screen::integers;
  if (!fits(s, parts, x, W) || x.rows != tokens.n || !screen::covers(W, 0, latents.first, latents.count) ||
      (parts > 1 && latents.first > 0) || (bits != 8 && widths != 0))
    return failure(SK_BAD_SIZE);
  if (tokens.n == 0) return success();
  return for_bits(bits, [&](auto kind) {
    using Kind = decltype(kind);
    const TokenTile<Kind> layout(tokens.n, row_bytes<Kind>(x.cols));
    const int64_t tiles = (tokens.n + layout.tokens - 1) / layout.tokens;
    const int64_t workers = threads < 1 ? 1 : threads;
    int64_t runs = parts >= 2 * workers ? 1 : (workers + parts - 1) / parts;
    if (runs > tiles) runs = tiles;
    int32_t full = 0;
    const sk_status status = for_dtype(dtype, [&](auto type) {
      const int64_t size = width(x.cols), bytes = row_bytes<Kind>(x.cols);
      const Fold<Kind, decltype(type)> fold{s,    parts, tokens, latents, x,     W,
                                            bias, among, widths, size,    bytes, layout};
      parallel_runs(parts * runs, 1, threads, [&](int, int64_t begin, int64_t end) {
        for (int64_t u = begin; u < end; ++u) {
          const int64_t part = u / runs, run = u % runs;
          const bool done = fold.run(part, tiles * run / runs, tiles * (run + 1) / runs);
          if (!done) __atomic_store_n(&full, 1, __ATOMIC_RELAXED);
        }
      });
      return success();
    });
    return full ? failure(SK_NO_MEMORY) : status;
  });
}

namespace screen {
namespace integers {

// `Candidates::finish` of all rows that have not failed, each of its steps latent by latent. False: no memory.
template <class T>
inline bool finish_together(const sk_screened_topk& s, const ByLatent<T>& by_latent, int32_t relu, void* values,
                            int32_t* indices, uint8_t* failed) {
  const Scratch<int32_t> least(s.n);
  const Scratch<uint8_t> contradicted(s.n);
  if (!least.data || !contradicted.data) return false;
  memset(contradicted.data, 0, size_t(s.n));
  const auto each = [&](const auto& body) {
    parallel_runs(s.n, 16, by_latent.threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        Candidates c = candidates_of(s, r, true);
        if (!failed[r]) body(r, c);
      }
    });
  };
  for (int64_t r = 0; r < s.n; ++r) least[r] = INT32_MAX;  // nothing
  each([&](int64_t r, Candidates& c) {
    c.thin();
    s.count[r] = int32_t(c.count);
    if (c.count > c.k) least[r] = c.kth_upper();
  });
  if (!by_latent.compute(least.data, contradicted.data)) return false;
  each([&](int64_t r, Candidates& c) {
    c.thin();
    s.count[r] = int32_t(c.count);
    least[r] = Float32::kLeast;
  });
  if (!by_latent.compute(least.data, contradicted.data)) return false;
  each([&](int64_t r, Candidates& c) {
    if (contradicted[r]) {
      failed[r] = uint8_t(-kContradicted);
      return;
    }
    c.keep_best();
    sel::write_row<T>(c.lower, c.index, c.count, s.k, r, relu, values, indices);
  });
  return true;
}

}  // namespace integers
}  // namespace screen

// As screened_topk_finish. Rows that were given up are not written; failed[r] says which, and by which count, negated.
sk_status integer_topk_finish(int32_t dtype, sk_screened_topk s, int64_t parts, sk_matrix x, sk_matrix W,
                              const float* bias, int32_t relu, void* values, int32_t* indices, uint8_t* failed,
                              int32_t threads) {
  using namespace screen::integers;
  if (!fits(s, parts, x, W)) return failure(SK_BAD_SIZE);
  for (int64_t r = 0; r < x.rows; ++r) {
    failed[r] = 0;
    for (int64_t p = 0; p < parts; ++p) {
      const int32_t count = s.count[p * x.rows + r];
      if (count < 0 && -count > failed[r]) failed[r] = uint8_t(-count);
    }
  }
  int32_t full = 0;
  const sk_status status = for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    if (parts == 1 && screen::ByLatent<T>::goes(s)) {
      full = !finish_together<T>(s, {s, x, W, bias, threads}, relu, values, indices, failed);
      return success();
    }
    parallel_runs(x.rows, 4, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        if (failed[r]) continue;
        const bool done = with_all<T>(s, parts, r, [&](screen::Candidates c) {
          c.finish(screen::Exactly<T>{row_of<T>(x, r), W, 0, bias});
          __atomic_fetch_add(s.computed, c.computed, __ATOMIC_RELAXED);
          if (c.contradicted) failed[r] = uint8_t(-kContradicted);
          else sel::write_row<T>(c.lower, c.index, c.count, s.k, r, relu, values, indices);
        });
        if (!done) __atomic_store_n(&full, 1, __ATOMIC_RELAXED);
      }
    });
    return success();
  });
  return full ? failure(SK_NO_MEMORY) : status;
}

}  // namespace
