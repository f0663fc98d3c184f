// topk: the k largest of each row of scores; NaN first, ties to the smaller index, indices ascending in a
// row.
//
// Selection by block maxima. One branch-free pass keeps, for each block of B vectors, the maximum of every
// lane. The k-th largest maximum bounds the k-th score from below, and only blocks that reach it are read
// again: about M + kB reads, whatever the order. Which they are, and where in them, no branch predictor can
// learn: the second pass collects bits first, and branches on what they name. Where k is too large for enough
// maxima, the k-th score is found by bisection on the row itself.
#pragma once
#include "common/codes.h"
#include "select/candidates.inl.h"

namespace {
namespace sel {

constexpr int64_t kMostVectors = 64;  // in a block

// Vectors in a block, 0 for no blocks: about sqrt(M / k), as long as there are a few blocks, and two maxima
// or more for each of the k.
template <class Lane>
inline int64_t block_size(int64_t m, int64_t k) {
  if (m < 16 * k || m < 1024) return 0;
  int64_t b = 4;
  while (b < kMostVectors && b * b < m / k && m / (2 * b) >= 2 * k && m / (2 * b * kLanes<Lane>) >= 4) b *= 2;
  return b;
}

#if SK_COUNTS_LANES
// Appends what reach(vector) has bits for, of so many vectors from latent `first` on. Without room for all of them it
// appends nothing and returns false.
template <class Order, class Reach>
inline bool append_block(Candidates& c, const typename Order::L* row, int64_t vectors, int64_t first,
                         const Reach& reach) {
  using Lane = typename Order::L;
  constexpr int64_t kWide = kLanes<Lane>, kBytes = kWide / 8;
  uint64_t words[kMostVectors * kWide / 64];
  uint8_t filled[kMostVectors * kWide / 64];  // the words that have bits
  const int64_t count = (vectors * kWide + 63) / 64;
  words[count - 1] = 0;
  for (int64_t v = 0; v < vectors; ++v) {
    const uint64_t bits = reach(load<Vector<Lane>>(row + first + v * kWide));
    memcpy(reinterpret_cast<char*>(words) + v * kBytes, &bits, kBytes);
  }
  int64_t hits = 0, some = 0;
  for (int64_t w = 0; w < count; ++w) {
    hits += ones(words[w]);
    filled[some] = uint8_t(w);
    some += words[w] != 0;
  }
  if (c.count + hits > c.room - 4 * kWide) return false;  // what `offer` leaves, and counts on
  for (int64_t i = 0; i < some; ++i)
    for (uint64_t bits = words[filled[i]]; bits; bits &= bits - 1) {
      const int64_t latent = first + filled[i] * 64 + __builtin_ctzll(bits);
      c.keys[c.count] = Order::exact(Order::loose(row[latent]));
      c.index[c.count++] = int32_t(latent);
    }
  return true;
}
#endif

inline int64_t maxima_room(int64_t m, int64_t b) { return (m / b + 15) / 16 * 16; }  // in int32s

template <class Order>
inline void topk_by_blocks(const typename Order::L* row, int64_t m, int64_t k, int32_t* index,
                           int32_t* workspace) {
  using Lane = typename Order::L;
  constexpr int kWide = kLanes<Lane>;
  const int64_t b = block_size<Lane>(m, k), block = b * kWide, blocks = m / block;
  const int64_t room = candidate_room(k) + kSlack;
  Lane* lane_maxima = reinterpret_cast<Lane*>(workspace + 2 * room);
  int32_t* reaching = workspace + 2 * room + maxima_room(m, b);  // blocks
  for (int64_t g = 0; g < blocks; ++g) {
    const Lane* p = row + g * block;
    Vector<Lane> best[4];
    for (int u = 0; u < 4; ++u) best[u] = Order::loose(load<Vector<Lane>>(p + u * kWide));
    for (int64_t j = 4 * kWide; j < block; j += 4 * kWide)
      for (int u = 0; u < 4; ++u) best[u] = max(best[u], Order::loose(load<Vector<Lane>>(p + j + u * kWide)));
    store(lane_maxima + g * kWide, max(max(best[0], best[1]), max(best[2], best[3])));
  }
  const Keys<Lane, AsStored> maxima(lane_maxima, blocks * kWide);
  const Kth<Lane> last = kth(maxima, blocks * kWide, k, k + k / 8);

  Candidates c{workspace, workspace + room, 0, candidate_room(k), k, Order::exact(last.key)};
  const int32_t bound = c.bound;
  const Lane from = Order::from(Lane(bound));
  const auto reaches = [&](int64_t g, Lane least) {
    return any(load<Vector<Lane>>(lane_maxima + g * kWide) >= splat(least));
  };
  int64_t count = 0;
  for (int64_t g = 0; g < blocks; ++g) {
    reaching[count] = int32_t(g);
    count += reaches(g, from);
  }
#if SK_COUNTS_LANES
  // Where a positive bound has no NaN above it, scores reach it whose bits, as integers, do.
  const bool plain = from > Order::kZero && last.greatest < Order::kFirstNaN;
  const Vector<Lane> least = splat(plain ? Lane(from + Order::kShift) : from);
  const auto append = [&](int64_t g) {
    const auto by_bits = [&](Vector<Lane> v) { return at_least(v, least); };
    const auto by_keys = [&](Vector<Lane> v) { return at_least(Order::loose(v), least); };
    return plain ? append_block<Order>(c, row, b, g * block, by_bits)
                 : append_block<Order>(c, row, b, g * block, by_keys);
  };
#else
  const auto append = [](int64_t) { return false; };
#endif
  for (int64_t i = 0; i < count && c.bound <= Order::kFirstNaN; ++i) {
    const int64_t g = reaching[i];
    if (c.bound == bound ? append(g) : !reaches(g, Order::from(Lane(c.bound)))) continue;
    offer<Order>(c, Row<Lane>{row + g * block}, block, g * block);
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

// What topk_by_blocks needs, in int32s; 0 where there are no blocks.
template <class Lane>
inline int64_t topk_workspace(int64_t m, int64_t k) {
  const int64_t b = block_size<Lane>(m, k);
  return b == 0 ? 0 : 2 * (candidate_room(k) + kSlack) + maxima_room(m, b) + m / (b * kLanes<Lane>);
}

}  // namespace sel

sk_status topk(int32_t dtype, sk_matrix scores, int64_t k, void* values, int32_t* indices, int32_t threads) {
  const int64_t m = scores.cols, n = scores.rows;
  if (n < 0 || m > INT32_MAX || k < 0 || k > m) return failure(SK_BAD_SIZE);
  if (k == 0) return success();
  const auto rows = [&](auto order) {
    using Order = decltype(order);
    using Lane = typename Order::L;
    const int64_t workspace = sel::topk_workspace<Lane>(m, k);
    const Scratch<int32_t> scratch(workspace * (threads > 1 ? threads : 1));
    if (!scratch.data) return failure(SK_NO_MEMORY);
    parallel_runs(n, 1 + (1 << 14) / m, threads, [&](int thread, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const Lane* row = row_of<Lane>(scores, r);
        int32_t* index = indices + r * k;
        if (workspace)
          sel::topk_by_blocks<Order>(row, m, k, index, scratch.data + workspace * thread);
        else
          sel::topk_by_bisection<Order>(row, m, k, index);
        for (int64_t j = 0; j < k; ++j) static_cast<Lane*>(values)[r * k + j] = row[index[j]];
      }
    });
    return success();
  };
  switch (dtype) {
    case SK_F32: return rows(sel::Float32{});
    case SK_BF16: return rows(sel::BFloat16{});
    case SK_F16: return rows(sel::Float16{});
    default: return failure(SK_BAD_DTYPE, 0, dtype);
  }
}

}  // namespace
