// Ops that select: topk, and the folds under linear_topk, linear_threshold and linear_batch_topk.
#include "bind.h"

namespace bind {

namespace {

// (keys, index, count, bound, n, k)
sk_running_topk running_topk(address keys, address index, address count, address bound, int64_t n, int64_t k) {
  return {at<int32_t>(keys), at<int32_t>(index), at<int32_t>(count), at<int32_t>(bound), n, k};
}

// (keys, rows, index, bound, count, keep, room)
sk_batch_topk batch_topk(address keys, address rows, address index, address bound, address count, int64_t keep,
                         int64_t room) {
  return {at<int32_t>(keys), at<int32_t>(rows), at<int32_t>(index), at<int32_t>(bound), at<int64_t>(count), keep, room};
}

void running_topk_ops(nb::module_& m) {
  m.def("running_topk_room", [](int64_t k) { return active_kernels().running_topk_room(k); });
  m.def("running_topk_fold", [](address keys, address index, address count, address bound, int64_t n, int64_t k,
                                address scores, int64_t rows, int64_t cols, int64_t stride, address bias,
                                address among, int64_t first, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.running_topk_fold(running_topk(keys, index, count, bound, n, k), matrix(scores, rows, cols, stride),
                                       at<const float>(bias), at<const uint8_t>(among), first, threads);
    });
  });
  m.def("running_topk_finish", [](int dtype, address keys, address index, address count, address bound, int64_t n,
                                  int64_t k, bool relu, address values, address indices, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.running_topk_finish(dtype, running_topk(keys, index, count, bound, n, k), relu, at<void>(values),
                                         at<int32_t>(indices), threads);
    });
  });
}

void threshold_ops(nb::module_& m) {
  m.def("threshold_count", [](address scores, int64_t rows, int64_t cols, int64_t stride, address bias, address theta,
                              int64_t theta_step, address counts, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.threshold_count(matrix(scores, rows, cols, stride), at<const float>(bias), at<const float>(theta),
                                     theta_step, at<int64_t>(counts), threads);
    });
  });
  m.def("threshold_fill", [](int dtype, address scores, int64_t rows, int64_t cols, int64_t stride, address bias,
                             address theta, int64_t theta_step, int64_t first, address starts, address values,
                             address indices, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.threshold_fill(dtype, matrix(scores, rows, cols, stride), at<const float>(bias),
                                    at<const float>(theta), theta_step, first, at<const int64_t>(starts),
                                    at<void>(values), at<int32_t>(indices), threads);
    });
  });
  m.def("place_rows", [](int dtype, int64_t rows, address counts, address from, address values, address indices,
                         address to, address out_values, address out_indices, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.place_rows(dtype, rows, at<const int64_t>(counts), at<const int64_t>(from),
                                at<const void>(values), at<const int32_t>(indices), at<const int64_t>(to),
                                at<void>(out_values), at<int32_t>(out_indices), threads);
    });
  });
}

void batch_topk_ops(nb::module_& m) {
  m.def("batch_topk_room", [](int64_t keep, int64_t cols) { return active_kernels().batch_topk_room(keep, cols); });
  m.def("batch_topk_fold", [](address keys, address rows, address index, address bound, address count, int64_t keep,
                              int64_t room, address scores, int64_t n, int64_t cols, int64_t stride, address bias,
                              int64_t first_row, int64_t first, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.batch_topk_fold(batch_topk(keys, rows, index, bound, count, keep, room),
                                     matrix(scores, n, cols, stride), at<const float>(bias), first_row, first, threads);
    });
  });
  m.def("batch_topk_finish", [](int dtype, address keys, address rows, address index, address bound, address count,
                                int64_t keep, int64_t room, int64_t n, bool relu, address offsets, address values,
                                address indices, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.batch_topk_finish(dtype, batch_topk(keys, rows, index, bound, count, keep, room), n, relu,
                                       at<int64_t>(offsets), at<void>(values), at<int32_t>(indices), threads);
    });
  });
}

}  // namespace

void select_ops(nb::module_& m) {
  m.def("topk", [](int dtype, address scores, int64_t rows, int64_t cols, int64_t stride, int64_t k, address values,
                   address indices, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.topk(dtype, matrix(scores, rows, cols, stride), k, at<void>(values), at<int32_t>(indices), threads);
    });
  });
  running_topk_ops(m);
  threshold_ops(m);
  batch_topk_ops(m);
}

}  // namespace bind
