// linear_batch_topk's selection: the `keep` best of a whole batch that arrives in chunks of any order, in a
// buffer with room for `keep` and as many again. When it fills up, the best stay and the worst of them bounds
// what may still enter.
//
// Order: exact key, then the smaller flat position (row, latent). Threads append in no fixed order, but a
// row's entries of one chunk stay together and ascending, and which ones are kept is decided by that total
// order: the result is the same for any number of threads.
#pragma once
#include "common/codes.h"
#include "select/scores.inl.h"

namespace {
namespace sel {

struct Position {
  int32_t row, index;
};

// Among the entries whose key is `key`, the `allowed`-th in the order of positions. 1 <= allowed <= their
// number.
inline Position last_tie(const sk_batch_topk& s, int32_t key, int64_t allowed) {
  const int64_t n = *s.count;
  const auto least = [&](const int32_t* at, int64_t wanted, const auto& counts) {
    int64_t lo = INT32_MAX, hi = 0;
    for (int64_t i = 0; i < n; ++i) {
      lo = at[i] < lo ? at[i] : lo;
      hi = at[i] > hi ? at[i] : hi;
    }
    for (--lo; hi - lo > 1;) {  // fewer than `wanted` lie up to lo; enough up to hi
      const int32_t middle = int32_t(lo + (hi - lo) / 2);
      int64_t count = 0;
      for (int64_t i = 0; i < n; ++i) count += counts(i) & (at[i] <= middle);
      (count >= wanted ? hi : lo) = middle;
    }
    return int32_t(hi);
  };
  const int32_t row = least(s.rows, allowed, [&](int64_t i) { return s.keys[i] == key; });
  for (int64_t i = 0; i < n; ++i) allowed -= (s.keys[i] == key) & (s.rows[i] < row);
  return {row, least(s.index, allowed, [&](int64_t i) { return (s.keys[i] == key) & (s.rows[i] == row); })};
}

inline void keep_best(const sk_batch_topk& s) {
  const int64_t n = *s.count;
  if (n <= s.keep) return;
  const Keys<int32_t, AsStored> keys(s.keys, n);
  const Kth<int32_t> last = kth(keys, n, s.keep, s.keep);
  Position limit{INT32_MAX, INT32_MAX};  // ties up to here stay
  if (last.count > s.keep) {
    const int64_t better = last.key == Float32::kFirstNaN ? 0 : count_at_least(keys, last.key + 1);
    limit = last_tie(s, last.key, s.keep - better);
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = s.keys[i], row = s.rows[i], index = s.index[i];
    const bool early = row < limit.row || (row == limit.row && index <= limit.index);
    const bool stays = key > last.key || (key == last.key && early);
    s.keys[kept] = key;
    s.rows[kept] = row;
    s.index[kept] = index;
    kept += stays;
  }
  *s.count = kept;
  s.bound[0] = last.key;
  s.bound[1] = limit.row;
}

// What rows [begin, end) of a chunk offer, appended to the shared buffer. The caller saw to it that there is
// room.
inline void append_rows(const sk_batch_topk& s, const sk_matrix& scores, const float* bias, int64_t first_row,
                        int64_t first, int64_t begin, int64_t end, Candidates c, int32_t* rows) {
  c.count = 0;
  for (int64_t r = begin; r < end; ++r) {
    // An equal key can still enter by its position up to the row of the last tie kept, and no further.
    c.bound = first_row + r <= s.bound[1] ? s.bound[0] : s.bound[0] + 1;
    const int64_t before = c.count;
    with_scores(row_of<float>(scores, r), bias, nullptr, [&](const auto& source) {
      offer<Float32>(c, source, scores.cols, first);
    });
    for (int64_t i = before; i < c.count; ++i) rows[i] = int32_t(first_row + r);
  }
  if (c.count == 0) return;
  const int64_t at = __atomic_fetch_add(s.count, c.count, __ATOMIC_RELAXED);
  const size_t bytes = size_t(c.count) * sizeof(int32_t);
  memcpy(s.keys + at, c.keys, bytes);
  memcpy(s.rows + at, rows, bytes);
  memcpy(s.index + at, c.index, bytes);
}

}  // namespace sel

// One spare chunk-row fits beside `keep`, and so does a share of a chunk worth a parallel region.
inline int64_t batch_topk_room(int64_t keep, int64_t cols) {
  const int64_t spare = keep > (1 << 20) ? keep : 1 << 20;
  return keep + (spare > 2 * cols ? spare : 2 * cols);
}

sk_status batch_topk_fold(sk_batch_topk s, sk_matrix scores, const float* bias, int64_t first_row, int64_t first,
                          int32_t threads) {
  const int64_t cols = scores.cols;
  if (first < 0 || first + cols > INT32_MAX) return failure(SK_BAD_SIZE);
  if (first_row < 0 || first_row + scores.rows > INT32_MAX) return failure(SK_BAD_SIZE);
  if (s.keep < 1 || s.room < batch_topk_room(s.keep, cols)) return failure(SK_BAD_SIZE);
  if (cols == 0) return success();
  const int workers = threads < 1 ? 1 : threads;
  const int64_t run = sel::rows_at_a_time(cols);  // what one thread collects before it appends
  const int64_t entries = run * cols + 4 * sel::kLanes<int32_t> + sel::kSlack;  // `offer` never sees this buffer full
  const Scratch<int32_t> scratch(3 * entries * workers);
  if (!scratch.data) return failure(SK_NO_MEMORY);
  for (int64_t r = 0; r < scores.rows;) {
    const int64_t spare = s.room - s.keep;
    if (*s.count + (scores.rows - r) * cols > s.room && s.room - *s.count <= spare / 2) sel::keep_best(s);
    int64_t rows = (s.room - *s.count) / cols;  // at least 1: half of `spare` holds a row
    if (rows > scores.rows - r) rows = scores.rows - r;
    parallel_runs(rows, run, workers, [&](int thread, int64_t begin, int64_t end) {
      int32_t* mine = scratch.data + 3 * entries * thread;
      const sel::Candidates c{mine, mine + entries, 0, entries, entries, 0};
      sel::append_rows(s, scores, bias, first_row, first, r + begin, r + end, c, mine + 2 * entries);
    });
    r += rows;
  }
  return success();
}

// offsets (n+1,), values and indices (keep,): a stable counting sort by row, in which latents ascend already.
sk_status batch_topk_finish(int32_t dtype, sk_batch_topk s, int64_t n, int32_t relu, int64_t* offsets, void* values,
                            int32_t* indices, int32_t /*threads*/) {
  sel::keep_best(s);
  if (*s.count != s.keep) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    memset(offsets, 0, size_t(n + 1) * sizeof(int64_t));
    for (int64_t i = 0; i < s.keep; ++i)
      if (s.rows[i] + 1 < n) ++offsets[s.rows[i] + 2];  // two ahead: below, offsets[row + 1] is the row's cursor
    for (int64_t r = 2; r <= n; ++r) offsets[r] += offsets[r - 1];
    for (int64_t i = 0; i < s.keep; ++i) {
      const int64_t at = offsets[s.rows[i] + 1]++;
      static_cast<T*>(values)[at] = sel::value_of<T>(s.keys[i], relu != 0);
      indices[at] = s.index[i];
    }
    return success();
  });
}

}  // namespace
