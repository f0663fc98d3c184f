// What spmm_t and spmm_backward share: codes sorted by latent, one output row for each latent. Threads own latents.
// A hot latent (one that many rows use) is cut into pieces of kPiece slots, summed apart and then added up in order:
// the cut depends on the data alone, so neither balance nor bits depend on the number of threads.
#pragma once
#include "common/gather.h"
#include "transpose/transpose.inl.h"

namespace {

constexpr int64_t kPiece = 512;

struct ByLatent {
  const int64_t m;
  const Scratch<int64_t> offsets, order;
  const Scratch<int32_t> rows;

  ByLatent(const sk_codes& codes, int64_t latents)
      : m(latents), offsets(latents + 1), order(codes.nnz), rows(codes.nnz) {}

  bool sort(const sk_codes& codes, int threads) const {  // false: no memory
    return offsets.data && order.data && rows.data &&
           sort_by_latent(codes, m, offsets.data, order.data, rows.data, threads);
  }
  int64_t pieces(int64_t latent) const { return (offsets[latent + 1] - offsets[latent] + kPiece - 1) / kPiece; }
};

// Places [at, end) of the sorted order, all of one latent, and where their sum goes.
struct Run {
  int64_t latent, at, end;
  void* out;
};

// A segment that knows whose slots it has.
template <class T>
struct LatentSegment : Segment<T> {
  int64_t latent;
  int64_t slot[kSlots];
};

// Next: bool(Run&), false at the end. Skip: void(int64_t slot), of every slot that is empty.
template <class T, class Next, class Skip>
struct RunSource {
  const sk_codes& codes;
  const sk_matrix& x;
  const ByLatent& sorted;
  const Next& next_run;
  const Skip& skip;
  Run run{};
  bool open = false;

  bool next(LatentSegment<T>& s) {
    const bool first = !open;
    if (first && !next_run(run)) return false;
    s.start(run.out, first);
    s.latent = run.latent;
    for (; run.at < run.end && s.count < kSlots; ++run.at) {
      const int64_t slot = sorted.order[run.at];
      const float value = to_float(static_cast<const T*>(codes.values)[slot]);
      if (value == 0) {
        skip(slot);
        continue;
      }
      s.slot[s.count] = slot;
      s.add(row_of<T>(x, sorted.rows[run.at]), value);
    }
    s.last = run.at == run.end;
    open = !s.last;
    return true;
  }
};

template <class T, class Next, class Skip>
inline RunSource<T, Next, Skip> run_source(const sk_codes& codes, const sk_matrix& x, const ByLatent& sorted,
                                           const Next& next_run, const Skip& skip) {
  return {codes, x, sorted, next_run, skip};
}

// Fills `out` by sum(Out{}, thread, next_run), which sums runs into rows of Out: of T, or of float where pieces are to
// be added up (as sums lie between segments). `pitch` floats hold a row.
template <class T, class Sum>
sk_status sum_by_latent(const ByLatent& sorted, const sk_output& out, int64_t pitch, int threads, const Sum& sum) {
  parallel_runs(sorted.m, 32, threads, [&](int thread, int64_t begin, int64_t end) {
    int64_t latent = begin;
    sum(T{}, thread, [&](Run& run) {
      while (latent < end && sorted.pieces(latent) > 1) ++latent;
      if (latent == end) return false;
      run = {latent, sorted.offsets[latent], sorted.offsets[latent + 1], row_of<T>(out, latent)};
      ++latent;
      return true;
    });
  });

  int64_t hot = 0, pieces = 0;
  for (int64_t latent = 0; latent < sorted.m; ++latent) {
    if (sorted.pieces(latent) <= 1) continue;
    ++hot;
    pieces += sorted.pieces(latent);
  }
  if (!hot) return success();
  const Scratch<int64_t> hot_latents(hot), first_piece(hot + 1), owner(pieces);
  const Scratch<float> partial(pieces * pitch);
  if (!hot_latents.data || !first_piece.data || !owner.data || !partial.data) return failure(SK_NO_MEMORY);
  hot = pieces = 0;
  for (int64_t latent = 0; latent < sorted.m; ++latent) {
    if (sorted.pieces(latent) <= 1) continue;
    hot_latents[hot] = latent;
    first_piece[hot] = pieces;
    for (int64_t p = 0; p < sorted.pieces(latent); ++p) owner[pieces++] = hot;
    ++hot;
  }
  first_piece[hot] = pieces;

  parallel_runs(pieces, 1, threads, [&](int thread, int64_t piece, int64_t) {
    bool done = false;
    sum(float{}, thread, [&](Run& run) {
      if (done) return false;
      done = true;
      const int64_t latent = hot_latents[owner[piece]], stop = sorted.offsets[latent + 1];
      const int64_t at = sorted.offsets[latent] + (piece - first_piece[owner[piece]]) * kPiece;
      run = {latent, at, at + kPiece < stop ? at + kPiece : stop, partial.data + piece * pitch};
      return true;
    });
  });
  parallel_runs(hot, 1, threads, [&](int, int64_t h, int64_t) {
    float* sums = partial.data + first_piece[h] * pitch;
    for (int64_t p = first_piece[h] + 1; p < first_piece[h + 1]; ++p)
      for (int64_t i = 0; i < out.cols; i += kLanes) {
        const int n = out.cols - i < kLanes ? static_cast<int>(out.cols - i) : kLanes;
        store_n(sums + i, load_n(sums + i, n) + load_n(partial.data + p * pitch + i, n), n);
      }
    store_sums(row_of<T>(out, hot_latents[h]), sums, out.cols);
  });
  return success();
}

}  // namespace
