// The k-th largest of n integer keys by bisection on the key: a handful of passes of compare-and-count,
// whatever the data. A histogram needs fewer passes, but scalar ones, and a pathological distribution can
// crowd its bins.
#pragma once
#include "select/keys.inl.h"

namespace {
namespace sel {

// n keys in memory, with the ragged end copied to a full vector so that nothing is read past it.
// Map turns stored lanes into keys as they are read: nothing, or the loose key of a score's bits.
template <class Lane, class Map>
struct Keys {
  const Lane* data;
  int64_t whole;  // lanes in full vectors
  Vector<Lane> tail, in_tail;
  uint64_t tail_bits;

  Keys(const Lane* p, int64_t n) : data(p), whole(n - n % kLanes<Lane>) {
    Lane rest[kLanes<Lane>] = {}, used[kLanes<Lane>] = {};
    for (int64_t i = whole; i < n; ++i) {
      rest[i - whole] = p[i];
      used[i - whole] = -1;
    }
    tail = Map::keys(load<Vector<Lane>>(rest));
    in_tail = load<Vector<Lane>>(used);
    tail_bits = (uint64_t(1) << (n - whole)) - 1;
  }
  Vector<Lane> at(int64_t i) const { return Map::keys(load<Vector<Lane>>(data + i)); }
};

struct AsStored {
  template <class V>
  static inline V keys(V v) { return v; }
};
template <class O>
struct FromBits {
  template <class V>
  static inline V keys(V v) { return O::loose(v); }
};

template <class Lane, class Map>
inline int64_t count_at_least(const Keys<Lane, Map>& keys, Lane threshold) {
  const Vector<Lane> t = splat<Lane>(threshold);
#if SK_COUNTS_LANES
  int64_t i = 0, total = ones(at_least(keys.tail, t) & keys.tail_bits), other = 0;
  for (; i + 2 * kLanes<Lane> <= keys.whole; i += 2 * kLanes<Lane>) {
    total += number_at_least(keys.at(i), t);
    other += number_at_least(keys.at(i + kLanes<Lane>), t);
  }
  if (i < keys.whole) total += number_at_least(keys.at(i), t);
  return total + other;
#else
  constexpr int64_t kStrip = int64_t(kLanes<Lane>) << 13;  // a 16-bit lane counts this far
  int64_t total = 0;
  Vector<Lane> count = (keys.tail >= t) & keys.in_tail;  // true is -1: counts run downwards
  for (int64_t i = 0; i < keys.whole;) {
    const int64_t end = keys.whole - i < kStrip ? keys.whole : i + kStrip;
    Vector<Lane> a = {}, b = {}, c = {}, d = {};
    for (; i + 4 * kLanes<Lane> <= end; i += 4 * kLanes<Lane>) {
      a += keys.at(i) >= t;
      b += keys.at(i + kLanes<Lane>) >= t;
      c += keys.at(i + 2 * kLanes<Lane>) >= t;
      d += keys.at(i + 3 * kLanes<Lane>) >= t;
    }
    for (; i < end; i += kLanes<Lane>) a += keys.at(i) >= t;
    count += (a + b) + (c + d);
    for (int l = 0; l < kLanes<Lane>; ++l) total -= count[l];
    count = Vector<Lane>{};
  }
  for (int l = 0; l < kLanes<Lane>; ++l) total -= count[l];
  return total;
#endif
}

template <class Lane>
struct Kth {
  Lane key;
  int64_t count;  // of keys that reach it
  Lane greatest;  // key of all
};

// A key that at least `least` of the n keys reach and, ties permitting, at most `most`; the greatest such key
// if least == most cannot be met for ties. 1 <= least <= n.
template <class Lane, class Map>
inline Kth<Lane> kth(const Keys<Lane, Map>& keys, int64_t n, int64_t least, int64_t most) {
  Vector<Lane> low = splat<Lane>(sizeof(Lane) == 2 ? Lane(INT16_MAX) : Lane(INT32_MAX));
  Vector<Lane> high = ~low;
  {
    const Vector<Lane> in = keys.in_tail;
    Vector<Lane> t = in ? keys.tail : low;
    low = t < low ? t : low;
    t = in ? keys.tail : high;
    high = max(high, t);
  }
  for (int64_t i = 0; i < keys.whole; i += kLanes<Lane>) {
    const Vector<Lane> v = keys.at(i);
    low = v < low ? v : low;
    high = max(high, v);
  }
  int64_t lo = low[0], hi = high[0];
  for (int l = 1; l < kLanes<Lane>; ++l) {
    if (low[l] < lo) lo = low[l];
    if (high[l] > hi) hi = high[l];
  }
  const Lane greatest = Lane(hi);
  ++hi;  // every key reaches lo, none hi
  int64_t reached = n;
  while (reached > most && hi - lo > 1) {
    const int64_t middle = lo + (hi - lo) / 2;
    const int64_t count = count_at_least(keys, Lane(middle));
    if (count >= least) {
      lo = middle;
      reached = count;
    } else {
      hi = middle;
    }
  }
  return {Lane(lo), reached, greatest};
}

}  // namespace sel
}  // namespace
