// Codes by latent (CSC): a stable counting sort. Thread t counts and later places the t-th run of rows, so the
// order inside a latent is the slots' own for any number of threads.
#pragma once
#include "common/codes.h"

namespace {

// A thread has m counters to clear and to add up, and four barriers to meet: not worth it for few slots.
inline int sorting_threads(int64_t nnz, int64_t m, int threads) {
  const int64_t useful = 1 + nnz / (4 * m + (INT64_C(1) << 18));
  return static_cast<int>(useful < threads ? useful : threads < 1 ? 1 : threads);
}

// `codes` are checked already. Fills latent_offsets (m+1), order (nnz) and rows (nnz); false: no memory.
inline bool sort_by_latent(const sk_codes& codes, int64_t m, int64_t* latent_offsets, int64_t* order, int32_t* rows,
                           int threads) {
  threads = sk_allowed_threads(sorting_threads(codes.nnz, m, threads));
  const int parts = threads;
  const Scratch<int64_t> counts(m * parts), totals(parts + 1);
  if (!counts.data || !totals.data) return false;
  const auto run_of = [](int64_t total, int part, int of) { return total / of * part + total % of * part / of; };
  const auto each_part = [&](const auto& body) {
    parallel_runs(parts, 1, threads, [&](int, int64_t part, int64_t) { body(static_cast<int>(part)); });
  };

  each_part([&](int part) {
    int64_t* count = counts.data + m * part;
    memset(count, 0, static_cast<size_t>(m) * sizeof *count);
    const int64_t begin = row_begin(codes, run_of(codes.n, part, parts));
    const int64_t end = row_begin(codes, run_of(codes.n, part + 1, parts));
    for (int64_t slot = begin; slot < end; ++slot) ++count[codes.indices[slot]];
  });
  each_part([&](int part) {  // the part-th run of latents: how many slots it holds
    int64_t total = 0;
    for (int64_t i = run_of(m, part, parts); i < run_of(m, part + 1, parts); ++i)
      for (int p = 0; p < parts; ++p) total += counts[m * p + i];
    totals[part] = total;
  });
  each_part([&](int part) {  // counters become places: by latent, then by run of rows
    int64_t place = 0;
    for (int p = 0; p < part; ++p) place += totals[p];
    for (int64_t i = run_of(m, part, parts); i < run_of(m, part + 1, parts); ++i) {
      latent_offsets[i] = place;
      for (int p = 0; p < parts; ++p) {
        const int64_t count = counts[m * p + i];
        counts[m * p + i] = place;
        place += count;
      }
    }
  });
  latent_offsets[m] = codes.nnz;
  each_part([&](int part) {
    int64_t* place = counts.data + m * part;
    for (int64_t row = run_of(codes.n, part, parts); row < run_of(codes.n, part + 1, parts); ++row) {
      for (int64_t slot = row_begin(codes, row), end = row_end(codes, row); slot < end; ++slot) {
        const int64_t to = place[codes.indices[slot]]++;
        order[to] = slot;
        rows[to] = static_cast<int32_t>(row);
      }
    }
  });
  return true;
}

sk_status transpose(sk_codes codes, int64_t m, int64_t* latent_offsets, int64_t* order, int32_t* rows,
                    int32_t threads) {
  const sk_status status = check_codes(codes, m);
  if (status.code) return status;
  if (codes.n > INT32_MAX) return failure(SK_BAD_SIZE, 0, codes.n);
  return sort_by_latent(codes, m, latent_offsets, order, rows, threads) ? success() : failure(SK_NO_MEMORY);
}

}  // namespace
