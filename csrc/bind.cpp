// The module `sae_kernels._cpu`: instruction sets, the plugins' capsule, and the ops of bind_*.cpp.
#include "bind.h"
#include "denormals.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// Asks for 2 MiB pages under a large fresh buffer. Where the system gives them only on request, touching it page
// by page (4 KiB) can cost more than computing what goes into it.
void want_huge_pages(bind::address begin, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr bind::address page = 65536;  // a multiple of every system's
  const bind::address first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: may fail
#else
  (void)begin, (void)bytes;
#endif
}

}  // namespace

NB_MODULE(_cpu, m) {
  namespace nb = nanobind;
  m.doc() = "CPU kernels. Private: sae_kernels.kernels._cpu checks everything these functions are given.";
  m.def("isa", [] { return std::string(active_kernels().isa); }, "The instruction set in use; chosen on first use.");
  m.def("isas", &available_isas, "Instruction sets this machine can run, best first.");
  m.def("fast_bf16", &fast_bf16, "bfloat16 products run much faster here than float32 ones.");
  m.def("fast_int8", &fast_int8, "8-bit integer products run much faster here than float32 ones.");
  m.def("kernels_capsule", [] { return nb::capsule(&active_kernels(), SAE_KERNELS_CAPSULE); },
        "The table of kernels.h, for native plugins.");
  m.def("want_huge_pages", &want_huge_pages, "Advice for a large fresh buffer, given as (address, bytes).");
  m.def("flush_denormals", &flush_denormals, nb::call_guard<nb::gil_scoped_release>(),
        "(flush, threads): denormals as zero on every thread of the team; returns the mode before.");
  bind::sparse_ops(m);
  bind::select_ops(m);
  bind::screen_ops(m);
  bind::few_ops(m);
  bind::integer_ops(m);
}
