// out (m, d) = codes^T @ x: slots are sorted by latent, each latent sums the rows of x that use it.
#include "transpose/by_latent.inl.h"

namespace {

template <class T>
sk_status spmm_t_of(const sk_codes& codes, const sk_matrix& x, const sk_output& out, int threads) {
  const int64_t pitch = (x.cols + 15) / 16 * 16;
  const ByLatent sorted(codes, out.rows);
  const Scratch<float> acc(pitch * (threads > 1 ? threads : 1));
  if (!acc.data || !sorted.sort(codes, threads)) return failure(SK_NO_MEMORY);
  return sum_by_latent<T>(sorted, out, pitch, threads, [&](auto element, int thread, const auto& next_run) {
    const auto skip = [](int64_t) {};
    auto source = run_source<T>(codes, x, sorted, next_run, skip);
    sum_segments<T, decltype(element), LatentSegment<T>>(source, x, acc.data + thread * pitch);
  });
}

sk_status spmm_t(int32_t dtype, sk_codes codes, sk_matrix x, sk_output out, int32_t threads) {
  const sk_status status = check_codes(codes, out.rows);
  if (status.code) return status;
  if (x.rows != codes.n || out.cols != x.cols || codes.n > INT32_MAX) return failure(SK_BAD_SIZE);
  if (out.cols == 0 || out.rows == 0) return success();
  return for_dtype(dtype, [&](auto type) { return spmm_t_of<decltype(type)>(codes, x, out, threads); });
}

}  // namespace
