// Screening with bfloat16 products, under linear_topk, linear_threshold and linear_batch_topk.
#include "bind.h"

namespace bind {

namespace {

// (upper, lower, index, count, bound, computed, n, k, room)
sk_screened_topk screened_topk(address upper, address lower, address index, address count, address bound,
                               address computed, int64_t n, int64_t k, int64_t room) {
  return {at<int32_t>(upper), at<int32_t>(lower), at<int32_t>(index), at<int32_t>(count), at<int32_t>(bound),
          at<int64_t>(computed), n, k, room};
}

// (upper, lower, rows, index, bound, count, computed, keep, room)
sk_screened_batch screened_batch(address upper, address lower, address rows, address index, address bound,
                                 address count, address computed, int64_t keep, int64_t room) {
  return {at<int32_t>(upper), at<int32_t>(lower), at<int32_t>(rows), at<int32_t>(index), at<int32_t>(bound),
          at<int64_t>(count), at<int64_t>(computed), keep, room};
}

sk_norms norms(address x, address x_dropped, address W, address W_dropped) {
  return {at<const float>(x), at<const float>(x_dropped), at<const float>(W), at<const float>(W_dropped)};
}

void screened_batch_ops(nb::module_& m) {
  m.def("screened_batch_room",
        [](int64_t keep, int64_t cols) { return active_kernels().screened_batch_room(keep, cols); });
  m.def("screened_batch_fold", [](int dtype, address upper, address lower, address rows, address index, address bound,
                                  address count, address computed, int64_t keep, int64_t room, address scores,
                                  int64_t n, int64_t cols, int64_t stride, address x, int64_t x_rows, int64_t x_cols,
                                  int64_t x_stride, address W, int64_t W_rows, int64_t W_cols, int64_t W_stride,
                                  int64_t W_first, address x_norms, address x_dropped, address W_norms,
                                  address W_dropped, address bias,
                                  int64_t first_row, int64_t first, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screened_batch_fold(
          dtype, screened_batch(upper, lower, rows, index, bound, count, computed, keep, room),
          matrix(scores, n, cols, stride), matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride),
          W_first, norms(x_norms, x_dropped, W_norms, W_dropped), at<const float>(bias), first_row, first, threads);
    });
  });
  m.def("screened_batch_settle", [](int dtype, address upper, address lower, address rows, address index, address bound,
                                   address count, address computed, int64_t keep, int64_t room, address x,
                                   int64_t x_rows, int64_t x_cols, int64_t x_stride, address W, int64_t W_rows,
                                   int64_t W_cols, int64_t W_stride, int64_t W_first, address bias, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screened_batch_settle(dtype,
                                          screened_batch(upper, lower, rows, index, bound, count, computed, keep, room),
                                          matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride),
                                          W_first, at<const float>(bias), threads);
    });
  });
  m.def("screened_batch_finish", [](int dtype, address upper, address lower, address rows, address index,
                                    address bound, address count, address computed, int64_t keep, int64_t room,
                                    address x, int64_t x_rows, int64_t x_cols, int64_t x_stride, address W,
                                    int64_t W_rows, int64_t W_cols, int64_t W_stride, address bias, bool relu,
                                    address offsets, address values, address indices, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screened_batch_finish(
          dtype, screened_batch(upper, lower, rows, index, bound, count, computed, keep, room),
          matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride), at<const float>(bias), relu,
          at<int64_t>(offsets), at<void>(values), at<int32_t>(indices), threads);
    });
  });
}

}  // namespace

