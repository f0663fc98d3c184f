// linear_threshold of a few tokens in one call; scores and threads as in few/topk.
#pragma once
#include "few/stream.inl.h"
#include "screen/screened_threshold.inl.h"
#include "select/threshold.inl.h"

namespace {
namespace few {

// What stays of one token's latents; grows.
struct Kept {
  float* values;
  int32_t* index;
  int64_t count, room;

  bool fit(int64_t more) {
    if (count + more <= room) return true;
    const int64_t wanted = 2 * room + more + 64;
    void* v = realloc(values, size_t(wanted) * sizeof(float));
    if (v) values = static_cast<float*>(v);
    void* i = realloc(index, size_t(wanted) * sizeof(int32_t));
    if (i) index = static_cast<int32_t*>(i);
    if (v && i) room = wanted;
    return v && i;
  }
};

struct AllKept {
  int64_t n;
  int workers;
  Scratch<Kept> all;
  AllKept(int64_t n, int workers) : n(n), workers(workers), all(n * workers) {
    if (all.data) memset(all.data, 0, size_t(n * workers) * sizeof(Kept));
  }
  ~AllKept() {
    for (int64_t i = 0; all.data && i < n * workers; ++i) {
      free(all[i].values);
      free(all[i].index);
    }
  }
  Kept& at(int64_t thread, int64_t t) const { return all[thread * n + t]; }

  // Rows one after the other.
  template <class T>
  void write(T* values, int32_t* indices) const {
    int64_t to = 0;
    for (int64_t t = 0; t < n; ++t)
      for (int w = 0; w < workers; ++w) {
        const Kept& kept = at(w, t);
        for (int64_t i = 0; i < kept.count; i += kLanes) {
          const int some = kept.count - i < kLanes ? int(kept.count - i) : kLanes;
          store_n(values + to + i, load_n(kept.values + i, some), some);
        }
        if (kept.count) memcpy(indices + to, kept.index, size_t(kept.count) * sizeof(int32_t));
        to += kept.count;
      }
  }
};

template <class T>
inline int exact_threshold(const Problem<T>& p, const float* theta, int64_t step, const AllKept& found) {
  int outcome = 0;
  const bool done = each_exact_block(p, [&](int thread, int64_t first, int64_t latents, const float* scores) {
    constexpr int kWide = sel::kLanes<int32_t>;
    for (int64_t t = 0; t < p.x.rows; ++t) {
      const sel::Scores<false, false> source{scores + t * kOutStride, nullptr, nullptr};
      Kept& kept = found.at(thread, t);
      for (int64_t i = 0; i < latents; i += kWide) {
        const int m = int(latents - i < kWide ? latents - i : kWide);
        sel::FloatVector z;
        const uint64_t bits = sel::above_theta(source, i, m, theta + step * (first), step, z);
        if (!bits) continue;
        if (!kept.fit(kWide + sel::kSlack)) {
          __atomic_fetch_or(&outcome, kNoMemory, __ATOMIC_RELAXED);
          return false;
        }
        sel::compress(reinterpret_cast<int32_t*>(kept.values) + kept.count, (sel::Vector<int32_t>)z, bits);
        kept.count += sel::compress(kept.index + kept.count, sel::lane_numbers() + int32_t(first + i), bits);
      }
    }
    return true;
  });
  return done ? outcome : kNoMemory;
}

template <class T>
inline int screened_threshold(const Problem<T>& p, const sk_rounded& copy, const float* theta, int64_t step,
                              const AllKept& found) {
  int outcome = kScreened;
  const Scratch<int64_t> counts(p.workers * 8);  // a cache line each
  if (!counts.data) return kNoMemory;
  memset(counts.data, 0, size_t(p.workers) * 8 * sizeof(int64_t));
  const bool done = each_screened_block(p, copy, [&](int thread, int64_t first, int64_t latents, const auto& around) {
    using Exactly = screen::Exactly<T, T>;
    int64_t& computed = counts[thread * 8];
    int told = 0;
    for (int64_t t = 0; t < p.x.rows && !told; ++t) {
      const Exactly exactly{row_of<T>(p.x, t), p.W, 0, p.bias};
      Kept& kept = found.at(thread, t);
      int32_t picked[kMostLatents];
      float upper[kMostLatents], lower[kMostLatents];
      int waiting = 0;
      around(t, [&](const auto& row) {
        screen::may_stay(row, latents, theta + step * first, step, [&](int64_t i, uint64_t bits) {
          const int m = int(latents - i < screen::kWide ? latents - i : screen::kWide);
          const auto z = row.at(i, m);
          const vf high = z.middle + z.reach, low = z.middle - z.reach;
          for (; bits; bits &= bits - 1) {
            const int lane = __builtin_ctzll(bits);
            picked[waiting] = int32_t(first + i + lane);
            upper[waiting] = high[lane];
            lower[waiting++] = low[lane];
          }
        });
      });
      computed += waiting;
      if (too_many(computed, 0, p.x.rows * (first + latents))) told |= kGivenUp;
      else if (!kept.fit(waiting)) told |= kNoMemory;
      for (int i = 0; !told && i < waiting; i += Exactly::kBatch) {
        const int some = waiting - i < Exactly::kBatch ? waiting - i : Exactly::kBatch;
        float exact[Exactly::kBatch];
        exactly.scores(picked + i, some, exact);
        for (int j = 0; j < some; ++j) {
          if (exact[j] > upper[i + j] || exact[j] < lower[i + j]) told |= kContradicted;
          if (exact[j] <= theta[step * picked[i + j]]) continue;
          kept.values[kept.count] = exact[j];
          kept.index[kept.count++] = picked[i + j];
        }
      }
    }
    if (told) __atomic_fetch_or(&outcome, told, __ATOMIC_RELAXED);
    return !told;
  });
  return done ? outcome : kNoMemory;
}

}  // namespace few

sk_status few_threshold(int32_t dtype, sk_matrix x, sk_matrix W, const void* bias, sk_rounded copy, const float* theta,
                        int64_t theta_step, int64_t room, int64_t* offsets, void* values, int32_t* indices,
                        int32_t threads) {
  if (!few::fits(x, W) || theta_step < 0 || theta_step > 1) return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const few::Problem<T> p(x, W, bias, threads);
    int screened = 0;
    const auto done = [&](const few::AllKept& found) {
      offsets[0] = 0;
      for (int64_t t = 0; t < x.rows; ++t) {
        offsets[t + 1] = offsets[t];
        for (int w = 0; w < p.workers; ++w) offsets[t + 1] += found.at(w, t).count;
      }
      if (offsets[x.rows] <= room) found.write(static_cast<T*>(values), indices);
      return failure(SK_OK, screened & ~few::kNoMemory);
    };
    if (copy.rows) {
      const few::AllKept found(x.rows, p.workers);
      if (!found.all.data) return failure(SK_NO_MEMORY);
      screened = few::screened_threshold(p, copy, theta, theta_step, found);
      if (screened == few::kScreened) return done(found);
    }
    const few::AllKept found(x.rows, p.workers);
    if (!found.all.data || few::exact_threshold(p, theta, theta_step, found)) return failure(SK_NO_MEMORY);
    return done(found);
  });
}

}  // namespace
