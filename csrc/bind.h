// What the bind*.cpp files share: addresses as integers, statuses as None or (code, position, value).
#pragma once
#include <nanobind/nanobind.h>

#include "dispatch.h"

namespace bind {

namespace nb = nanobind;
using address = uintptr_t;  // Tensor.data_ptr(), checked in sae_kernels/kernels/_cpu.py; 0 is null

template <class T>
T* at(address a) {
  return reinterpret_cast<T*>(a);
}

// (address, rows, cols, row stride) and (values, indices, offsets, n, k, nnz), as _cpu.py flattens them.
inline sk_matrix matrix(address a, int64_t rows, int64_t cols, int64_t stride) {
  return {at<const void>(a), rows, cols, stride};
}
inline sk_output output(address a, int64_t rows, int64_t cols, int64_t stride) {
  return {at<void>(a), rows, cols, stride};
}
inline sk_codes codes(address values, address indices, address offsets, int64_t n, int64_t k, int64_t nnz) {
  return {at<const void>(values), at<const int32_t>(indices), at<const int64_t>(offsets), n, k, nnz};
}

// Runs call(kernels) without the GIL.
template <class Call>
nb::object run(const Call& call) {
  sk_status status;
  {
    nb::gil_scoped_release released;
    status = call(active_kernels());
  }
  if (status.code == SK_OK) return nb::none();
  return nb::make_tuple(status.code, status.position, status.value);
}

void sparse_ops(nb::module_& m);  // bind_sparse.cpp
void select_ops(nb::module_& m);  // bind_select.cpp
void screen_ops(nb::module_& m);  // bind_screen.cpp
void few_ops(nb::module_& m);     // bind_few.cpp
void integer_ops(nb::module_& m);    // bind_integer.cpp

}  // namespace bind
