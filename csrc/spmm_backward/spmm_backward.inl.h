// Both gradients of out = codes @ w at once, latent by latent: d_values[slot] = g[row] . w[latent], 0 at empty slots,
// and dw (m, d) = codes^T @ g. A row of g is read once for both; bits are those of sddmm and spmm_t.
#include "transpose/by_latent.inl.h"

namespace {

constexpr int kBackwardRows = 4;  // read side by side: two sums for dw, and two for each row's dot product

// dw = (Init ? 0 : acc) + sum of R weighted rows, and their dot products with w; prefetches the R rows at `next`,
// unless that is null.
template <int R, bool Init, class T, class Out>
inline void add_and_dot(const T* const* rows, const float* weights, const T* w, int64_t d, const float* acc, Out* dw,
                        float* dots, const T* const* next) {
  constexpr int kLine = 64 / sizeof(T), kStep = kLine > kPair ? kLine : kPair;
  const T* row[R];
  vf weight[R], even[R], odd[R];
  SK_UNROLL
  for (int r = 0; r < R; ++r) {
    row[r] = rows[r];
    weight[r] = splat(weights[r]);
    even[r] = odd[r] = vf{};
  }
  int64_t i = 0;
  for (; i + kPair <= d; i += kPair) {
    if (next && i % kStep == 0)
      for (int line = 0; line < kStep; line += kLine)
        for (int r = 0; r < R; ++r) prefetch(next[r] + i + line);
    const Pair left = load_pair(w + i);
    Pair s{};
    if (!Init) s = load_pair(acc + i);
    SK_UNROLL
    for (int r = 0; r < R; ++r) {
      const Pair x = load_pair(row[r] + i);
      s.a = fma(weight[r], x.a, s.a);
      s.b = fma(weight[r], x.b, s.b);
      even[r] = fma(x.a, left.a, even[r]);
      odd[r] = fma(x.b, left.b, odd[r]);
    }
    store_pair(dw + i, s);
  }
  for (; i < d; i += kLanes) {
    const int n = d - i < kLanes ? static_cast<int>(d - i) : kLanes;
    const vf left = load_n(w + i, n);
    vf s = Init ? vf{} : load_n(acc + i, n);
    SK_UNROLL
    for (int r = 0; r < R; ++r) {
      const vf x = load_n(row[r] + i, n);
      s = fma(weight[r], x, s);
      even[r] = fma(x, left, even[r]);
    }
    store_n(dw + i, s, n);
  }
  SK_UNROLL
  for (int r = 0; r < R; ++r) dots[r] = sum(even[r] + odd[r]);
}

template <bool Init, class T, class Out>
inline void add_and_dot_group(int count, const T* const* rows, const float* weights, const T* w, int64_t d,
                              const float* acc, Out* dw, float* dots, const T* const* next) {
  switch (count) {
    case 0: return add_rows<0, Init>(rows, weights, d, acc, dw, next);
    case 1: return add_and_dot<1, Init>(rows, weights, w, d, acc, dw, dots, next);
    case 2: return add_and_dot<2, Init>(rows, weights, w, d, acc, dw, dots, next);
    default: return add_and_dot<kBackwardRows, Init>(rows, weights, w, d, acc, dw, dots, next);
  }
}

template <class T, class Out>
inline void backward_segment(const LatentSegment<T>& now, const LatentSegment<T>* then, const sk_matrix& w, float* acc,
                             bool ahead, T* d_values) {
  const T* left = row_of<T>(w, now.latent);
  float dots[kBackwardRows];
  int at = 0;
  do {
    const int more = now.count - at, count = more >= kBackwardRows ? kBackwardRows : more >= 2 ? 2 : more;
    const T* const* next = nullptr;
    if (ahead && more - count >= count) next = now.row + at + count;
    else if (ahead && then && more == count && then->count >= count) next = then->row;
    const bool init = now.first && at == 0, done = now.last && more == count;
    const T* const* rows = now.row + at;
    const float* weights = now.weight + at;
    Out* dw = static_cast<Out*>(now.out);
    if (init && done) add_and_dot_group<true>(count, rows, weights, left, w.cols, acc, dw, dots, next);
    else if (init) add_and_dot_group<true>(count, rows, weights, left, w.cols, acc, acc, dots, next);
    else if (done) add_and_dot_group<false>(count, rows, weights, left, w.cols, acc, dw, dots, next);
    else add_and_dot_group<false>(count, rows, weights, left, w.cols, acc, acc, dots, next);
    for (int r = 0; r < count; ++r) d_values[now.slot[at + r]] = from_float<T>(dots[r]);
    at += count;
  } while (at < now.count);
}

template <class T>
sk_status spmm_backward_of(const sk_matrix& g, const sk_codes& codes, const sk_matrix& w, T* d_values,
                           const sk_output& dw, int threads) {
  const int64_t pitch = (w.cols + 15) / 16 * 16;
  const ByLatent sorted(codes, w.rows);
  const Scratch<float> acc(pitch * (threads > 1 ? threads : 1));
  if (!acc.data || !sorted.sort(codes, threads)) return failure(SK_NO_MEMORY);
  return sum_by_latent<T>(sorted, dw, pitch, threads, [&](auto element, int thread, const auto& next_run) {
    const auto skip = [&](int64_t slot) { d_values[slot] = T{}; };
    auto source = run_source<T>(codes, g, sorted, next_run, skip);
    each_segment<LatentSegment<T>>(source, [&](LatentSegment<T>& now, const LatentSegment<T>* then) {
      backward_segment<T, decltype(element)>(now, then, w, acc.data + thread * pitch, true, d_values);
    });
  });
}

sk_status spmm_backward(int32_t dtype, sk_matrix g, sk_codes codes, sk_matrix w, void* d_values, sk_output dw,
                        int32_t threads) {
  const sk_status status = check_codes(codes, w.rows);
  if (status.code) return status;
  if (g.rows != codes.n || g.cols != w.cols || dw.rows != w.rows || dw.cols != w.cols || codes.n > INT32_MAX)
    return failure(SK_BAD_SIZE);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    return spmm_backward_of<T>(g, codes, w, static_cast<T*>(d_values), dw, threads);
  });
}

}  // namespace
