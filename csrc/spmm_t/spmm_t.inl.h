// out (m, d) = codes^T @ x. Slots are sorted by latent, then threads own latents. A hot latent (one that many
// rows use) is cut into pieces of kPiece slots, summed apart and then added up in order: the cut depends on
// the data alone, so neither balance nor bits depend on the number of threads.
#include "common/gather.h"
#include "transpose/transpose.inl.h"

namespace {

constexpr int64_t kPiece = 512;

struct ByLatent {
  const int64_t* offsets;
  const int64_t* order;
  const int32_t* rows;
};

// Slots [slot, end) of the sorted order, as one output row after another.
template <class T, class Next>
struct SortedSource {
  const sk_codes& codes;
  const sk_matrix& x;
  const ByLatent& sorted;
  Next next_row;  // bool(void*& out, int64_t& begin, int64_t& end)
  int64_t slot, end;
  void* out;
  bool open;

  bool next(Segment<T>& s) {
    const bool first = !open;
    if (!open && !next_row(out, slot, end)) return false;
    const T* values = static_cast<const T*>(codes.values);
    s.start(out, first);
    for (; slot < end && s.count < kSlots; ++slot) {
      const float value = to_float(values[sorted.order[slot]]);
      if (value != 0) s.add(row_of<T>(x, sorted.rows[slot]), value);
    }
    s.last = slot == end;
    open = !s.last;
    return true;
  }
};

template <class T, class Out, class Next>
inline void sum_sorted(const sk_codes& codes, const sk_matrix& x, const ByLatent& sorted, float* acc,
                       const Next& next_row) {
  SortedSource<T, Next> source{codes, x, sorted, next_row, 0, 0, nullptr, false};
  sum_segments<T, Out>(source, x, acc);
}

template <class T>
sk_status spmm_t_of(const sk_codes& codes, const sk_matrix& x, const sk_output& out, int threads) {
  const int64_t m = out.rows, d = x.cols, pitch = (d + 15) / 16 * 16;
  const Scratch<int64_t> offsets(m + 1), order(codes.nnz);
  const Scratch<int32_t> rows(codes.nnz);
  const Scratch<float> acc(pitch * (threads > 1 ? threads : 1));
  if (!offsets.data || !order.data || !rows.data || !acc.data) return failure(SK_NO_MEMORY);
  if (!sort_by_latent(codes, m, offsets.data, order.data, rows.data, threads)) return failure(SK_NO_MEMORY);
  const ByLatent sorted{offsets.data, order.data, rows.data};
  const auto size = [&](int64_t latent) { return sorted.offsets[latent + 1] - sorted.offsets[latent]; };

  parallel_runs(m, 32, threads, [&](int thread, int64_t begin, int64_t end) {
    int64_t latent = begin;
    sum_sorted<T, T>(codes, x, sorted, acc.data + thread * pitch, [&](void*& to, int64_t& from, int64_t& until) {
      while (latent < end && size(latent) > kPiece) ++latent;
      if (latent == end) return false;
      to = row_of<T>(out, latent);
      from = sorted.offsets[latent];
      until = sorted.offsets[++latent];
      return true;
    });
  });

  int64_t hot = 0, pieces = 0;
  for (int64_t latent = 0; latent < m; ++latent) {
    if (size(latent) <= kPiece) continue;
    ++hot;
    pieces += (size(latent) + kPiece - 1) / kPiece;
  }
  if (!hot) return success();
  const Scratch<int64_t> hot_latents(hot), first_piece(hot + 1), owner(pieces);
  const Scratch<float> partial(pieces * pitch);
  if (!hot_latents.data || !first_piece.data || !owner.data || !partial.data) return failure(SK_NO_MEMORY);
  hot = pieces = 0;
  for (int64_t latent = 0; latent < m; ++latent) {
    if (size(latent) <= kPiece) continue;
    hot_latents[hot] = latent;
    first_piece[hot] = pieces;
    for (int64_t at = 0; at < size(latent); at += kPiece) owner[pieces++] = hot;
    ++hot;
  }
  first_piece[hot] = pieces;

  parallel_runs(pieces, 1, threads, [&](int thread, int64_t piece, int64_t) {
    bool done = false;
    sum_sorted<T, float>(codes, x, sorted, acc.data + thread * pitch, [&](void*& to, int64_t& from, int64_t& until) {
      if (done) return false;
      done = true;
      const int64_t latent = hot_latents[owner[piece]], stop = sorted.offsets[latent + 1];
      to = partial.data + piece * pitch;
      from = sorted.offsets[latent] + (piece - first_piece[owner[piece]]) * kPiece;
      until = from + kPiece < stop ? from + kPiece : stop;
      return true;
    });
  });
  parallel_runs(hot, 1, threads, [&](int, int64_t h, int64_t) {
    T* to = row_of<T>(out, hot_latents[h]);
    for (int64_t i = 0; i < d; i += kLanes) {
      const int n = d - i < kLanes ? static_cast<int>(d - i) : kLanes;
      vf s{};
      for (int64_t p = first_piece[h]; p < first_piece[h + 1]; ++p) s += load_n(partial.data + p * pitch + i, n);
      store_n(to + i, s, n);
    }
  });
  return success();
}

sk_status spmm_t(int32_t dtype, sk_codes codes, sk_matrix x, sk_output out, int32_t threads) {
  const sk_status status = check_codes(codes, out.rows);
  if (status.code) return status;
  if (x.rows != codes.n || out.cols != x.cols || codes.n > INT32_MAX) return failure(SK_BAD_SIZE);
  if (out.cols == 0 || out.rows == 0) return success();
  return for_dtype(dtype, [&](auto type) { return spmm_t_of<decltype(type)>(codes, x, out, threads); });
}

}  // namespace
