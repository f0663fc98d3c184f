// A row's candidates: exact float32-wide keys and their latents, ascending by latent. The pieces every
// selection is made of.
#pragma once
#include "select/kth.inl.h"

namespace {
namespace sel {

// The lowest `most` of the set bits.
inline uint64_t lowest(uint64_t bits, int64_t most) {
  uint64_t kept = 0;
  for (; bits && most > 0; --most, bits &= bits - 1) kept |= bits & -bits;
  return kept;
}

// Keeps the k best of n > k candidates, in place and in order; among equals the first. Returns the k-th key.
// keys and index have kSlack entries of room.
inline int32_t keep_best(int32_t* keys, int32_t* index, int64_t n, int64_t k) {
  constexpr int kWide = kLanes<int32_t>;
  const Keys<int32_t, AsStored> all(keys, n);
  const Kth<int32_t> last = kth(all, n, k, k);
  const bool tied = last.count > k;
  int64_t ties = k;  // how many keys equal to the k-th may stay
  if (tied) ties = k - (last.key == INT32_MAX ? 0 : count_at_least(all, last.key + 1));
  const Vector<int32_t> reach = splat(last.key), above = splat(last.key == INT32_MAX ? last.key : last.key + 1);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += kWide) {
    // In place: what is written never lies beyond what has been read, since the vector was loaded first.
    const Vector<int32_t> key = load<Vector<int32_t>>(keys + i), latent = load<Vector<int32_t>>(index + i);
    uint64_t bits = at_least(key, reach);
    if (n - i < kWide) bits &= (uint64_t(1) << (n - i)) - 1;
    if (tied) {
      const uint64_t better = at_least(key, above) & bits;
      const uint64_t equal = lowest(bits & ~better, ties);
      ties -= ones(equal);
      bits = better | equal;
    }
    compress(keys + kept, key, bits);
    kept += compress(index + kept, latent, bits);
  }
  return last.key;
}

// Candidates of one row while it streams by. Entries below `bound` cannot be among its k best any more.
struct Candidates {
  int32_t* keys;
  int32_t* index;
  int64_t count, room, k;
  int32_t bound;  // an exact key; past every key once k NaNs were seen

  void shrink() {
    if (count <= k) return;
    bound = keep_best(keys, index, count, k) + 1;  // later equals have greater latents: they lose
    count = k;
  }
};

// Room for the candidates of a row: shrinking costs a few instructions a candidate when half of them go.
inline int64_t candidate_room(int64_t k) { return k + (k > 192 ? k : 192) + 4 * kLanes<int16_t>; }

inline void append(Candidates& c, Vector<int32_t> key, uint64_t bits, int64_t first) {
  compress(c.keys + c.count, key, bits);
  c.count += compress(c.index + c.count, lane_numbers() + int32_t(first), bits);
}

inline void append(Candidates& c, Vector<int16_t> key, uint64_t bits, int64_t first) {
  int16_t lanes[kLanes<int16_t>];
  store(lanes, key);
  for (; bits; bits &= bits - 1) {
    const int lane = __builtin_ctzll(bits);
    c.keys[c.count] = lanes[lane];
    c.index[c.count++] = int32_t(first + lane);
  }
}

// Offers n scores to a row's candidates, latents first, first + 1, .... Scores come from a source: at(i)
// gives the bits of a whole vector, some(i, m) of the first m < lanes, allowed(i, m) which of them may be
// chosen.
template <class Order, class Source>
inline void offer(Candidates& c, const Source& scores, int64_t n, int64_t first) {
  using Lane = typename Order::L;
  constexpr int kWide = kLanes<Lane>;
  if (c.bound > Order::kFirstNaN) return;
  Vector<Lane> t = splat(Order::from(Lane(c.bound)));
  int64_t i = 0;
  for (; i + 4 * kWide <= n; i += 4 * kWide) {
    Vector<Lane> key[4];
    for (int u = 0; u < 4; ++u) key[u] = Order::loose(scores.at(i + u * kWide));
    if (!any(max(max(key[0], key[1]), max(key[2], key[3])) >= t)) continue;
    for (int u = 0; u < 4; ++u) {
      const uint64_t bits = at_least(key[u], t) & scores.allowed(i + u * kWide, kWide);
      if (bits) append(c, Order::exact(key[u]), bits, first + i + u * kWide);
    }
    if (c.count > c.room - 4 * kWide) {
      c.shrink();
      if (c.bound > Order::kFirstNaN) return;
      t = splat(Order::from(Lane(c.bound)));
    }
  }
  for (; i < n; i += kWide) {
    const int m = int(n - i < kWide ? n - i : kWide);
    const Vector<Lane> key = Order::loose(m < kWide ? scores.some(i, m) : scores.at(i));
    uint64_t bits = at_least(key, t) & scores.allowed(i, m);
    if (m < kWide) bits &= (uint64_t(1) << m) - 1;
    if (bits) append(c, Order::exact(key), bits, first + i);
  }
  if (c.count > c.room - 4 * kWide) c.shrink();
}

// Scores in memory, as they are.
template <class Lane>
struct Row {
  const Lane* bits;
  Vector<Lane> at(int64_t i) const { return load<Vector<Lane>>(bits + i); }
  Vector<Lane> some(int64_t i, int m) const {
    Lane lanes[kLanes<Lane>] = {};
    memcpy(lanes, bits + i, size_t(m) * sizeof(Lane));
    return load<Vector<Lane>>(lanes);
  }
  uint64_t allowed(int64_t, int) const { return ~uint64_t(0); }
};

}  // namespace sel
}  // namespace
