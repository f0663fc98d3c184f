// A row's candidates while its latents stream by: between which scores each lies, as exact keys. Bounded in
// number: a list that its bounds cannot thin is computed exactly, whatever made it so.
#pragma once
#include "common/dots.h"
#include "screen/bound.inl.h"

namespace {
namespace screen {

using sel::Float32;
using sel::Vector;

constexpr int kWide = sel::kLanes<int32_t>;

// How candidates are computed exactly: x . W[latent - W_first] + bias[latent] in float32.
template <class T, class Bias = float>
struct Exactly {
  const T* x;
  const sk_matrix& W;
  int64_t W_first;
  const Bias* bias;
  static constexpr int kBatch = 128;

  // scores[i] = that of latents[i], for i < n <= kBatch
  void scores(const int32_t* latents, int n, float* scores) const {
    constexpr int kSide = 4;
    const T* rows[kBatch];
    for (int i = 0; i < n; ++i) rows[i] = row_of<T>(W, latents[i] - W_first);
    int i = 0;
    for (; i + kSide <= n; i += kSide)
      dot_rows<kSide>(x, rows + i, W.cols, scores + i, i + 2 * kSide <= n ? rows + i + kSide : nullptr);
    for (; i < n; ++i) dot_rows<1>(x, rows + i, W.cols, scores + i, i + 1 < n ? rows + i + 1 : nullptr);
    for (i = 0; bias && i < n; ++i) scores[i] += to_float(bias[latents[i]]);
  }
  void keys(const int32_t* latents, int n, int32_t* keys) const {
    float found[kBatch];
    scores(latents, n, found);
    for (int i = 0; i < n; ++i) keys[i] = Float32::exact(Float32::loose(bits_as<int32_t>(found[i])));
  }
};

// Entries below `bound` cannot be among the k best any more.
struct Candidates {
  int32_t *upper, *lower, *index;  // equal bounds: exact
  int64_t count, room, k;
  int32_t bound;
  int64_t computed;  // exactly, so far
  bool contradicted = false;  // an exact score lay outside its bounds: they are another matrix's

  bool closed() const { return bound > Float32::kFirstNaN; }
  bool full() const { return count > room - 4 * kWide; }

  void append(vf high, vf low, uint64_t bits, int64_t first) {
    const Vector<int32_t> top = Float32::loose((Vector<int32_t>)high);
    // No lower bound where it is NaN: as -inf.
    const vf least = splat(-__builtin_inff());
    const Vector<int32_t> bottom = Float32::loose((Vector<int32_t>)(low >= least ? low : least));
    sel::compress(upper + count, Float32::exact(top), bits);
    sel::compress(lower + count, Float32::exact(bottom), bits);
    count += sel::compress(index + count, sel::lane_numbers() + int32_t(first), bits);
  }

  // Raises the bound to the k-th lower bound, and drops what lies below.
  void thin() {
    if (count <= k) return;
    const int32_t reached = sel::kth(sel::Keys<int32_t, sel::AsStored>(lower, count), count, k, k).key;
    if (reached > bound) bound = reached;
    // Not `bound`, which may lie above what stays: entries of the k greatest lower bounds are never dropped.
    const Vector<int32_t> least = sel::splat(reached);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += kWide) {  // in place: vectors are loaded before what overwrites them is stored
      const auto top = sel::load<Vector<int32_t>>(upper + i), bottom = sel::load<Vector<int32_t>>(lower + i);
      const auto latent = sel::load<Vector<int32_t>>(index + i);
      uint64_t bits = sel::at_least(top, least);
      if (count - i < kWide) bits &= (uint64_t(1) << (count - i)) - 1;
      sel::compress(upper + kept, top, bits);
      sel::compress(lower + kept, bottom, bits);
      kept += sel::compress(index + kept, latent, bits);
    }
    count = kept;
  }

  // The k-th greatest upper bound, of more than k.
  int32_t kth_upper() const {
    return sel::kth(sel::Keys<int32_t, sel::AsStored>(upper, count), count, k, k).key;
  }

  // Computes those whose lower bound is at least `low` and whose upper bound at least `high`.
  template <class E>
  void compute(const E& exactly, int32_t low, int32_t high) {
    constexpr int kBatch = E::kBatch;
    int32_t latents[kBatch], keys[kBatch], at[kBatch];
    for (int64_t i = 0; i < count;) {
      int n = 0;
      for (; i < count && n < kBatch; ++i) {
        at[n] = int32_t(i);
        latents[n] = index[i];
        n += (upper[i] != lower[i]) & (lower[i] >= low) & (upper[i] >= high);
      }
      exactly.keys(latents, n, keys);
      for (int j = 0; j < n; ++j) {
        contradicted |= (keys[j] < lower[at[j]]) | (keys[j] > upper[at[j]]);
        upper[at[j]] = lower[at[j]] = keys[j];
      }
      computed += n;
    }
  }

  // Leaves the k best, exact and in order. Every entry is exact, or below `bound`.
  void keep_best() {
    if (count > k) {
      bound = sel::keep_best(lower, index, count, k) + 1;  // later equals have greater latents: they lose
      count = k;
    }
    memcpy(upper, lower, size_t(count) * sizeof(int32_t));
  }

  // Computes the k of the greatest upper bounds, and drops what their scores leave behind: wide bounds keep many times
  // k standing, of which these few are nearly always the best. (By lower bounds, what is exact already would come first.)
  template <class E>
  void probe(const E& exactly) {
    thin();
    if (count <= k) return;
    compute(exactly, Float32::kLeast, kth_upper());
    thin();
  }

  // Makes room.
  template <class E>
  void shrink(const E& exactly) {
    thin();
    if (count <= (room + k) / 2) return;
    probe(exactly);
    if (count <= (room + k) / 2) return;
    compute(exactly, Float32::kLeast, Float32::kLeast);
    keep_best();
  }

  // Leaves exact entries only, and the k best among them.
  template <class E>
  void settle(const E& exactly) {
    thin();
    compute(exactly, Float32::kLeast, Float32::kLeast);
  }

  // The k best of all.
  template <class E>
  void finish(const E& exactly) {
    probe(exactly);
    compute(exactly, Float32::kLeast, Float32::kLeast);
    keep_best();
  }
};

// Entries a list has room for. The bounds leave about 2 to 5 k of random scores standing.
inline int64_t candidate_room(int64_t k) { return 4 * k + (k < 64 ? 4 * k : 256) + 8 * kWide + sel::kSlack; }

}  // namespace screen
}  // namespace
