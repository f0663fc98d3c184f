// Ops on sparse codes.
#include "bind.h"

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
}

}  // namespace bind
