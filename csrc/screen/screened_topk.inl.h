// linear_topk's selection from screening scores: what comes out are exactly the k largest of a row's scores as
// `dot_rows` computes them, ties to the smaller latent, however far off the screening scores are. How many had
// to be computed exactly on the way is counted, so that a caller can tell when screening does not pay.
#pragma once
#include "screen/candidates.inl.h"

namespace {

inline int64_t screened_topk_room(int64_t k) { return screen::candidate_room(k); }

namespace screen {

inline Candidates candidates_of(const sk_screened_topk& s, int64_t r, bool started) {
  const int64_t at = r * s.room;
  Candidates c{s.upper + at, s.lower + at, s.index + at, 0, s.room - sel::kSlack, s.k, Float32::kLeast, 0};
  if (started) {
    c.count = s.count[r];
    c.bound = s.bound[r];
  }
  return c;
}

// Offers a chunk's scores to a row's candidates.
template <class Around, class E>
inline void offer(Candidates& c, const Around& scores, const uint8_t* among, int64_t n, int64_t first, const E& exactly) {
  if (c.closed()) return;
  Vector<int32_t> least = sel::splat(Float32::from(c.bound));
  const auto reaches = [&](vf high) { return sel::at_least(Float32::loose((Vector<int32_t>)high), least); };
  const auto take = [&](int64_t i, int m, vf middle, vf reach, uint64_t bits) {
    if (m < kWide) bits &= (uint64_t(1) << m) - 1;
    for (uint64_t rest = among ? bits : 0; rest; rest &= rest - 1)
      if (!among[i + __builtin_ctzll(rest)]) bits &= ~(rest & -rest);
    if (bits) c.append(middle + reach, middle - reach, bits, first + i);
  };
  int64_t i = 0;
  for (; i + 4 * kWide <= n; i += 4 * kWide) {
    uint64_t bits[4];
    for (int u = 0; u < 4; ++u) {
      const auto z = scores.at(i + u * kWide, kWide);
      bits[u] = reaches(z.middle + z.reach);
    }
    if (!(bits[0] | bits[1] | bits[2] | bits[3])) continue;
    for (int u = 0; u < 4; ++u) {
      if (!bits[u]) continue;
      const auto z = scores.at(i + u * kWide, kWide);
      take(i + u * kWide, kWide, z.middle, z.reach, bits[u]);
    }
    if (c.full()) {
      c.shrink(exactly);
      if (c.closed()) return;
      least = sel::splat(Float32::from(c.bound));
    }
  }
  for (; i < n; i += kWide) {
    const int m = int(n - i < kWide ? n - i : kWide);
    const auto z = scores.at(i, m);
    take(i, m, z.middle, z.reach, reaches(z.middle + z.reach));
  }
  if (c.full()) c.shrink(exactly);
}

inline bool fits(const sk_screened_topk& s, const sk_matrix& x, const sk_matrix& W) {
  return s.k >= 1 && s.room >= candidate_room(s.k) && s.n >= 0 && x.rows >= s.n && x.cols == W.cols &&
         W.rows <= INT32_MAX;
}

// Whether the rows of latents first, first + 1, ... first + cols - 1 are among W's, which begin at W_first.
inline bool covers(const sk_matrix& W, int64_t W_first, int64_t first, int64_t cols) {
  return W_first >= 0 && first >= W_first && first + cols <= W_first + W.rows && first + cols <= INT32_MAX;
}

}  // namespace screen

sk_status screened_topk_fold(int32_t dtype, sk_screened_topk s, sk_matrix scores, sk_matrix x, sk_matrix W,
                             int64_t W_first, sk_norms norms, const float* bias, const uint8_t* among,
                             int64_t first, int32_t threads) {
  if (!screen::fits(s, x, W) || scores.rows != s.n || !screen::covers(W, W_first, first, scores.cols))
    return failure(SK_BAD_SIZE);
  const int64_t n = scores.cols;
  const auto rows = [&](auto type, auto with_bias) {
    using T = decltype(type);
    constexpr bool kBias = decltype(with_bias)::value;
    parallel_runs(s.n, sel::rows_at_a_time(n), threads, [&](int, int64_t begin, int64_t end) {
      int64_t computed = 0;
      for (int64_t r = begin; r < end; ++r) {
        const screen::Exactly<T> exactly{row_of<T>(x, r), W, W_first, bias};
        const screen::Around<kBias> around{row_of<bf16>(scores, r), norms.W, norms.W_dropped,
                                           kBias ? bias + first : nullptr,
                                           screen::slack_of(norms.x[r], norms.x_dropped[r], x.cols)};
        screen::Candidates c = screen::candidates_of(s, r, first > 0);
        screen::offer(c, around, among, n, first, exactly);
        s.count[r] = int32_t(c.count);
        s.bound[r] = c.bound;
        computed += c.computed;
      }
      __atomic_fetch_add(s.computed, computed, __ATOMIC_RELAXED);
    });
    return success();
  };
  return for_dtype(dtype, [&](auto type) {
    return bias ? rows(type, screen::Flag<true>{}) : rows(type, screen::Flag<false>{});
  });
}

// Computes what is left of the chunks since the last call, all of whose latents W covers.
sk_status screened_topk_settle(int32_t dtype, sk_screened_topk s, sk_matrix x, sk_matrix W, int64_t W_first,
                               const float* bias, int32_t threads) {
  if (!screen::fits(s, x, W)) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(s.n, 4, threads, [&](int, int64_t begin, int64_t end) {
      int64_t computed = 0;
      for (int64_t r = begin; r < end; ++r) {
        screen::Candidates c = screen::candidates_of(s, r, true);
        c.settle(screen::Exactly<T>{row_of<T>(x, r), W, W_first, bias});
        s.count[r] = int32_t(c.count);
        s.bound[r] = c.bound;
        computed += c.computed;
      }
      __atomic_fetch_add(s.computed, computed, __ATOMIC_RELAXED);
    });
    return success();
  });
}

sk_status screened_topk_finish(int32_t dtype, sk_screened_topk s, sk_matrix x, sk_matrix W, const float* bias,
                               int32_t relu, void* values, int32_t* indices, int32_t threads) {
  if (!screen::fits(s, x, W)) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    parallel_runs(s.n, 4, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        screen::Candidates c = screen::candidates_of(s, r, true);
        c.finish(screen::Exactly<T>{row_of<T>(x, r), W, 0, bias});
        sel::write_row<T>(c.lower, c.index, c.count, s.k, r, relu, values, indices);
      }
    });
    return success();
  });
}

}  // namespace
