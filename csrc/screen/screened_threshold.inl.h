// linear_threshold from screening scores: those that may not be <= theta are counted, then computed exactly, and
// those that indeed are not stay.
#pragma once
#include "screen/screened_topk.inl.h"

namespace {
namespace screen {

// body(i, bits) for each vector of a row with latents whose scores may stay.
template <class Around, class Body>
inline void may_stay(const Around& scores, int64_t n, const float* theta, int64_t step, const Body& body) {
  for (int64_t i = 0; i < n; i += kWide) {
    const int m = int(n - i < kWide ? n - i : kWide);
    const auto z = scores.at(i, m);
    const vf t = step ? load_n(theta + i, m) : splat(theta[0]);
    uint64_t bits = sel::at_least((Vector<int32_t>)(z.middle + z.reach <= t), Vector<int32_t>{});  // true is -1
    if (m < kWide) bits &= (uint64_t(1) << m) - 1;
    if (bits) body(i, bits);
  }
}

// body(r, scores) for each row of a chunk.
template <bool kBias, class Body>
inline void each_row(const sk_matrix& scores, int64_t d, const sk_norms& norms, const float* bias, int32_t threads,
                     const Body& body) {
  parallel_runs(scores.rows, sel::rows_at_a_time(scores.cols), threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      body(r, Around<kBias>{row_of<bf16>(scores, r), norms.W, norms.W_dropped, bias,
                            slack_of(norms.x[r], norms.x_dropped[r], d)});
  });
}

}  // namespace screen

// bias and theta are the chunk's; counts[r] = how many of row r may stay.
sk_status screened_threshold_count(sk_matrix scores, int64_t d, sk_norms norms, const float* bias, const float* theta,
                                   int64_t theta_step, int64_t* counts, int32_t threads) {
  const auto body = [&](int64_t r, const auto& row) {
    int64_t count = 0;
    screen::may_stay(row, scores.cols, theta, theta_step, [&](int64_t, uint64_t bits) { count += sel::ones(bits); });
    counts[r] = count;
  };
  if (bias) screen::each_row<true>(scores, d, norms, bias, threads, body);
  else screen::each_row<false>(scores, d, norms, bias, threads, body);
  return success();
}

// Row r's entries go to values and indices from starts[r] on; counts[r] becomes how many they are. theta is the
// chunk's, bias all latents'.
sk_status screened_threshold_fill(int32_t dtype, sk_matrix scores, sk_matrix x, sk_matrix W, int64_t W_first,
                                  sk_norms norms, const float* bias, const float* theta, int64_t theta_step,
                                  int64_t first, const int64_t* starts, int64_t* counts, void* values, int32_t* indices,
                                  int32_t threads) {
  if (!screen::covers(W, W_first, first, scores.cols) || x.rows < scores.rows || x.cols != W.cols)
    return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using Exactly = screen::Exactly<T>;
    const auto body = [&](int64_t r, const auto& row) {
      const Exactly exactly{row_of<T>(x, r), W, W_first, bias};
      int32_t latents[Exactly::kBatch];
      float found[Exactly::kBatch];
      int waiting = 0;
      int64_t at = starts[r];
      const auto settle = [&] {
        exactly.scores(latents, waiting, found);
        for (int i = 0; i < waiting; ++i) {
          if (found[i] <= theta[theta_step * (latents[i] - first)]) continue;
          static_cast<T*>(values)[at] = from_float<T>(found[i]);
          indices[at++] = latents[i];
        }
        waiting = 0;
      };
      screen::may_stay(row, scores.cols, theta, theta_step, [&](int64_t i, uint64_t bits) {
        for (; bits; bits &= bits - 1) latents[waiting++] = int32_t(first + i + __builtin_ctzll(bits));
        if (waiting > Exactly::kBatch - screen::kWide) settle();
      });
      settle();
      counts[r] = at - starts[r];
    };
    if (bias) screen::each_row<true>(scores, x.cols, norms, bias + first, threads, body);
    else screen::each_row<false>(scores, x.cols, norms, nullptr, threads, body);
    return success();
  });
}

}  // namespace
