// Ops on sparse codes, and the optimiser's. Arguments are the fields of kernels.h' structs, flattened in order.
#include "bind.h"

#include <nanobind/stl/vector.h>

namespace bind {

void sparse_ops(nb::module_& m) {
  m.def("spmm", [](int dtype, address values, address indices, address offsets, int64_t n, int64_t k, int64_t nnz,
                   address w, int64_t w_rows, int64_t w_cols, int64_t w_stride,
                   address out, int64_t out_rows, int64_t out_cols, int64_t out_stride, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.spmm(dtype, codes(values, indices, offsets, n, k, nnz), matrix(w, w_rows, w_cols, w_stride),
                          output(out, out_rows, out_cols, out_stride), threads);
    });
  });

  m.def("spmm_t", [](int dtype, address values, address indices, address offsets, int64_t n, int64_t k, int64_t nnz,
                     address x, int64_t x_rows, int64_t x_cols, int64_t x_stride,
                     address out, int64_t out_rows, int64_t out_cols, int64_t out_stride, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.spmm_t(dtype, codes(values, indices, offsets, n, k, nnz), matrix(x, x_rows, x_cols, x_stride),
                            output(out, out_rows, out_cols, out_stride), threads);
    });
  });

  // codes.values is the gate, or 0
  m.def("sddmm", [](int dtype, address a, int64_t a_rows, int64_t a_cols, int64_t a_stride,
                    address b, int64_t b_rows, int64_t b_cols, int64_t b_stride,
                    address gate, address indices, address offsets, int64_t n, int64_t k, int64_t nnz, address out,
                    int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.sddmm(dtype, matrix(a, a_rows, a_cols, a_stride), matrix(b, b_rows, b_cols, b_stride),
                           codes(0, indices, offsets, n, k, nnz), at<const void>(gate), at<void>(out), threads);
    });
  });

  m.def("spmm_backward", [](int dtype, address g, int64_t g_rows, int64_t g_cols, int64_t g_stride,
                            address values, address indices, address offsets, int64_t n, int64_t k, int64_t nnz,
                            address w, int64_t w_rows, int64_t w_cols, int64_t w_stride, address d_values,
                            address dw, int64_t dw_rows, int64_t dw_cols, int64_t dw_stride, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.spmm_backward(dtype, matrix(g, g_rows, g_cols, g_stride),
                                   codes(values, indices, offsets, n, k, nnz), matrix(w, w_rows, w_cols, w_stride),
                                   at<void>(d_values), output(dw, dw_rows, dw_cols, dw_stride), threads);
    });
  });

  m.def("transpose", [](address values, address indices, address offsets, int64_t n, int64_t k, int64_t nnz,
                        int64_t d_sae, address latent_offsets, address order, address rows, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.transpose(codes(values, indices, offsets, n, k, nnz), d_sae, at<int64_t>(latent_offsets),
                               at<int64_t>(order), at<int32_t>(rows), threads);
    });
  });

  m.def("prefix_decode", [](int dtype, address values, address indices, address offsets, int64_t n, int64_t k,
                            int64_t nnz, address w, int64_t w_rows, int64_t w_cols, int64_t w_stride,
                            address out, int64_t out_rows, int64_t out_cols, int64_t out_stride,
                            const std::vector<int64_t>& prefixes, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.prefix_decode(dtype, codes(values, indices, offsets, n, k, nnz),
                                   matrix(w, w_rows, w_cols, w_stride), prefixes.data(),
                                   static_cast<int64_t>(prefixes.size()),
                                   output(out, out_rows, out_cols, out_stride), threads);
    });
  });

  // param, its stride, and those of the two moments and the gradient; all have d columns
  m.def("adam_rows", [](int dtype, int64_t rows_total, int64_t d, address param, int64_t param_stride,
                        address exp_avg, int64_t exp_avg_stride, address exp_avg_sq, int64_t exp_avg_sq_stride,
                        address grad, int64_t grad_rows, int64_t grad_stride, address rows, int64_t row_count,
                        address last_step, address lrs, int64_t lr_count, int64_t step, double beta1, double beta2,
                        double eps, bool unit_norm, bool remove_parallel, int threads) {
    const sk_adam job{output(param, rows_total, d, param_stride),
                      output(exp_avg, rows_total, d, exp_avg_stride),
                      output(exp_avg_sq, rows_total, d, exp_avg_sq_stride),
                      matrix(grad, grad_rows, d, grad_stride),
                      at<const int32_t>(rows),
                      at<int64_t>(last_step),
                      at<const double>(lrs),
                      row_count,
                      lr_count,
                      step,
                      beta1,
                      beta2,
                      eps,
                      unit_norm,
                      remove_parallel};
    return run([&](const sk_kernels& kernels) { return kernels.adam_rows(dtype, &job, threads); });
  });

  m.def("latent_topn", [](int dtype, address values, address indices, address offsets, int64_t n, int64_t k,
                          int64_t nnz, address best_values, address best_tokens, int64_t d_sae, int64_t best,
                          int64_t first_token, int threads) {
    return run([&](const sk_kernels& kernels) {
      return kernels.latent_topn(dtype, codes(values, indices, offsets, n, k, nnz), d_sae, best,
                                 at<float>(best_values), at<int64_t>(best_tokens), first_token, threads);
    });
  });
}

}  // namespace bind
