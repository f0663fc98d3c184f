// Weighted sums of rows gathered from a matrix: what spmm, spmm_t and prefix_decode share.
//
// A source yields segments: up to kSlots (row pointer, weight) pairs that belong to one output row. The sum of
// an output row runs through its slots one by one, in order, whatever the grouping: bits depend on neither
// threads nor segment sizes.
//
// Two ways through a segment. Where an output row is narrow and has slots enough, its sum stays in registers while
// they are added, and a row some slots ahead is prefetched. Wide rows would be read in pieces so, which memory does
// not like (1.5 times the time); there kGroup rows are read side by side, and the sum lies in L1 between groups. From
// a matrix too large for the caches, the next rows are prefetched meanwhile, across segments too; from a cached one
// that would only compete with the loads (1.25 times the time). Cached rows of 16 bits are pieced without harm.
#pragma once
#include "common/codes.h"
#include "common/pairs.h"

namespace {

constexpr int kSlots = 256;
constexpr int kGroup = 8;                             // rows read side by side; no fewer are summed in registers
constexpr int kAhead = 8;                             // slots from the one that is added to the one that is prefetched
constexpr int kInRegisters = kLanes == 16 ? 24 : 12;  // vectors
constexpr int kNarrow = 12;                           // vectors
constexpr int64_t kCachedBytes = 16 << 20;

template <class T>
struct Segment {
  const T* row[kSlots + kAhead];
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
  // To a segment without any: slots [begin, end), at most kSlots. An empty one's place is taken by the next.
  SK_INLINE void add_all(const T* values, const int32_t* indices, int64_t begin, int64_t end, const sk_matrix& m) {
    const T* data = static_cast<const T*>(m.data);
    const int64_t stride = m.stride;
    int kept = 0;
    for (int64_t slot = begin; slot < end; ++slot) {
      const float value = to_float(values[slot]);
      row[kept] = data + indices[slot] * stride;
      weight[kept] = value;
      kept += value != 0;
    }
    count = kept;
  }
};

// Where sums rest between two visits: pairs as load_pair<T> splits them, then what is left of d in order.
template <class T>
inline void store_sums(T* out, const float* sums, int64_t d) {
  int64_t i = 0;
  for (; i + kPair <= d; i += kPair) store_pair(out + i, load_pair(sums + i));
  for (; i < d; i += kLanes) {
    const int n = d - i < kLanes ? static_cast<int>(d - i) : kLanes;
    store_n(out + i, load_n(sums + i, n), n);
  }
}

// ---- narrow output rows

// V vectors from `at` on of one output row.
template <int V, class T, class Out>
inline void sum_block(const Segment<T>& now, int64_t at, float* acc) {
  constexpr int kLine = 64 / sizeof(T);
  vf s[V];
  SK_UNROLL
  for (int v = 0; v < V; ++v) s[v] = now.first ? vf{} : load(acc + at + v * kLanes);
  for (int j = 0; j < now.count; ++j) {
    const vf weight = splat(now.weight[j]);
    const T *row = now.row[j] + at, *ahead = now.row[j + kAhead] + at;
    SK_UNROLL
    for (int i = 0; i < V * kLanes; i += kLine) prefetch(ahead + i);
    SK_UNROLL
    for (int v = 0; v + 2 <= V; v += 2) {
      const Pair x = load_pair(row + v * kLanes);
      s[v] = fma(weight, x.a, s[v]);
      s[v + 1] = fma(weight, x.b, s[v + 1]);
    }
    if (V % 2) s[V - 1] = fma(weight, load(row + (V - 1) * kLanes), s[V - 1]);
  }
  if (!now.last) {
    SK_UNROLL
    for (int v = 0; v < V; ++v) store(acc + at + v * kLanes, s[v]);
    return;
  }
  Out* out = static_cast<Out*>(now.out) + at;
  SK_UNROLL
  for (int v = 0; v + 2 <= V; v += 2) store_pair(out + v * kLanes, {s[v], s[v + 1]});
  if (V % 2) store(out + (V - 1) * kLanes, s[V - 1]);
}

template <int V, class T, class Out>
SK_INLINE int64_t sum_blocks(const Segment<T>& now, int64_t d, int64_t at, float* acc) {
  for (; at + V * kLanes <= d; at += V * kLanes) sum_block<V, T, Out>(now, at, acc);
  return at;
}

template <class T, class Out>
inline void sum_in_registers(Segment<T>& now, const Segment<T>* then, int64_t d, float* acc) {
  for (int j = 0; j < kAhead; ++j) now.row[now.count + j] = then && j < then->count ? then->row[j] : now.row[j];
  int64_t at = sum_blocks<kInRegisters, T, Out>(now, d, 0, acc);
  if (kInRegisters > 16) at = sum_blocks<16, T, Out>(now, d, at, acc);
  if (kInRegisters > 12) at = sum_blocks<12, T, Out>(now, d, at, acc);
  at = sum_blocks<8, T, Out>(now, d, at, acc);
  at = sum_blocks<4, T, Out>(now, d, at, acc);
  at = sum_blocks<2, T, Out>(now, d, at, acc);
  at = sum_blocks<1, T, Out>(now, d, at, acc);
  if (at == d) return;
  const int n = static_cast<int>(d - at);
  vf s = now.first ? vf{} : load_part(acc + at, n);
  for (int j = 0; j < now.count; ++j) s = fma(splat(now.weight[j]), load_part(now.row[j] + at, n), s);
  if (now.last) store_part(static_cast<Out*>(now.out) + at, s, n);
  else store_part(acc + at, s, n);
}

// ---- wide output rows

template <int R, bool Init, class T, class Out>
SK_INLINE void add_pair(const T* const* row, const vf* weight, const float* acc, Out* out, int64_t i) {
  Pair s{};
  if (!Init) s = load_pair(acc + i);
  for (int r = 0; r < R; ++r) {
    const Pair x = load_pair(row[r] + i);
    s.a = fma(weight[r], x.a, s.a);
    s.b = fma(weight[r], x.b, s.b);
  }
  store_pair(out + i, s);
}

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
  constexpr int kLine = 64 / sizeof(T), kStep = kLine > kPair ? kLine : kPair;
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
      for (int line = 0; line < kStep; line += kLine)
        for (int r = 0; r < R; ++r) prefetch(ahead[r] + i + line);
    for (int j = 0; j < kStep; j += kPair) add_pair<R, Init>(row, weight, acc, out, i + j);
  }
  for (; i + kPair <= d; i += kPair) add_pair<R, Init>(row, weight, acc, out, i);
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

