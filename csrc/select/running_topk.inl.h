// linear_topk's selection: chunks of pre-acts, ascending by latent, are folded into the candidates of each row; at the end
// exactly k of each row come out. Work per score is constant on average, even for scores that rise with the latent.
#pragma once
#include "common/codes.h"
#include "select/scores.inl.h"

namespace {

inline int64_t running_topk_room(int64_t k) { return sel::candidate_room(k) + sel::kSlack; }

sk_status running_topk_fold(sk_running_topk s, sk_matrix scores, const float* bias, const uint8_t* among, int64_t first,
                            int32_t threads) {
  if (scores.rows > s.n || s.k < 1 || first < 0 || first + scores.cols > INT32_MAX) return failure(SK_BAD_SIZE);
  const int64_t pitch = running_topk_room(s.k);
  parallel_runs(scores.rows, sel::rows_at_a_time(scores.cols), threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      sel::Candidates c{s.keys + r * pitch, s.index + r * pitch, 0, sel::candidate_room(s.k), s.k, sel::Float32::kLeast};
      if (first > 0) {
        c.count = s.count[r];
        c.bound = s.bound[r];
      }
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
  const int64_t pitch = running_topk_room(s.k);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(s.n, sel::rows_at_a_time(4 * pitch), threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        sel::Candidates c{s.keys + r * pitch, s.index + r * pitch, s.count[r], sel::candidate_room(s.k), s.k, s.bound[r]};
        c.shrink();
        T* value = static_cast<T*>(values) + r * s.k;
        int32_t* index = indices + r * s.k;
        for (int64_t j = 0; j < c.count; ++j) value[j] = sel::value_of<T>(c.keys[j], relu != 0);
        for (int64_t j = c.count; j < s.k; ++j) value[j] = from_float<T>(0.0f);  // fewer candidates than k
        memcpy(index, c.index, size_t(c.count) * sizeof(int32_t));
        memset(index + c.count, 0, size_t(s.k - c.count) * sizeof(int32_t));
      }
    });
    return success();
  });
}

}  // namespace
