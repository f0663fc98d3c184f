// A native plugin: calls sae_kernels' C++ kernels through the table of kernels.h.
//
// It times every call, which the core does not: `spmm` here is the core's own kernel between two clock reads, the
// smallest thing that shows how a plugin of your own would call, replace or wrap one.
#include <pybind11/pybind11.h>
#include <sae_kernels/kernels.h>

#include <chrono>
#include <cstdint>
#include <stdexcept>

namespace py = pybind11;

namespace {

const sk_kernels* table = nullptr;

void connect(const py::capsule& capsule) {
  const auto* found = static_cast<const sk_kernels*>(PyCapsule_GetPointer(capsule.ptr(), SAE_KERNELS_CAPSULE));
  if (!found) throw py::error_already_set();
  if (found->abi != SAE_KERNELS_ABI || SK_LACKS(found, spmm))
    throw std::runtime_error("this sae-kernels has another kernel table; rebuild sae-kernels-native-spmm against it");
  table = found;
}

// float32, contiguous. Addresses are 0 for None. Returns seconds; raises IndexError for an index out of range.
double spmm(uintptr_t values, uintptr_t indices, uintptr_t offsets, int64_t n, int64_t k, int64_t nnz, uintptr_t w,
            int64_t latents, int64_t d, uintptr_t out, int32_t threads) {
  const sk_codes codes{reinterpret_cast<const void*>(values), reinterpret_cast<const int32_t*>(indices),
                       reinterpret_cast<const int64_t*>(offsets), n, k, nnz};
  const sk_matrix weights{reinterpret_cast<const void*>(w), latents, d, d};
  const sk_output result{reinterpret_cast<void*>(out), n, d, d};
  sk_status status;
  double seconds;
  {
    py::gil_scoped_release released;
    const auto start = std::chrono::steady_clock::now();
    status = table->spmm(SK_F32, codes, weights, result, threads);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  if (status.code == SK_BAD_INDEX || status.code == SK_BAD_OFFSET)
    throw py::index_error("slot " + std::to_string(status.position) + " holds " + std::to_string(status.value));
  if (status.code != SK_OK) throw std::runtime_error("spmm failed with status " + std::to_string(status.code));
  return seconds;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.def("connect", &connect);
  m.def("spmm", &spmm);
}
