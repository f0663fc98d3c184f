// A few tokens against all latents: each thread takes one run of latents, computes the scores of a block of them and hands
// those on while they are in cache. Nothing is as large as a row of scores.
#pragma once
#include "few/tiles.inl.h"
#include "screen/candidates.inl.h"

namespace {
namespace few {

constexpr int64_t kThreadWork = 1 << 17;  // products worth waking another thread for
constexpr int64_t kOutStride = kMostLatents + 16;

template <class T>
struct Problem {
  sk_matrix x, W;
  const T* bias;  // of all latents, or null
  int workers;

  Problem(sk_matrix x, sk_matrix W, const void* bias, int32_t threads)
      : x(x), W(W), bias(static_cast<const T*>(bias)), workers(threads < 1 ? 1 : threads) {
    const int64_t work = x.rows * W.rows * (W.cols + 1) / kThreadWork;
    if (work < workers) workers = work < 1 ? 1 : int(work);
  }
  // Float32 biases of a block: the array itself, or a copy in `room`; null where there are none.
  const float* biases(int64_t first, int64_t count, float* room) const {
    if (!bias) return nullptr;
    for (int64_t i = 0; i < count; ++i) room[i] = to_float(bias[first + i]);
    return room;
  }
};

inline bool fits(const sk_matrix& x, const sk_matrix& W) {
  return x.rows >= 1 && x.cols == W.cols && W.cols >= 1 && W.rows >= 1 && W.rows <= INT32_MAX;
}

// Rows a cache line longer than they need be: of those a power of two apart, caches hold only a few.
constexpr int64_t token_stride(int64_t d, int64_t multiple, int64_t line) {
  return (d + multiple - 1) / multiple * multiple + line;
}

// Tokens in float32.
template <class T>
struct PlainTokens {
  int64_t stride;
  Scratch<float> rows;
  explicit PlainTokens(const sk_matrix& x) : stride(token_stride(x.cols, 16, 16)), rows(x.rows * stride) {
    if (!rows.data) return;
    for (int64_t t = 0; t < x.rows; ++t)
      for (int64_t i = 0; i < x.cols; i += kLanes) {
        const int n = x.cols - i < kLanes ? int(x.cols - i) : kLanes;
        store_n(rows.data + t * stride + i, load_n(row_of<T>(x, t) + i, n), n);
      }
  }
};

// Tokens for screening, with what bounds its errors: in float32 as WidenedTile wants them, which drops nothing, or rounded.
template <class T, class Token>
struct ScreenedTokens {
  int64_t stride;
  Scratch<Token> rows;
  Scratch<screen::Slack> slack;
  explicit ScreenedTokens(const sk_matrix& x)
      : stride(token_stride(x.cols, kPair, 64 / int64_t(sizeof(Token)))), rows(x.rows * stride), slack(x.rows) {
    if (!rows.data || !slack.data) return;
    memset(rows.data, 0, size_t(x.rows * stride) * sizeof(Token));
    for (int64_t t = 0; t < x.rows; ++t) {
      float norm, dropped;
      place(row_of<T>(x, t), x.cols, rows.data + t * stride, &norm, &dropped);
      slack[t] = screen::slack_of(norm, dropped, x.cols);
    }
  }
  static void place(const T* row, int64_t d, bf16* out, float* norm, float* dropped) {
    screen::round_row(row, d, out, norm, dropped);
  }
  static void place(const T* row, int64_t d, float* out, float* norm, float* dropped) {
    screen::round_row(row, d, static_cast<bf16*>(nullptr), norm, dropped);
    for (int64_t i = 0; i < d; ++i) out[i / kPair * kPair + i % kPair / 2 + i % 2 * kLanes] = to_float(row[i]);
  }
};

// body(thread, first, count, scores) for block after block of each thread's latents, ascending; scores of token t begin at
// scores + t * kOutStride. A body that returns false ends its thread's share.
template <class S, class Body>
inline bool each_block(const S& scores, int64_t m, int workers, const Body& body) {
  const int64_t block = scores.block_size();
  const Scratch<float> room(workers * scores.n * kOutStride);
  if (!room.data) return false;
  parallel(workers, [&](int thread, int threads) {
    [[maybe_unused]] const typename S::Thread here{};
    float* out = room.data + thread * scores.n * kOutStride;
    const int64_t share = (m + threads - 1) / threads, begin = thread * share;
    const int64_t end = begin + share < m ? begin + share : m;
    for (int64_t first = begin; first < end; first += block) {
      const int64_t count = end - first < block ? end - first : block;
      scores.block(first, count, end, out, kOutStride);
      if (!body(thread, first, count, static_cast<const float*>(out))) return;
    }
  });
  return true;
}

// The same with exact scores, bias included. False: no memory.
template <class T, class Body>
inline bool each_exact_block(const Problem<T>& p, const Body& body) {
  const PlainTokens<T> tokens(p.x);
  if (!tokens.rows.data) return false;
  const Scores<ExactTile<T>> scores{{p.x.cols}, tokens.rows.data, p.x.rows, tokens.stride,
                                    static_cast<const T*>(p.W.data), p.W.stride};
  return each_block(scores, p.W.rows, p.workers, [&](int thread, int64_t first, int64_t count, const float* out) {
    float room[kMostLatents];
    if (const float* bias = p.biases(first, count, room))
      for (int64_t t = 0; t < p.x.rows; ++t) {
        float* row = const_cast<float*>(out) + t * kOutStride;
        for (int64_t i = 0; i < count; ++i) row[i] += bias[i];
      }
    return body(thread, first, count, out);
  });
}

// The same with screening scores: body(thread, first, count, around), around(t, body) a row's Around.
template <class T, class Body>
inline bool each_screened_block(const Problem<T>& p, const sk_rounded& copy, const Body& body) {
  const auto with = [&](const auto& scores, const screen::Slack* slack) {
    return each_block(scores, p.W.rows, p.workers, [&](int thread, int64_t first, int64_t count, const float* out) {
      float room[kMostLatents];
      const float* bias = p.biases(first, count, room);
      const auto around = [&](int64_t t, const auto& use) {
        const float *z = out + t * kOutStride, *norm = copy.norms + first, *dropped = copy.dropped + first;
        if (bias) return use(screen::Around<true, float>{z, norm, dropped, bias, slack[t]});
        return use(screen::Around<false, float>{z, norm, dropped, bias, slack[t]});
      };
      return body(thread, first, count, around);
    });
  };
  const auto by = [&](auto tile) {
    typedef decltype(tile) Tile;
    const ScreenedTokens<T, typename Tile::Token> tokens(p.x);
    if (!tokens.rows.data || !tokens.slack.data) return false;
    return with(Scores<Tile>{tile, tokens.rows.data, p.x.rows, tokens.stride, static_cast<const bf16*>(copy.rows), p.x.cols},
                tokens.slack.data);
  };
#if SK_TILES
  if (copy.dots && p.x.rows >= kTiledTokens) {
    const PackedTokens<T> tokens(p.x);
    if (!tokens.ready()) return false;
    return with(TiledScores{p.x.rows, p.x.cols, tokens.steps, tokens.tiles.data, static_cast<const bf16*>(copy.rows)},
                tokens.slack.data);
  }
#endif
#if SK_BF16_DOTS
  if (copy.dots && sk_fast_bf16_dots()) return by(DotTile{p.x.cols});
#endif
  return by(WidenedTile{p.x.cols});
}

// Where bounds decide so little that computing everything in float32 is faster: more than expected, and than one score
// computed for every so many screened.
inline bool too_many(int64_t computed, int64_t expected, int64_t screened) { return computed > expected + screened / 12; }

// What becomes of a thread's share, and of the whole.
enum { kScreened = 1, kContradicted = 2, kGivenUp = 4, kNoMemory = 8 };

}  // namespace few
}  // namespace
