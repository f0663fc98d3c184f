// out (n, d) = codes @ w. Threads take runs of rows; each row gathers its latents' rows of w.
#include "common/gather.h"

namespace {

template <class T>
struct SpmmSource {
  const sk_codes& codes;
  const sk_matrix& w;
  const sk_output& out;
  int64_t row, end_row, slot;

  bool next(Segment<T>& s) {
    if (row >= end_row) return false;
    const int64_t begin = row_begin(codes, row), end = row_end(codes, row);
    if (slot < begin) slot = begin;
    s.start(row_of<T>(out, row), slot == begin);
    const int64_t stop = slot + kSlots < end ? slot + kSlots : end;
    s.add_all(static_cast<const T*>(codes.values), codes.indices, slot, stop, w);
    slot = stop;
    s.last = slot == end;
    if (s.last) ++row;
    return true;
  }
};

sk_status spmm(int32_t dtype, sk_codes codes, sk_matrix w, sk_output out, int32_t threads) {
  const sk_status status = check_codes(codes, w.rows);
  if (status.code) return status;
  if (out.rows != codes.n || out.cols != w.cols) return failure(SK_BAD_SIZE);
  const int64_t d = w.cols, pitch = (d + 15) / 16 * 16;
  if (d == 0) return success();
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const Scratch<float> acc(pitch * (threads > 1 ? threads : 1));
    if (!acc.data) return failure(SK_NO_MEMORY);
    parallel_runs(codes.n, 16, threads, [&](int thread, int64_t begin, int64_t end) {
      SpmmSource<T> source{codes, w, out, begin, end, -1};
      sum_segments<T, T>(source, w, acc.data + thread * pitch);
    });
    return success();
  });
}

}  // namespace
