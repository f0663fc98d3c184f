"""Peak memory of a call, as the kernel of the operating system counts it: torch's tensors and everybody's scratch."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
from collections.abc import Callable
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_extra_mib(call: Callable[[], object]) -> float | None:
    """How far a call raises the memory of this process above what it had before (MiB); None where the system does not
    tell, which is everywhere but on Linux. What earlier calls left with the allocator is given back first."""
    gc.collect()
    if (libc := ctypes.util.find_library("c")) and hasattr(trim := ctypes.CDLL(libc), "malloc_trim"):
        trim.malloc_trim(0)
    try:
        _CLEAR.write_text("5")  # the high-water mark starts again from here
        before = _kib("VmRSS")
        call()
        return (_kib("VmHWM") - before) / 1024
    except OSError:
        return None


def _kib(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} has no {name}")
