// linear_topk of a few tokens in one call. Scores are those of dot_rows, whichever way they are found: all of them from W,
// or those that the kept copy's bounds leave. A thread's candidates are of one run of latents, so that one after the
// other they ascend: the result is the same for any number of threads.
#pragma once
#include "few/stream.inl.h"
#include "screen/screened_topk.inl.h"
#include "select/running_topk.inl.h"

namespace {
namespace few {

// `lists` int32 arrays of `room` entries for each of so many candidates.
struct Lists {
  int64_t each;
  int count;
  Scratch<int32_t> memory;
  Lists(int64_t candidates, int64_t room, int count) : each(room), count(count), memory(candidates * room * count) {}
  int32_t* of(int64_t candidate, int list) const { return memory.data + (candidate * count + list) * each; }
};

template <class T>
inline void write_row(const sk_selection& s, int64_t t, const int32_t* keys, const int32_t* index, int64_t count) {
  T* value = static_cast<T*>(s.values) + t * s.k;
  int32_t* out = s.indices + t * s.k;
  for (int64_t j = 0; j < count; ++j) value[j] = sel::value_of<T>(keys[j], s.relu != 0);
  for (int64_t j = count; j < s.k; ++j) value[j] = from_float<T>(0.0f);  // fewer candidates than k
  memcpy(out, index, size_t(count) * sizeof(int32_t));
  memset(out + count, 0, size_t(s.k - count) * sizeof(int32_t));
}

// Candidates of every thread, selection and token, and how they are put together.
template <class C, int kLists>
struct Field {
  const sk_selection* selections;
  int64_t count, n;
  int workers;
  int64_t room;  // of the largest k
  Lists lists;
  Scratch<C> all;

  Field(const sk_selection* selections, int64_t count, int64_t n, int workers, int64_t room)
      : selections(selections), count(count), n(n), workers(workers), room(room),
        lists(workers * count * n, room, kLists), all(workers * count * n) {}
  bool ready() const { return lists.memory.data && all.data; }
  int64_t number(int64_t thread, int64_t s, int64_t t) const { return (thread * count + s) * n + t; }
  C& at(int64_t thread, int64_t s, int64_t t) const { return all[number(thread, s, t)]; }

