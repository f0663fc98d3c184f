// Screening by products of integers.
#include "bind.h"

namespace bind {

namespace {

sk_screened_topk state(address upper, address lower, address index, address count, address bound, address computed,
                       int64_t n, int64_t k, int64_t room) {
  return {at<int32_t>(upper), at<int32_t>(lower), at<int32_t>(index), at<int32_t>(count), at<int32_t>(bound),
          at<int64_t>(computed), n, k, room};
}

// numbers (4, n): scale, norm, rest, unseen.
sk_integer_tokens tokens(address packed, address numbers, address starts, int64_t n) {
  const float* scale = at<const float>(numbers);
  return {at<const void>(packed), scale, scale + n, scale + 2 * n, scale + 3 * n, at<const int32_t>(starts), n};
}

// numbers (5, padded): scale, offset, norm, spread, rest.
sk_integer_latents latents(address packed, address numbers, int64_t padded, int64_t first, int64_t count) {
  const float* scale = at<const float>(numbers);
  return {at<const void>(packed), scale,          scale + padded, scale + 2 * padded, scale + 3 * padded,
          scale + 4 * padded,     first,          count};
}

}  // namespace

void integer_ops(nb::module_& m) {
  m.def("integer_width", [](int bits, int64_t d) { return active_kernels().integer_width(bits, d); });
  m.def("integer_latents", [](int dtype, int bits, address a, int64_t rows, int64_t cols, int64_t stride,
                              address packed, address numbers, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.integer_latents(dtype, bits, matrix(a, rows, cols, stride), at<uint8_t>(packed),
                                     at<float>(numbers), threads);
    });
  });
  m.def("integer_tokens", [](int dtype, int bits, address a, int64_t rows, int64_t cols, int64_t stride,
                             address packed, address numbers, address starts, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.integer_tokens(dtype, bits, matrix(a, rows, cols, stride), at<uint8_t>(packed),
                                    at<float>(numbers), at<int32_t>(starts), threads);
    });
  });
  m.def("integer_scores", [](int bits, address x_packed, address x_numbers, address starts, int64_t x_count,
                             address W_packed, address W_numbers, int64_t padded, int64_t first, int64_t W_count,
                             int64_t d, address out, int64_t rows, int64_t cols, int64_t stride, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.integer_scores(bits, tokens(x_packed, x_numbers, starts, x_count),
                                    latents(W_packed, W_numbers, padded, first, W_count), d,
                                    output(out, rows, cols, stride), threads);
    });
  });
  m.def("integer_topk_fold", [](int dtype, int bits, address upper, address lower, address index, address count,
                                address bound, address computed, int64_t n, int64_t k, int64_t room, int64_t parts,
                                address x_packed, address x_numbers, address starts, int64_t x_count,
                                address W_packed, address W_numbers, int64_t padded, int64_t first, int64_t W_count,
                                address x, int64_t x_rows, int64_t x_cols, int64_t x_stride, address W,
                                int64_t W_rows, int64_t W_cols, int64_t W_stride, address bias, address among,
                                float widths, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.integer_topk_fold(
          dtype, bits, state(upper, lower, index, count, bound, computed, n, k, room), parts,
          tokens(x_packed, x_numbers, starts, x_count), latents(W_packed, W_numbers, padded, first, W_count),
          matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride), at<const float>(bias),
          at<const uint8_t>(among), widths, threads);
    });
  });
  m.def("integer_topk_finish", [](int dtype, address upper, address lower, address index, address count,
                                  address bound, address computed, int64_t n, int64_t k, int64_t room, int64_t parts,
                                  address x, int64_t x_rows, int64_t x_cols, int64_t x_stride, address W,
                                  int64_t W_rows, int64_t W_cols, int64_t W_stride, address bias, bool relu,
                                  address values, address indices, address failed, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.integer_topk_finish(dtype, state(upper, lower, index, count, bound, computed, n, k, room), parts,
                                         matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride),
                                         at<const float>(bias), relu, at<void>(values), at<int32_t>(indices),
                                         at<uint8_t>(failed), threads);
    });
  });
}

}  // namespace bind
