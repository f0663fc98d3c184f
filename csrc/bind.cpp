// The module `sae_kernels._cpu`: instruction sets, the plugins' capsule, and the ops of bind_*.cpp.
#include "bind.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

NB_MODULE(_cpu, m) {
  namespace nb = nanobind;
  m.doc() = "CPU kernels. Private: sae_kernels.kernels._cpu checks everything these functions are given.";
  m.def("isa", [] { return std::string(active_kernels().isa); }, "The instruction set in use; chosen on first use.");
  m.def("isas", &available_isas, "Instruction sets this machine can run, best first.");
  m.def("kernels_capsule", [] { return nb::capsule(&active_kernels(), SAE_KERNELS_CAPSULE); },
        "The table of kernels.h, for native plugins.");
  bind::sparse_ops(m);
  bind::select_ops(m);
}
