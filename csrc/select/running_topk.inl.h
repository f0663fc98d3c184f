// linear_topk's selection: chunks of pre-acts, ascending by latent, are folded into the candidates of each
// row; at the end exactly k of each row come out. Work per score is constant on average, even for scores that
// rise with the latent.
#pragma once
#include "common/codes.h"
#include "select/scores.inl.h"

namespace {

inline int64_t running_topk_room(int64_t k) { return sel::candidate_room(k) + sel::kSlack; }

namespace sel {

// Row r's candidates as the last fold left them; none before the first.
inline Candidates candidates_of(const sk_running_topk& s, int64_t r, bool started) {
  const int64_t at = r * running_topk_room(s.k);
  Candidates c{s.keys + at, s.index + at, 0, candidate_room(s.k), s.k, Float32::kLeast};
  if (started) {
    c.count = s.count[r];
    c.bound = s.bound[r];
  }
  return c;
}

}  // namespace sel

sk_status running_topk_fold(sk_running_topk s, sk_matrix scores, const float* bias, const uint8_t* among,
                            int64_t first, int32_t threads) {
  if (scores.rows > s.n || s.k < 1 || first < 0 || first + scores.cols > INT32_MAX) return failure(SK_BAD_SIZE);
  parallel_runs(scores.rows, sel::rows_at_a_time(scores.cols), threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      sel::Candidates c = sel::candidates_of(s, r, first > 0);
      sel::with_scores(row_of<float>(scores, r), bias, among, [&](const auto& source) {
        sel::offer<sel::Float32>(c, source, scores.cols, first);
      });
      s.count[r] = int32_t(c.count);
      s.bound[r] = c.bound;
    }
  });
  return success();
}

sk_status running_topk_finish(int32_t dtype, sk_running_topk s, int32_t relu, void* values, int32_t* indices,
                              int32_t threads) {
  if (s.n < 0 || s.k < 1) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(s.n, sel::rows_at_a_time(4 * running_topk_room(s.k)), threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        sel::Candidates c = sel::candidates_of(s, r, true);
        c.shrink();
        sel::write_row<T>(c.keys, c.index, c.count, s.k, r, relu, values, indices);
      }
    });
    return success();
  });
}

}  // namespace
