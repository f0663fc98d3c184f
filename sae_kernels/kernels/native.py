"""For native plugins: the C ABI of the CPU kernels, without libtorch and without nanobind.

A plugin compiled with pybind11, say, includes `sae_kernels/kernels.h` from `get_include()`, takes the capsule, and
calls the kernels of the instruction set in use through one versioned table of pointers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BackendError
from . import _cpu


def get_include() -> str:
    """The directory to pass to the compiler with -I; `#include <sae_kernels/kernels.h>`.

    Raises:
        BackendError: neither an installed header nor a source tree is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "include", package.parent / "csrc" / "include"):  # installed; a source tree
        if (folder / "sae_kernels" / "kernels.h").is_file():
            return str(folder)
    raise BackendError(f"no sae_kernels/kernels.h in {package / 'include'}: reinstall sae-kernels from source")


def kernels_capsule() -> Any:
    """A PyCapsule named "sae_kernels.kernels.v1" around a `const sk_kernels *` that lives as long as the process.

    Raises:
        BackendError: the extension is not built, with the reason.
    """
    return _cpu.ask("kernels_capsule")
