// How far a screening score s = x_h . w_h (h: rounded to bfloat16) may lie from x . w as `dot_rows` computes it.
//
//   |x.w - x_h.w_h| <= |x_l| |w| + |x_h| |w_l|                 Cauchy-Schwarz; l: what rounding dropped
//   the GEMM's float32 sums: g' |x_h| |w_h|                    g' = (d+8) 2^-23, in any order, even if it truncates
//   dot_rows' own: g |x| |w|                                   g = (d+8) 2^-24, round to nearest
//   s rounded to bfloat16: 2^-8 |s|                            half a unit in the last of 8 places, of s itself; none
//                                                              where s is kept in float32
//   s + b, x . w + b and this bound added: 2^-16 |s| + 2^-22 |b|    three roundings to nearest
//   denormals, flushed or not: 8 (d+8) 2^-126 (|x| + |w| + 4)
//
// The last holds for AMX too, whose TDPBF16PS takes denormals for zeros and writes none: an element below 2^-126 that is
// taken for zero loses 2^-126 of the other side's, sqrt(d) 2^-126 (|x| + |w|) in all of a sum; each of its sums that is
// flushed loses 2^-126: d fused ones, and two for every 32 coordinates. dot_rows, where the thread flushes, as much
// again. Its order is within the second: 16 sums of pairs one after the other, those of both kinds added up, and that
// to the sum so far, each rounded to nearest: no product goes through more than 16 + 1 + d/32 + 1, or d/2 + 2, of them.
//
// with |x_h| <= |x| + |x_l| and |w_h| <= |w| + |w_l|. Rows that are huge or not finite have NaN for a norm, and so for
// a bound: it reaches everything. An infinite bias on other rows keeps a finite one: there s + b is exact.
#pragma once
#include "screen/round.inl.h"
#include "select/scores.inl.h"

namespace {
namespace screen {

template <bool kSet>
struct Flag {
  static constexpr bool value = kSet;
};

// A token's share: bound = of_norm |w| + of_dropped |w_l| + fixed + what s and b add.
struct Slack {
  float of_norm, of_dropped, fixed;
};

inline Slack slack_of(float norm, float dropped, int64_t d) {
  const double steps = double(d + 8), up = 1 + 0x1p-16;  // up: for this arithmetic in float32
  const double g = steps * 0x1p-24 < 0.25 ? steps * 0x1p-24 / (1 - steps * 0x1p-23) : __builtin_inf();
  const double rounded = double(norm) + dropped, flushed = 8 * steps * 0x1p-126;
  return {float(up * (dropped + g * norm + 2 * g * rounded + flushed)), float(up * rounded * (1 + 2 * g)),
          float(up * flushed * (double(norm) + 4))};
}

// Screening scores of one token for a chunk of latents: per vector, the middle of what they may be and how far
// it reaches either side.
template <bool kBias, class Score = bf16>
struct Around {
  const Score* scores;
  const float *norm, *dropped, *bias;  // of the chunk's first latent onwards
  Slack slack;

  struct Interval {
    vf middle, reach;
  };

  SK_INLINE Interval at(int64_t i, int n) const {
    const vf s = load_n(scores + i, n);
    const vf size = (vf)((vu)s & splat_u(0x7fffffff));
    vf reach = fma(splat(slack.of_norm), load_n(norm + i, n), splat(slack.fixed));
    reach = fma(splat(slack.of_dropped), load_n(dropped + i, n), reach);
    reach = fma(splat(sizeof(Score) == sizeof(bf16) ? 0x1.01p-8f : 0x1.01p-16f), size, reach);
    if (!kBias) return {s, reach};
    const vf b = load_n(bias + i, n);
    const vf finite = (vf)((vu)b & splat_u(0x7fffffff));
    const vf most = splat(__FLT_MAX__);
    return {s + b, fma(splat(0x1p-22f), finite < most ? finite : most, reach)};
  }
};

}  // namespace screen
}  // namespace
