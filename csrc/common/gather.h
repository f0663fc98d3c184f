// Weighted sums of rows gathered from a matrix: what spmm, spmm_t and prefix_decode share.
//
// A source yields segments: up to kSlots (row pointer, weight) pairs that belong to one output row. The sum of
// an output row runs through its slots one by one, in order, whatever the grouping: bits depend on neither
// threads nor segment sizes. From a matrix too large for the caches, the next rows are prefetched while some are
// read, across segments too; from a cached one that would only compete with the loads (measured: 0.8 times the speed).
#pragma once
#include "common/codes.h"

namespace {

constexpr int kSlots = 256;
constexpr int kGroup = 8;  // rows read side by side
constexpr int64_t kCachedBytes = 16 << 20;

template <class T>
struct Segment {
  const T* row[kSlots];
  float weight[kSlots];
  int count;
  bool first, last;  // of its output row
  void* out;         // the output row

  SK_INLINE void start(void* to, bool is_first) {
    count = 0;
    first = is_first;
    out = to;
  }
  SK_INLINE void add(const T* r, float w) {
    row[count] = r;
    weight[count++] = w;
  }
};

template <int R, bool Init, class T, class Out>
SK_INLINE void add_vector(const T* const* row, const vf* weight, const float* acc, Out* out, int64_t i, int n) {
  vf s = Init ? vf{} : load_n(acc + i, n);
  for (int r = 0; r < R; ++r) s = fma(weight[r], load_n(row[r] + i, n), s);
  store_n(out + i, s, n);
}

// out = (Init ? 0 : acc) + sum of R weighted rows; prefetches the R rows at `next`, unless that is null.
template <int R, bool Init, class T, class Out>
inline void add_rows(const T* const* rows, const float* weights, int64_t d, const float* acc, Out* out,
                     const T* const* next) {
  constexpr int kLine = 64 / sizeof(T), kStep = kLine > kLanes ? kLine : kLanes;
  const T* row[R ? R : 1];
  const T* ahead[R ? R : 1];
  vf weight[R ? R : 1];
  for (int r = 0; r < R; ++r) {
    row[r] = rows[r];
    weight[r] = splat(weights[r]);
    ahead[r] = next ? next[r] : nullptr;
  }
  int64_t i = 0;
  for (; i + kStep <= d; i += kStep) {
    if (next)
      for (int r = 0; r < R; ++r) prefetch(ahead[r] + i);
    for (int j = 0; j < kStep; j += kLanes) add_vector<R, Init>(row, weight, acc, out, i + j, kLanes);
  }
  for (; i + kLanes <= d; i += kLanes) add_vector<R, Init>(row, weight, acc, out, i, kLanes);
  if (i < d) add_vector<R, Init>(row, weight, acc, out, i, static_cast<int>(d - i));
}

template <bool Init, class T, class Out>
inline void add_group(int count, const T* const* rows, const float* weights, int64_t d, const float* acc, Out* out,
                      const T* const* next) {
  switch (count) {
    case 0: return add_rows<0, Init>(rows, weights, d, acc, out, next);
    case 1: return add_rows<1, Init>(rows, weights, d, acc, out, next);
    case 2: return add_rows<2, Init>(rows, weights, d, acc, out, next);
    case 4: return add_rows<4, Init>(rows, weights, d, acc, out, next);
    default: return add_rows<kGroup, Init>(rows, weights, d, acc, out, next);
  }
}

// One segment; `acc` (d floats) carries an output row's sum between groups and from segment to segment until the
// last, which writes the output row instead.
template <class T, class Out>
inline void sum_segment(const Segment<T>& now, const Segment<T>* then, int64_t d, float* acc, bool ahead) {
  int at = 0;
  do {
    const int left = now.count - at;
    const int count = left >= kGroup ? kGroup : left >= 4 ? 4 : left >= 2 ? 2 : left;
    const T* const* next = nullptr;
    if (ahead && left - count >= count) next = now.row + at + count;
    else if (ahead && then && left == count && then->count >= count) next = then->row;
    const bool init = now.first && at == 0, done = now.last && left == count;
    const T* const* rows = now.row + at;
    const float* weights = now.weight + at;
    Out* out = static_cast<Out*>(now.out);
    if (init && done) add_group<true>(count, rows, weights, d, acc, out, next);
    else if (init) add_group<true>(count, rows, weights, d, acc, acc, next);
    else if (done) add_group<false>(count, rows, weights, d, acc, out, next);
    else add_group<false>(count, rows, weights, d, acc, acc, next);
    at += count;
  } while (at < now.count);
}

// Source: bool next(Segment<T>&) yields segments in order and false at the end; their rows are m's.
template <class T, class Out, class Source>
inline void sum_segments(Source& source, const sk_matrix& m, float* acc) {
  const bool ahead = m.rows * m.cols * static_cast<int64_t>(sizeof(T)) > kCachedBytes;
  Segment<T> one, other;
  Segment<T>*now = &one, *then = &other;
  bool more = source.next(*now);
  while (more) {
    more = source.next(*then);
    sum_segment<T, Out>(*now, more ? then : nullptr, m.cols, acc, ahead);
    Segment<T>* spare = now;
    now = then;
    then = spare;
  }
}

}  // namespace
