// Candidates of many rows computed exactly, latent by latent: a row of W, which may be in no cache, is read once for all
// rows of x that want it, and x, the smaller, again and again. Row by row, W would be read for each of them.
#pragma once
#include "screen/screened_topk.inl.h"

namespace {
namespace screen {

constexpr int64_t kSlices = 8;          // of rows, to be sorted at a time
constexpr int64_t kCounters = 1 << 20;  // of all slices; latents share one where there are more
constexpr int kLookAhead = 32;          // entries whose bounds are prefetched

template <class T>
struct ByLatent {
  const sk_screened_topk& s;  // n rows of x, a list each
  const sk_matrix &x, &W;
  const float* bias;
  int threads;

  // Whether an entry's place among all lists, and how many there are, are numbers of 32 bits.
  static bool goes(const sk_screened_topk& s) { return s.n * s.room <= INT32_MAX; }

  // Computes what is not exact and has an upper bound of at least its row's `least`; where a score lies outside its bounds,
  // contradicted[row] becomes 1. False: no memory.
  bool compute(const int32_t* least, uint8_t* contradicted) const {
    const int64_t slices = threads < 1 ? 1 : threads < kSlices ? threads : kSlices;
    int shift = 0;
    while (slices * (((W.rows - 1) >> shift) + 1) > kCounters) ++shift;
    const int64_t buckets = ((W.rows - 1) >> shift) + 1;
    const Scratch<int32_t> next(slices * buckets);
    if (!next.data) return false;
    memset(next.data, 0, size_t(slices * buckets) * sizeof(int32_t));
    each_wanted(slices, least, [&](int64_t slice, int64_t at) { ++next[slice * buckets + (s.index[at] >> shift)]; });
    int32_t total = 0;
    for (int64_t b = 0; b < buckets; ++b)
      for (int64_t slice = 0; slice < slices; ++slice) {
        int32_t& count = next[slice * buckets + b];
        total += count;
        count = total - count;
      }
    const Scratch<uint32_t> order(total);
    if (!order.data) return false;
    each_wanted(slices, least, [&](int64_t slice, int64_t at) {
      order[next[slice * buckets + (s.index[at] >> shift)]++] = uint32_t(at);
    });
    const int32_t* ends = next.data + (slices - 1) * buckets;
    parallel_runs(buckets, 1 + buckets / (16 * (threads < 1 ? 1 : threads)), threads, [&](int, int64_t begin, int64_t end) {
      const int32_t first = begin ? ends[begin - 1] : 0;
      compute_these(order.data + first, ends[end - 1] - first, contradicted);
    });
    __atomic_fetch_add(s.computed, int64_t(total), __ATOMIC_RELAXED);
    return true;
  }

 private:
  // body(slice, place) for each entry that is wanted; slices of the rows in parallel.
  template <class Body>
  void each_wanted(int64_t slices, const int32_t* least, const Body& body) const {
    parallel_runs(slices, 1, threads, [&](int, int64_t slice, int64_t) {
      for (int64_t r = s.n * slice / slices; r < s.n * (slice + 1) / slices; ++r)
        for (int64_t at = r * s.room; at < r * s.room + s.count[r]; ++at)
          if ((s.upper[at] != s.lower[at]) & (s.upper[at] >= least[r])) body(slice, at);
    });
  }

  const T* x_of(uint32_t at) const { return row_of<T>(x, at / s.room); }
  const T* w_of(uint32_t at) const { return row_of<T>(W, s.index[at]); }

  // Entries in the order of latents, four of one latent side by side. A dot product's bits depend on neither its company
  // nor on which row comes first.
  void compute_these(const uint32_t* order, int64_t count, uint8_t* contradicted) const {
    constexpr int kSide = 4;
    for (int64_t i = 0; i < count;) {
      for (int64_t later = i + kLookAhead; later < i + kLookAhead + kSide && later < count; ++later) {
        __builtin_prefetch(s.index + order[later]);
        __builtin_prefetch(s.lower + order[later], 1);
        __builtin_prefetch(s.upper + order[later], 1);
      }
      const int32_t latent = s.index[order[i]];
      int n = 1;
      while (n < kSide && i + n < count && s.index[order[i + n]] == latent) ++n;
      float scores[kSide];
      const T* rows[2 * kSide];
      if (n == kSide) {
        const int ahead = i + 2 * kSide <= count ? 2 * kSide : kSide;
        for (int u = 0; u < ahead; ++u) rows[u] = x_of(order[i + u]);
        dot_rows<kSide>(w_of(order[i]), rows, W.cols, scores, ahead > kSide ? rows + kSide : nullptr);
      } else {
        n = 1;
        rows[0] = w_of(order[i]);
        if (i + 1 < count) rows[1] = w_of(order[i + 1]);
        dot_rows<1>(x_of(order[i]), rows, W.cols, scores, i + 1 < count ? rows + 1 : nullptr);
      }
      for (int u = 0; u < n; ++u, ++i) put(order[i], scores[u] + (bias ? bias[latent] : 0.0f), contradicted);
    }
  }

  void put(uint32_t at, float score, uint8_t* contradicted) const {
    const int32_t key = Float32::exact(Float32::loose(bits_as<int32_t>(score)));
    if ((key < s.lower[at]) | (key > s.upper[at])) __atomic_store_n(contradicted + at / s.room, 1, __ATOMIC_RELAXED);
    s.upper[at] = s.lower[at] = key;
  }
};

}  // namespace screen
}  // namespace