template <class T, class Out>
inline void sum_side_by_side(const Segment<T>& now, const Segment<T>* then, int64_t d, float* acc, bool ahead) {
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

// ---- either

template <class T>
inline bool is_cached(const sk_matrix& m) {
  return m.rows * m.cols * static_cast<int64_t>(sizeof(T)) <= kCachedBytes;
}

// One segment of rows of d numbers; `acc` (d floats) carries an output row's sum from segment to segment until the
// last, which writes the output row instead.
template <class T, class Out>
inline void sum_segment(Segment<T>& now, const Segment<T>* then, int64_t d, float* acc, bool cached) {
  const bool narrow = d <= kNarrow * kLanes || (cached && sizeof(T) == 2);
  if (narrow && now.count >= kGroup) sum_in_registers<T, Out>(now, then, d, acc);
  else sum_side_by_side<T, Out>(now, then, d, acc, !cached);
}

// body(now, then) for every segment of a source, `then` being the one that follows, or null.
// Source: bool next(S&) yields segments in order, and false at the end.
template <class S, class Source, class Body>
inline void each_segment(Source& source, const Body& body) {
  S one, other;
  S *now = &one, *then = &other;
  bool more = source.next(*now);
  while (more) {
    more = source.next(*then);
    body(*now, more ? then : nullptr);
    S* spare = now;
    now = then;
    then = spare;
  }
}

// The sums of a source's segments, whose rows are m's.
template <class T, class Out, class S = Segment<T>, class Source>
inline void sum_segments(Source& source, const sk_matrix& m, float* acc) {
  const bool cached = is_cached<T>(m);
  each_segment<S>(source, [&](S& now, const S* then) { sum_segment<T, Out>(now, then, m.cols, acc, cached); });
}

}  // namespace