void screen_ops(nb::module_& m) {
  screened_batch_ops(m);
  m.def("screen_round", [](int dtype, address a, int64_t rows, int64_t cols, int64_t stride, address rounded,
                           address norms, address dropped, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screen_round(dtype, matrix(a, rows, cols, stride), at<void>(rounded), at<float>(norms),
                                  at<float>(dropped), threads);
    });
  });
  m.def("columns", [](int dtype, address a, int64_t rows, int64_t cols, int64_t stride, address out, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.columns(dtype, matrix(a, rows, cols, stride), at<void>(out), threads);
    });
  });
  m.def("screened_topk_room", [](int64_t k) { return active_kernels().screened_topk_room(k); });
  m.def("screened_topk_fold", [](int dtype, address upper, address lower, address index, address count, address bound,
                                 address computed, int64_t n, int64_t k, int64_t room, address scores, int64_t rows,
                                 int64_t cols, int64_t stride, address x, int64_t x_rows, int64_t x_cols, int64_t x_stride, address W,
                                 int64_t W_rows, int64_t W_cols, int64_t W_stride, int64_t W_first,
                                 address x_norms, address x_dropped, address W_norms, address W_dropped,
                                 address bias, address among, int64_t first, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screened_topk_fold(dtype, screened_topk(upper, lower, index, count, bound, computed, n, k, room),
                                        matrix(scores, rows, cols, stride), matrix(x, x_rows, x_cols, x_stride),
                                        matrix(W, W_rows, W_cols, W_stride), W_first,
                                        norms(x_norms, x_dropped, W_norms, W_dropped), at<const float>(bias),
                                        at<const uint8_t>(among), first, threads);
    });
  });
  m.def("screened_topk_settle", [](int dtype, address upper, address lower, address index, address count, address bound,
                                   address computed, int64_t n, int64_t k, int64_t room, address x,
                                   int64_t x_rows, int64_t x_cols, int64_t x_stride, address W, int64_t W_rows,
                                   int64_t W_cols, int64_t W_stride, int64_t W_first, address bias, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screened_topk_settle(dtype, screened_topk(upper, lower, index, count, bound, computed, n, k, room),
                                          matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride),
                                          W_first, at<const float>(bias), threads);
    });
  });
  m.def("screened_topk_finish", [](int dtype, address upper, address lower, address index, address count, address bound,
                                   address computed, int64_t n, int64_t k, int64_t room, address x, int64_t x_rows,
                                   int64_t x_cols,
                                   int64_t x_stride, address W, int64_t W_rows, int64_t W_cols, int64_t W_stride,
                                   address bias, bool relu, address values, address indices, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screened_topk_finish(dtype, screened_topk(upper, lower, index, count, bound, computed, n, k, room),
                                          matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride),
                                          at<const float>(bias), relu, at<void>(values), at<int32_t>(indices), threads);
    });
  });
  m.def("screened_threshold_count", [](address scores, int64_t rows, int64_t cols, int64_t stride, int64_t d,
                                       address x_norms, address x_dropped, address W_norms, address W_dropped,
                                       address bias, address theta, int64_t theta_step, address counts, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screened_threshold_count(matrix(scores, rows, cols, stride), d,
                                              norms(x_norms, x_dropped, W_norms, W_dropped), at<const float>(bias),
                                              at<const float>(theta), theta_step, at<int64_t>(counts), threads);
    });
  });
  m.def("screened_threshold_fill", [](int dtype, address scores, int64_t rows, int64_t cols, int64_t stride, address x,
                                      int64_t x_rows, int64_t x_cols, int64_t x_stride, address W, int64_t W_rows,
                                      int64_t W_cols, int64_t W_stride, int64_t W_first, address x_norms,
                                      address x_dropped, address W_norms, address W_dropped, address bias, address theta,
                                      int64_t theta_step, int64_t first, address starts, address counts, address values,
                                      address indices, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.screened_threshold_fill(
          dtype, matrix(scores, rows, cols, stride), matrix(x, x_rows, x_cols, x_stride),
          matrix(W, W_rows, W_cols, W_stride), W_first, norms(x_norms, x_dropped, W_norms, W_dropped),
          at<const float>(bias), at<const float>(theta), theta_step, first, at<const int64_t>(starts),
          at<int64_t>(counts), at<void>(values),
          at<int32_t>(indices), threads);
    });
  });
}

}  // namespace bind
