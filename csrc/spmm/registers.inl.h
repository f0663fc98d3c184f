// Sums of rows whose output stays in registers: for narrow rows, and for matrices in the caches.
//
// Straight from the codes: where a row costs a few nanoseconds, listing it first (gather.h) takes as long again. Slots are
// added one by one, in order. An empty one adds zero times zero instead of its latent's row, which may hold anything: no
// branch, which nobody could predict. Where most are empty, the others are listed.
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

SK_INLINE bool is_empty(float value) { return bits_as<uint32_t>(value) << 1 == 0; }
template <class T>
SK_INLINE bool is_empty(T value) {
  return static_cast<uint16_t>(value.bits << 1) == 0;
}

template <class T>
struct Slots {
  const T* values;
  const int32_t* indices;
  int64_t count;  // of all slots
  const T* data;
  int64_t stride;
  const T* zeros;

  SK_INLINE const T* row(int64_t slot, T value) const {
    const auto found = reinterpret_cast<uintptr_t>(data + indices[slot] * stride);
    const auto none = reinterpret_cast<uintptr_t>(zeros), which = -static_cast<uintptr_t>(is_empty(value));
    return reinterpret_cast<const T*>(found ^ ((found ^ none) & which));
  }
};

// V vectors from `at` on of the sum over slots [begin, end).
template <int V, bool Far, class T>
inline void sum_columns(const Slots<T>& s, int64_t begin, int64_t end, int64_t at, T* out) {
  constexpr int kLine = 64 / sizeof(T);
  // The last rows prefetch what they are about to add: there is nothing later.
  const int32_t* ahead = s.indices + (end + kLater <= s.count ? kLater : 0);
  vf sum[V] = {};
  for (int64_t j = begin; j < end; ++j) {
    const vf weight = splat(to_float(s.values[j]));
    const T* row = s.row(j, s.values[j]) + at;
    if (Far) {
      const T* later = s.data + ahead[j] * s.stride + at;
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
    sum = fma(splat(to_float(s.values[j])), load_part(s.row(j, s.values[j]) + at, n), sum);
  }
  store_part(out + at, sum, n);
}

// The slots of a row that are not empty, and the next row's to prefetch.
template <class T>
struct Listed {
  static constexpr int64_t kMost = 256;
  T values[kMost];
  int32_t indices[kMost + kLater];

  Slots<T> list(const Slots<T>& s, int64_t begin, int64_t end, int64_t& kept) {
    kept = 0;
    for (int64_t j = begin; j < end; ++j) {
      values[kept] = s.values[j];
      indices[kept] = s.indices[j];
      kept += !is_empty(s.values[j]);
    }
    for (int i = 0; i < kLater; ++i) indices[kept + i] = s.indices[end + i < s.count ? end + i : s.count - 1];
    return {values, indices, kept + kLater, s.data, s.stride, s.zeros};
  }
};

template <bool Far, class T>
inline void sum_row(const Slots<T>& s, int64_t begin, int64_t end, int64_t d, T* out) {
  int64_t empty = 0;
  for (int64_t j = begin; j < end; ++j) empty += is_empty(s.values[j]);
  if (2 * empty <= end - begin || end - begin > Listed<T>::kMost) return sum_slots<Far>(s, begin, end, d, out);
  Listed<T> listed;
  int64_t kept;
  const Slots<T> some = listed.list(s, begin, end, kept);
  sum_slots<Far>(some, 0, kept, d, out);
}

}  // namespace
