// Encodes of a few tokens, each in one call.
#include "bind.h"

namespace bind {

namespace {

// As `run`; a call that has something to tell (kernels.h: a status' position) is no failure, but no None either.
template <class Call>
nb::object tell(const Call& call) {
  sk_status status;
  {
    nb::gil_scoped_release released;
    status = call(active_kernels());
  }
  if (status.code == SK_OK && status.position == 0) return nb::none();
  return nb::make_tuple(status.code, status.position, status.value);
}

sk_rounded rounded(address rows, address norms, address dropped, bool dots) {
  return {at<const void>(rows), at<const float>(norms), at<const float>(dropped), dots};
}

}  // namespace

void few_ops(nb::module_& m) {
  m.def("few_topk", [](int dtype, address x, int64_t x_rows, int64_t x_cols, int64_t x_stride, address W, int64_t W_rows,
                       int64_t W_cols, int64_t W_stride, address bias, address copy, address norms, address dropped,
                       bool dots, int64_t k, bool relu, address among, address values, address indices, int threads) {
    return tell([&](const sk_kernels& kernels) {
      const sk_selection selection{k, at<const uint8_t>(among), at<void>(values), at<int32_t>(indices), relu};
      return kernels.few_topk(dtype, matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride),
                              at<const void>(bias), rounded(copy, norms, dropped, dots), &selection, 1, threads);
    });
  });
  m.def("few_threshold", [](int dtype, address x, int64_t x_rows, int64_t x_cols, int64_t x_stride, address W,
                            int64_t W_rows, int64_t W_cols, int64_t W_stride, address bias, address copy, address norms,
                            address dropped, bool dots, address theta, int64_t theta_step, int64_t room, address offsets,
                            address values, address indices, int threads) {
    return tell([&](const sk_kernels& kernels) {
      return kernels.few_threshold(dtype, matrix(x, x_rows, x_cols, x_stride), matrix(W, W_rows, W_cols, W_stride),
                                   at<const void>(bias), rounded(copy, norms, dropped, dots), at<const float>(theta),
                                   theta_step, room, at<int64_t>(offsets), at<void>(values), at<int32_t>(indices),
                                   threads);
    });
  });
  m.def("screen_differs", [](int dtype, address a, int64_t rows, int64_t cols, int64_t stride, address copy,
                             int64_t first_row, int64_t step, int64_t first_col, int threads) {
    return tell([&](const sk_kernels& kernels) {
      return kernels.screen_differs(dtype, matrix(a, rows, cols, stride), at<const void>(copy), first_row, step,
                                    first_col, threads);
    });
  });
}

}  // namespace bind
