// linear_batch_topk from screening scores: the `keep` best of a whole batch, in a buffer of candidates between
// two bounds. When it fills up, the keep-th lower bound says what may still enter; where that leaves too many,
// all are computed exactly. The same for any number of threads, as in select/batch_topk.
#pragma once
#include "screen/screened_topk.inl.h"
#include "select/batch_topk.inl.h"

namespace {
namespace screen {

template <class T>
struct Batch {
  const sk_screened_batch& s;
  const sk_matrix &x, &W;
  int64_t W_first;
  const float* bias;
  int threads;

  sk_batch_topk exact(int32_t* bound) const { return {s.lower, s.rows, s.index, bound, s.count, s.keep, s.room}; }

  void thin() const {
    const int64_t n = *s.count;
    if (n <= s.keep) return;
    const int32_t reached = sel::kth(sel::Keys<int32_t, sel::AsStored>(s.lower, n), n, s.keep, s.keep).key;
    if (reached > *s.bound) *s.bound = reached;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t upper = s.upper[i], lower = s.lower[i], row = s.rows[i], index = s.index[i];
      s.upper[kept] = upper;
      s.lower[kept] = lower;
      s.rows[kept] = row;
      s.index[kept] = index;
      kept += upper >= reached;
    }
    *s.count = kept;
  }

  // Computes those whose upper bound is at least `high`.
  void compute(int32_t high) const {
    parallel_runs(*s.count, 2048, threads, [&](int, int64_t begin, int64_t end) {
      constexpr int kBatch = Exactly<T>::kBatch;
      int32_t latents[kBatch], keys[kBatch];
      int64_t at[kBatch], computed = 0;
      for (int64_t i = begin; i < end;) {
        const int32_t row = s.rows[i];
        int n = 0;
        for (; i < end && n < kBatch && s.rows[i] == row; ++i) {
          at[n] = i;
          latents[n] = s.index[i];
          n += (s.upper[i] != s.lower[i]) & (s.upper[i] >= high);
        }
        Exactly<T>{row_of<T>(x, row), W, W_first, bias}.keys(latents, n, keys);
        for (int j = 0; j < n; ++j) s.upper[at[j]] = s.lower[at[j]] = keys[j];
        computed += n;
      }
      __atomic_fetch_add(s.computed, computed, __ATOMIC_RELAXED);
    });
  }

  // As Candidates::probe.
  void probe() const {
    thin();
    if (*s.count <= s.keep) return;
    compute(sel::kth(sel::Keys<int32_t, sel::AsStored>(s.upper, *s.count), *s.count, s.keep, s.keep).key);
    thin();
  }

  void shrink() const {
    thin();
    if (*s.count <= (s.room + s.keep) / 2) return;
    probe();
    if (*s.count <= (s.room + s.keep) / 2) return;
    compute(Float32::kLeast);
    int32_t bound[2] = {INT32_MIN, INT32_MAX};
    sel::keep_best(exact(bound));  // later equals may win by their position: they may enter
    if (bound[0] > *s.bound) *s.bound = bound[0];
    memcpy(s.upper, s.lower, size_t(*s.count) * sizeof(int32_t));
  }

  // Leaves exact entries, and no fewer than `keep` where there were as many.
  void finish() const {
    probe();
    compute(Float32::kLeast);
  }
};

inline bool fits(const sk_screened_batch& s, const sk_matrix& x, const sk_matrix& W) {
  return s.keep >= 1 && x.cols == W.cols && x.rows <= INT32_MAX && W.rows <= INT32_MAX;
}

}  // namespace screen

inline int64_t screened_batch_room(int64_t keep, int64_t cols) { return 2 * keep + batch_topk_room(keep, cols); }

