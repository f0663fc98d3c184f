// Sums of rows whose output stays in registers: for narrow rows, and for matrices in the caches.
//
// Straight from the codes: where a row costs a few nanoseconds, listing it first (gather.h) takes as long again. Slots are
// added one by one, in order. An empty one adds zero times zero instead of its latent's row, which may hold anything: no
// branch, which nobody could predict.
#pragma once
#include "common/gather.h"

namespace {

constexpr int kLater = 16;                 // slots from the one that is added to the one that is prefetched
constexpr int64_t kNearBytes = 512 << 10;  // a matrix that needs no prefetch
constexpr int64_t kNotWide = 384;          // float32 numbers of a cached row; of wider ones, gather.h is faster

// Narrow rows, and cached ones that may be read in pieces.
template <class T>
inline bool sums_in_registers(const sk_matrix& w) {
  return w.cols <= kNarrow * kLanes || (is_cached<T>(w) && (sizeof(T) == 2 || w.cols <= kNotWide));
}

template <class T>
struct Slots {
  const T* values;
  const int32_t* indices;
  int64_t last;  // of all slots
  const T* data;
  int64_t stride;
  const T* zeros;

  SK_INLINE const T* row(int64_t slot, float value) const {
    const T* found = data + indices[slot] * stride;
    return value != 0 ? found : zeros;
  }
  SK_INLINE const T* later(int64_t slot) const {
    return data + indices[slot + kLater < last ? slot + kLater : last] * stride;
  }
};

// V vectors from `at` on of the sum over slots [begin, end).
template <int V, bool Far, class T>
inline void sum_columns(const Slots<T>& s, int64_t begin, int64_t end, int64_t at, T* out) {
  constexpr int kLine = 64 / sizeof(T);
  vf sum[V] = {};
  for (int64_t j = begin; j < end; ++j) {
    const float value = to_float(s.values[j]);
    const vf weight = splat(value);
    const T* row = s.row(j, value) + at;
    if (Far) {
      const T* later = s.later(j) + at;
      SK_UNROLL
      for (int i = 0; i < V * kLanes; i += kLine) prefetch(later + i);
    }
    SK_UNROLL
    for (int v = 0; v + 2 <= V; v += 2) {
      const Pair x = load_pair(row + v * kLanes);
      sum[v] = fma(weight, x.a, sum[v]);
      sum[v + 1] = fma(weight, x.b, sum[v + 1]);
    }
    if (V % 2) sum[V - 1] = fma(weight, load(row + (V - 1) * kLanes), sum[V - 1]);
  }
  SK_UNROLL
  for (int v = 0; v + 2 <= V; v += 2) store_pair(out + at + v * kLanes, {sum[v], sum[v + 1]});
  if (V % 2) store(out + at + (V - 1) * kLanes, sum[V - 1]);
}

template <int V, bool Far, class T>
SK_INLINE int64_t sum_some(const Slots<T>& s, int64_t begin, int64_t end, int64_t at, int64_t d, T* out) {
  for (; at + V * kLanes <= d; at += V * kLanes) sum_columns<V, Far>(s, begin, end, at, out);
  return at;
}

template <bool Far, class T>
inline void sum_slots(const Slots<T>& s, int64_t begin, int64_t end, int64_t d, T* out) {
  int64_t at = sum_some<kInRegisters, Far>(s, begin, end, 0, d, out);
  if (kInRegisters > 16) at = sum_some<16, Far>(s, begin, end, at, d, out);
  if (kInRegisters > 12) at = sum_some<12, Far>(s, begin, end, at, d, out);
  at = sum_some<8, Far>(s, begin, end, at, d, out);
  at = sum_some<4, Far>(s, begin, end, at, d, out);
  at = sum_some<2, Far>(s, begin, end, at, d, out);
  at = sum_some<1, Far>(s, begin, end, at, d, out);
  if (at == d) return;
  const int n = static_cast<int>(d - at);
  vf sum = {};
  for (int64_t j = begin; j < end; ++j) {
    const float value = to_float(s.values[j]);
    sum = fma(splat(value), load_part(s.row(j, value) + at, n), sum);
  }
  store_part(out + at, sum, n);
}

}  // namespace