  // finish(s, t, c, merged): c holds the candidates of all threads, in `merged` where there are several.
  template <class Finish>
  bool finish(const Finish& finish) const {
    constexpr int kMerging = 8;  // threads: each has room for the candidates of all
    const int merging = workers < kMerging ? workers : kMerging;
    const int64_t whole = workers > 1 ? workers * room + sel::kSlack : 0;
    const Scratch<int32_t> merged(whole * kLists * merging);
    if (!merged.data) return false;
    const int64_t run = sel::rows_at_a_time(16 * room * workers);
    parallel_runs(count * n, run, merging, [&](int thread, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t s = i / n, t = i % n;
        C c = at(0, s, t);
        if (workers > 1) {
          int32_t* into[kLists];
          for (int l = 0; l < kLists; ++l) into[l] = merged.data + (thread * kLists + l) * whole;
          c.room = workers * room;
          c.count = 0;
          for (int w = 0; w < workers; ++w) {
            const C& part = at(w, s, t);
            for (int l = 0; l < kLists; ++l)
              memcpy(into[l] + c.count, lists.of(number(w, s, t), l), size_t(part.count) * sizeof(int32_t));
            c.count += part.count;
          }
          point(c, into);
        }
        finish(s, t, c);
      }
    });
    return true;
  }
  static void point(sel::Candidates& c, int32_t* const* into) {
    c.keys = into[0];
    c.index = into[1];
  }
  static void point(screen::Candidates& c, int32_t* const* into) {
    c.upper = into[0];
    c.lower = into[1];
    c.index = into[2];
  }
};

inline int64_t most_k(const sk_selection* selections, int64_t count) {
  int64_t k = 0;
  for (int64_t s = 0; s < count; ++s) k = selections[s].k > k ? selections[s].k : k;
  return k;
}

template <class T>
inline int exact_topk(const Problem<T>& p, const sk_selection* selections, int64_t count) {
  const int64_t n = p.x.rows;
  const Field<sel::Candidates, 2> field(selections, count, n, p.workers, running_topk_room(most_k(selections, count)));
  if (!field.ready()) return kNoMemory;
  for (int w = 0; w < p.workers; ++w)
    for (int64_t s = 0; s < count; ++s)
      for (int64_t t = 0; t < n; ++t) {
        const int64_t i = field.number(w, s, t), k = selections[s].k;
        field.at(w, s, t) = {field.lists.of(i, 0), field.lists.of(i, 1), 0, sel::candidate_room(k), k, sel::Float32::kLeast};
      }
  const bool done = each_exact_block(p, [&](int thread, int64_t first, int64_t latents, const float* scores) {
    for (int64_t s = 0; s < count; ++s) {
      const uint8_t* among = selections[s].among ? selections[s].among + first : nullptr;
      for (int64_t t = 0; t < n; ++t)
        sel::with_scores(scores + t * kOutStride, nullptr, among, [&](const auto& source) {
          sel::offer<sel::Float32>(field.at(thread, s, t), source, latents, first);
        });
    }
    return true;
  });
  const bool written = done && field.finish([&](int64_t s, int64_t t, sel::Candidates c) {
    c.shrink();
    write_row<T>(selections[s], t, c.keys, c.index, c.count);
  });
  return written ? 0 : kNoMemory;
}

template <class T>
inline int screened_topk(const Problem<T>& p, const sk_rounded& copy, const sk_selection* selections, int64_t count) {
  const int64_t n = p.x.rows;
  const Field<screen::Candidates, 3> field(selections, count, n, p.workers,
                                           screen::candidate_room(most_k(selections, count)));
  if (!field.ready()) return kNoMemory;
  int64_t expected = 0;
  for (int64_t s = 0; s < count; ++s) expected += 8 * n * selections[s].k;
  for (int w = 0; w < p.workers; ++w)
    for (int64_t s = 0; s < count; ++s)
      for (int64_t t = 0; t < n; ++t) {
        const int64_t i = field.number(w, s, t), k = selections[s].k;
        field.at(w, s, t) = {field.lists.of(i, 0), field.lists.of(i, 1), field.lists.of(i, 2), 0,
                             screen::candidate_room(k) - sel::kSlack, k, sel::Float32::kLeast, 0};
      }
  int outcome = kScreened;
  const auto exactly = [&](int64_t t) {
    return screen::Exactly<T, T>{row_of<T>(p.x, t), p.W, 0, p.bias};
  };
  const bool done = each_screened_block(p, copy, [&](int thread, int64_t first, int64_t latents, const auto& around) {
    int64_t computed = 0;
    for (int64_t s = 0; s < count; ++s) {
      const uint8_t* among = selections[s].among ? selections[s].among + first : nullptr;
      for (int64_t t = 0; t < n; ++t) {
        screen::Candidates& c = field.at(thread, s, t);
        around(t, [&](const auto& scores) { screen::offer(c, scores, among, latents, first, exactly(t)); });
        computed += c.computed;
      }
    }
    if (!too_many(computed, expected, n * (first + latents))) return true;
    __atomic_fetch_or(&outcome, kGivenUp, __ATOMIC_RELAXED);
    return false;
  });
  if (!done) return kNoMemory;
  if (outcome & kGivenUp) return outcome;
  const bool written = field.finish([&](int64_t s, int64_t t, screen::Candidates c) {
    for (int w = 0; w < p.workers; ++w) c.contradicted |= field.at(w, s, t).contradicted;
    c.finish(exactly(t));
    if (c.contradicted) __atomic_fetch_or(&outcome, kContradicted, __ATOMIC_RELAXED);
    write_row<T>(selections[s], t, c.lower, c.index, c.count);
  });
  return written ? outcome : kNoMemory;
}

}  // namespace few

sk_status few_topk(int32_t dtype, sk_matrix x, sk_matrix W, const void* bias, sk_rounded copy,
                   const sk_selection* selections, int64_t count, int32_t threads) {
  if (!few::fits(x, W) || count < 1) return failure(SK_BAD_SIZE);
  for (int64_t s = 0; s < count; ++s)
    if (selections[s].k < 1 || selections[s].k > W.rows) return failure(SK_BAD_SIZE, s, selections[s].k);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const few::Problem<T> p(x, W, bias, threads);
    int screened = 0, outcome;
    if (copy.rows) screened = few::screened_topk(p, copy, selections, count);
    outcome = screened == few::kScreened ? 0 : few::exact_topk(p, selections, count);
    if (outcome & few::kNoMemory) return failure(SK_NO_MEMORY);
    return failure(SK_OK, screened & ~few::kNoMemory);
  });
}

}  // namespace