sk_status screened_batch_fold(int32_t dtype, sk_screened_batch s, sk_matrix scores, sk_matrix x, sk_matrix W,
                              int64_t W_first, sk_norms norms, const float* bias, int64_t first_row, int64_t first,
                              int32_t threads) {
  const int64_t cols = scores.cols;
  if (!screen::fits(s, x, W) || !screen::covers(W, W_first, first, cols) || first_row < 0 ||
      first_row + scores.rows > x.rows || s.room < screened_batch_room(s.keep, cols))
    return failure(SK_BAD_SIZE);
  if (cols == 0) return success();
  const int workers = threads < 1 ? 1 : threads;
  const int64_t run = sel::rows_at_a_time(cols);  // what one thread collects before it appends
  const int64_t entries = run * cols + 8 * screen::kWide + sel::kSlack;  // never full
  const Scratch<int32_t> scratch(4 * entries * workers);
  if (!scratch.data) return failure(SK_NO_MEMORY);
  const auto fold = [&](auto type, auto with_bias) {
    using T = decltype(type);
    constexpr bool kBias = decltype(with_bias)::value;
    const screen::Batch<T> batch{s, x, W, W_first, bias, workers};
    for (int64_t r = 0; r < scores.rows;) {
      const int64_t left = scores.rows - r, spare = s.room - s.keep;
      if (*s.count + left * cols > s.room && s.room - *s.count <= spare / 2) batch.shrink();
      const int64_t fitting = (s.room - *s.count) / cols, rows = fitting < left ? fitting : left;
      parallel_runs(rows, run, workers, [&](int thread, int64_t begin, int64_t end) {
        int32_t* mine = scratch.data + 4 * entries * thread;
        int32_t* row_numbers = mine + 3 * entries;
        screen::Candidates c{mine, mine + entries, mine + 2 * entries, 0, entries - sel::kSlack, entries, *s.bound, 0};
        for (int64_t i = r + begin; i < r + end; ++i) {
          const screen::Around<kBias> around{row_of<bf16>(scores, i), norms.W, norms.W_dropped,
                                             kBias ? bias + first : nullptr,
                                             screen::slack_of(norms.x[i], norms.x_dropped[i], x.cols)};
          const int64_t before = c.count;
          const screen::Exactly<T> exactly{row_of<T>(x, first_row + i), W, W_first, bias};
          screen::offer(c, around, nullptr, cols, first, exactly);
          for (int64_t j = before; j < c.count; ++j) row_numbers[j] = int32_t(first_row + i);
        }
        if (c.count == 0) return;
        const int64_t at = __atomic_fetch_add(s.count, c.count, __ATOMIC_RELAXED);
        const size_t bytes = size_t(c.count) * sizeof(int32_t);
        memcpy(s.upper + at, c.upper, bytes);
        memcpy(s.lower + at, c.lower, bytes);
        memcpy(s.index + at, c.index, bytes);
        memcpy(s.rows + at, row_numbers, bytes);
      });
      r += rows;
    }
    return success();
  };
  return for_dtype(dtype, [&](auto type) {
    return bias ? fold(type, screen::Flag<true>{}) : fold(type, screen::Flag<false>{});
  });
}

// Computes what is left of the chunks since the last call, all of whose latents W covers.
sk_status screened_batch_settle(int32_t dtype, sk_screened_batch s, sk_matrix x, sk_matrix W, int64_t W_first,
                                const float* bias, int32_t threads) {
  if (!screen::fits(s, x, W)) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    const screen::Batch<decltype(type)> batch{s, x, W, W_first, bias, threads};
    batch.thin();
    batch.compute(screen::Float32::kLeast);
    return success();
  });
}

sk_status screened_batch_finish(int32_t dtype, sk_screened_batch s, sk_matrix x, sk_matrix W, const float* bias,
                                int32_t relu, int64_t* offsets, void* values, int32_t* indices, int32_t threads) {
  if (!screen::fits(s, x, W)) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    const screen::Batch<decltype(type)> batch{s, x, W, 0, bias, threads};
    batch.finish();
    int32_t bound[2] = {INT32_MIN, INT32_MAX};
    return batch_topk_finish(dtype, batch.exact(bound), x.rows, relu, offsets, values, indices, threads);
  });
}

}  // namespace
