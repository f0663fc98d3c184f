// out (n, d) = codes @ w. Threads take runs of rows; each row gathers its latents' rows of w.
#include "common/gather.h"
#include "spmm/registers.inl.h"

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
    if (codes.nnz > 0 && sums_in_registers<T>(w)) {
      const Scratch<T> zeros(d);
      if (!zeros.data) return failure(SK_NO_MEMORY);
      memset(zeros.data, 0, static_cast<size_t>(d) * sizeof(T));
      const Slots<T> slots{static_cast<const T*>(codes.values), codes.indices, codes.nnz,
                           static_cast<const T*>(w.data), w.stride, zeros.data};
      const bool far = w.rows * d * static_cast<int64_t>(sizeof(T)) > kNearBytes;
      parallel_runs(codes.n, 16, threads, [&](int, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          if (far) sum_row<true>(slots, row_begin(codes, r), row_end(codes, r), d, row_of<T>(out, r));
          else sum_row<false>(slots, row_begin(codes, r), row_end(codes, r), d, row_of<T>(out, r));
        }
      });
      return success();
    }
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
