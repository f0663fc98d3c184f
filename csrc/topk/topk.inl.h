// topk: the k largest of each row of scores; NaN first, ties to the smaller index, indices ascending in a row.
//
// Selection by block maxima. One branch-free pass keeps, for each block of B vectors, the maximum of every lane. The k-th largest
// maximum bounds the k-th score from below, and only blocks that reach it are read again: about M + kB reads, whatever the order.
// Where k is too large for enough maxima, the k-th score is found by bisection on the row itself.
#pragma once
#include <stdlib.h>

#include "../select/candidates.inl.h"

namespace {
namespace sel {

// Vectors in a block, 0 for no blocks: about sqrt(M / k), as long as two maxima or more stand for each of the k.
inline int64_t block_size(int64_t m, int64_t k) {
  if (m < 16 * k || m < 1024) return 0;
  int64_t b = 4;
  while (b < 64 && b * b < m / k && m / (2 * b) >= 2 * k) b *= 2;
  return b;
}

template <class Order>
struct TopkWorkspace {
  using Lane = typename Order::L;
  Lane* maxima = nullptr;
  int32_t *keys = nullptr, *index = nullptr;

  // For block maxima only; false if there is no memory.
  bool reserve(int64_t m, int64_t k) {
    const int64_t b = block_size(m, k), room = candidate_room(k) + kSlack;
    if (b == 0) return true;
    maxima = static_cast<Lane*>(malloc(size_t(m / b + kSlack) * sizeof(Lane)));
    keys = static_cast<int32_t*>(malloc(size_t(room) * 4));
    index = static_cast<int32_t*>(malloc(size_t(room) * 4));
    return maxima && keys && index;
  }
  void release() {
    free(maxima);
    free(keys);
    free(index);
  }
};

template <class Order>
inline void topk_by_blocks(const typename Order::L* row, int64_t m, int64_t k, int32_t* index, TopkWorkspace<Order>& w) {
  using Lane = typename Order::L;
  constexpr int kWide = kLanes<Lane>;
  const int64_t b = block_size(m, k), block = b * kWide, blocks = m / block;
  for (int64_t g = 0; g < blocks; ++g) {
    const Lane* p = row + g * block;
    Vector<Lane> best[4];
    for (int u = 0; u < 4; ++u) best[u] = Order::loose(load<Vector<Lane>>(p + u * kWide));
    for (int64_t j = 4 * kWide; j < block; j += 4 * kWide)
      for (int u = 0; u < 4; ++u) best[u] = max(best[u], Order::loose(load<Vector<Lane>>(p + j + u * kWide)));
    store(w.maxima + g * kWide, max(max(best[0], best[1]), max(best[2], best[3])));
  }
  const Keys<Lane, AsStored> maxima(w.maxima, blocks * kWide);
  const Kth<Lane> last = kth(maxima, blocks * kWide, k, k + k / 8);

  Candidates c{w.keys, w.index, 0, candidate_room(k), k, Order::exact(last.key)};
  for (int64_t g = 0; g < blocks; ++g) {
    if (c.bound > Order::kFirstNaN) break;
    const Vector<Lane> best = load<Vector<Lane>>(w.maxima + g * kWide);
    if (any(best >= splat(Order::from(Lane(c.bound))))) offer<Order>(c, Row<Lane>{row + g * block}, block, g * block);
  }
  offer<Order>(c, Row<Lane>{row + blocks * block}, m - blocks * block, blocks * block);
  c.shrink();
  memcpy(index, c.index, size_t(k) * 4);
}

template <class Order>
inline void topk_by_bisection(const typename Order::L* row, int64_t m, int64_t k, int32_t* index) {
  using Lane = typename Order::L;
  constexpr int kWide = kLanes<Lane>;
  const Keys<Lane, FromBits<Order>> keys(row, m);
  const Lane last = Order::exact(kth(keys, m, k, k).key);
  const bool no_better = last == Order::kFirstNaN;
  // Exact keys merge neighbouring loose ones, so ties can appear only now.
  const Vector<Lane> reach = splat(Order::from(last)), above = splat(no_better ? last : Lane(last + 1));
  int64_t ties = k - (no_better ? 0 : count_at_least(keys, Lane(last + 1)));
  int64_t kept = 0;
  for (int64_t i = 0; i < m && kept < k; i += kWide) {
    const Vector<Lane> key = i < keys.whole ? keys.at(i) : keys.tail;
    uint64_t bits = at_least(key, reach);
    if (i >= keys.whole) bits &= (uint64_t(1) << (m - i)) - 1;
    if (!bits) continue;
    const uint64_t better = no_better ? 0 : at_least(key, above) & bits;
    uint64_t equal = bits & ~better;
    if (equal) {
      if (ones(equal) > ties) equal = lowest(equal, ties);
      ties -= ones(equal);
    }
    for (bits = better | equal; bits; bits &= bits - 1) index[kept++] = int32_t(i + __builtin_ctzll(bits));
  }
}

// scores: n rows of m, `stride` elements apart. Returns 0, or 1 for want of memory.
template <class Order>
inline int topk(const typename Order::L* scores, int64_t n, int64_t m, int64_t stride, int64_t k, typename Order::L* values,
                int32_t* indices, int threads) {
  int failed = 0;
  if (n == 0 || k == 0) return 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
  {
    TopkWorkspace<Order> w;
    failed = !w.reserve(m, k);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n; ++r) {
      if (failed) continue;
      const typename Order::L* row = scores + r * stride;
      int32_t* index = indices + r * k;
      if (w.maxima)
        topk_by_blocks<Order>(row, m, k, index, w);
      else
        topk_by_bisection<Order>(row, m, k, index);
      for (int64_t j = 0; j < k; ++j) values[r * k + j] = row[index[j]];
    }
    w.release();
  }
  return failed;
}

}  // namespace sel
}  // namespace
