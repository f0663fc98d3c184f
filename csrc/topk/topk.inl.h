// topk: the k largest of each row of scores; NaN first, ties to the smaller index, indices ascending in a
// row.
//
// Selection by maxima. One branch-free pass finds, for each unit of a few vectors, the maximum of every lane. It folds
// those of far units into a few vectors, whose k-th largest number bounds the k-th score from below, and keeps the
// maxima of 16 bytes of lanes for each unit: to store more would hold up a row that comes from memory. Only units with a
// maximum that reaches the bound are read again: about M + kB reads, whatever the order. Which they are, and where in
// them, no branch predictor can learn: bits are collected first, and branches taken on what they name. Where k is too
// large for enough maxima, the k-th score is found by bisection on the row itself.
#pragma once
#include "common/codes.h"
#include "select/candidates.inl.h"

namespace {
namespace sel {

constexpr int64_t kMostVectors = 64;  // in a unit
constexpr int64_t kLeastBytes = kVectorBytes > 16 ? 1024 : 512;  // of a unit
constexpr int64_t kDense = 24;        // scores of a unit that are too many to be taken one by one

// How a row is cut: vectors in a unit (0: not at all), units, and vectors that their maxima are folded into.
struct Cut {
  int64_t vectors, units, folds;
};

// Units of about sqrt(M / (k lanes)) vectors: what has to be read again weighs as much as the maxima. Smaller units
// than kLeastBytes would slow down reading, by their maxima's stores. Two maxima or more for each of the k; eight after
// folding, if there are so many.
template <class Lane>
inline Cut cut_of(int64_t m, int64_t k) {
  constexpr int64_t kWide = kLanes<Lane>;
  if (m < 16 * k || m < 1024) return {0, 0, 0};
  int64_t v = 8;
  while (v < kMostVectors && m > 8 * v * k && (v * kVectorBytes < kLeastBytes || v * v < m / (k * kWide))) v *= 2;
  const int64_t units = m / (v * kWide), folds = (8 * k + kWide - 1) / kWide;
  return {v, units, folds < units ? folds : units};
}

// Maxima of units come 16 bytes of each at a time.
template <class Lane>
constexpr int kOfUnit = 16 / int(sizeof(Lane));
constexpr int kUnits = kVectorBytes / 16;  // in a vector
inline int64_t padded(int64_t units) { return (units + kUnits - 1) / kUnits * kUnits; }

// Stores the maxima of a vector's four, or two, sixteen bytes.
inline void store_narrow(int32_t* p, Vector<int32_t> v) {
#if defined(__AVX512BW__)
  const __m512i all = (__m512i)v;  // maskz: of the plain one, GCC 12 warns that it uses what it leaves undefined
  const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_maskz_extracti64x4_epi64(0xff, all, 1));
#elif defined(__AVX2__)
  const __m256i half = (__m256i)v;
#endif
#if defined(__AVX2__)
  store(p, _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
#else
  store(p, v);
#endif
}
inline void store_narrow(int16_t* p, Vector<int16_t> v) {
#if defined(__AVX512BW__)
  const __m512i all = (__m512i)v;
  const __m256i half = _mm256_max_epi16(_mm512_castsi512_si256(all), _mm512_maskz_extracti64x4_epi64(0xff, all, 1));
#elif defined(__AVX2__)
  const __m256i half = (__m256i)v;
#endif
#if defined(__AVX2__)
  store(p, _mm_max_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
#else
  store(p, v);
#endif
}

// A load that stays one: GCC 12 would load again what is used twice, and a cache delivers one vector a cycle.
template <class V, class T>
inline V load_once(const T* p) {
  V v = load<V>(p);
#if defined(__AVX512BW__)
  __asm__("" : "+v"(v));
#elif defined(__SSE2__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// What topk_by_maxima needs, in int32s; 0 where a row is not cut.
template <class Lane>
inline int64_t topk_workspace(int64_t m, int64_t k) {
  const Cut cut = cut_of<Lane>(m, k);
  if (cut.vectors == 0) return 0;
  return 2 * (candidate_room(k) + kSlack) + cut.folds * (kVectorBytes / 4) + padded(cut.units) * 5;
}

// Stores wait long for a line while a row streams in from memory: maxima ask for theirs a line ahead.
constexpr int64_t kAheadUnits = 4;

// Hardware reads ahead within a page and starts anew in the next: while `bytes` from p on are read, their share of the
// next page's first kOpening lines is asked for.
constexpr uintptr_t kPage = 4096, kLine = 64, kOpening = 8;
inline void open_next_page(const void* p, int64_t bytes) {
  const uintptr_t at = uintptr_t(p), next = at / kPage * kPage + kPage, share = kPage / kOpening;
  for (uintptr_t line = at % kPage / share, end = (at % kPage + uintptr_t(bytes)) / share; line < end; ++line)
    __builtin_prefetch(reinterpret_cast<const char*>(next + line * kLine), 0, 2);
}

// The maxima of units, and folded, as loose keys.
template <class Order>
inline void find_maxima(const typename Order::L* row, const Cut& cut, typename Order::L* of_units,
                        typename Order::L* folded) {
  using Lane = typename Order::L;
  using V = Vector<Lane>;
  constexpr int64_t kWide = kLanes<Lane>;
  const int64_t unit = cut.vectors * kWide;
  int64_t fold = 0;
  for (int64_t g = 0; g < cut.units; ++g) {
    const Lane* p = row + g * unit;
    open_next_page(p, unit * int64_t(sizeof(Lane)));
    V best[4];
    for (int u = 0; u < 4; ++u) best[u] = Order::loose(load_once<V>(p + u * kWide));
    for (int64_t j = 4 * kWide; j < unit; j += 4 * kWide)
      for (int u = 0; u < 4; ++u) best[u] = max(best[u], Order::loose(load_once<V>(p + j + u * kWide)));
    const V most = max(max(best[0], best[1]), max(best[2], best[3]));
    __builtin_prefetch(of_units + (g + kAheadUnits) * kOfUnit<Lane>, 1);
    store_narrow(of_units + g * kOfUnit<Lane>, most);
    Lane* into = folded + fold * kWide;
    store(into, g < cut.folds ? most : max(most, load<V>(into)));
    fold = fold + 1 == cut.folds ? 0 : fold + 1;
  }
  for (int64_t i = cut.units * kOfUnit<Lane>; i < padded(cut.units) * kOfUnit<Lane>; ++i) of_units[i] = Order::kLeast;
}

#if SK_COUNTS_LANES
// Scores that were found to reach the bound, as bits: those of one word are 64 latents from `first` on.
struct Named {
  static constexpr int64_t kWords = 96;  // at least as many as a unit and a half have
  uint64_t bits[kWords];
  int32_t first[kWords];
  int64_t words = 0, hits = 0;

  // The words of so many vectors from latent `at` on; those without bits cost their place only until the next.
  template <class Order>
  inline void add(const typename Order::L* row, int64_t vectors, int64_t at, Vector<typename Order::L> least) {
    using Lane = typename Order::L;
    constexpr int kWide = kLanes<Lane>, kEach = 64 / kWide;
    for (int64_t v = 0; v < vectors; v += kEach, at += 64) {
      uint64_t word = 0;
      for (int u = 0; u < kEach; ++u)
        word |= at_least(Order::loose(load_once<Vector<Lane>>(row + at + u * kWide)), least) << (u * kWide);
      bits[words] = word;
      first[words] = int32_t(at);
      words += word != 0;
      hits += ones(word);
    }
  }

  // Hands them over; the candidates have room for them.
  template <class Order>
  inline void move_to(Candidates& c, const typename Order::L* row) {
    for (int64_t w = 0; w < words; ++w)
      for (uint64_t rest = bits[w]; rest; rest &= rest - 1) {
        const int32_t latent = first[w] + __builtin_ctzll(rest);
        c.keys[c.count] = Order::exact(Order::loose(row[latent]));
        c.index[c.count++] = latent;
      }
    words = hits = 0;
  }
};
#endif

template <class Order>
inline void topk_by_maxima(const typename Order::L* row, int64_t m, int64_t k, int32_t* index, int32_t* workspace) {
  using Lane = typename Order::L;
  using V = Vector<Lane>;
  constexpr int kWide = kLanes<Lane>, kOf = kOfUnit<Lane>;
  const Cut cut = cut_of<Lane>(m, k);
  const int64_t room = candidate_room(k) + kSlack, unit = cut.vectors * kWide, of_all = padded(cut.units) * kOf;
  Lane* folded = reinterpret_cast<Lane*>(workspace + 2 * room);
  Lane* of_units = folded + cut.folds * kWide;
  int32_t* reaching = reinterpret_cast<int32_t*>(of_units + of_all);
  find_maxima<Order>(row, cut, of_units, folded);

  int64_t count, lanes;  // units from `first` on that reach a bound, and lanes of theirs that do
  const auto list = [&](Lane bound, int64_t first) {
    const V least = splat(Order::from(bound));
    count = lanes = 0;
    for (int64_t g = first / kUnits * kUnits; g < cut.units; g += kUnits) {
      const uint64_t bits = at_least(load<V>(of_units + g * kOf), least);
#if SK_COUNTS_LANES
      lanes += ones(bits);
#endif
      for (int u = 0; u < kUnits; ++u) {
        reaching[count] = int32_t(g + u);
        count += (g + u >= first) & (g + u < cut.units) & ((bits >> (u * kOf) & ((1 << kOf) - 1)) != 0);
      }
    }
  };
  const Lane last = kth(Keys<Lane, AsStored>(folded, cut.folds * kWide), cut.folds * kWide, k, k + k / 8).key;
  Lane bound = Order::exact(last);
  list(bound, 0);
  if (lanes > 4 * k) {  // folding hid many: of all maxima, a greater one may be the k-th
    const Keys<Lane, AsStored> maxima(of_units, of_all);
    if (last < Order::kFirstNaN && count_at_least(maxima, Lane(last + 1)) >= k) {
      bound = Order::exact(kth(maxima, of_all, k, k + k / 8).key);
      list(bound, 0);
    }
  }

  Candidates c{workspace, workspace + room, 0, candidate_room(k), k, bound};
  int64_t i = 0;
#if SK_COUNTS_LANES
  const V least = splat(Order::from(bound));
  Named named;
  while (i < count) {
    if (named.words > Named::kWords - kMostVectors * kWide / 64) named.template move_to<Order>(c, row);
    const int64_t words = named.words, hits = named.hits;
    named.template add<Order>(row, cut.vectors, reaching[i] * unit, least);
    if (named.hits - hits > kDense || c.count + named.hits > c.room - 4 * kWide) {  // the room that `offer` leaves
      named.words = words;
      named.hits = hits;
      break;
    }
    ++i;
  }
  named.template move_to<Order>(c, row);
#endif
  while (i < count && c.bound <= Order::kFirstNaN) {
    const int64_t g = reaching[i++];
    offer<Order>(c, Row<Lane>{row + g * unit}, unit, g * unit);
    if (c.bound == bound || c.bound > Order::kFirstNaN) continue;
    bound = Lane(c.bound);
    list(bound, g + 1);
    i = 0;
  }
  const int64_t cut_off = cut.units * unit;
  offer<Order>(c, Row<Lane>{row + cut_off}, m - cut_off, cut_off);
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
          sel::topk_by_maxima<Order>(row, m, k, index, scratch.data + workspace * thread);
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
