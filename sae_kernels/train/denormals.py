"""Denormal numbers read and written as 0, on every thread that computes.

Adam's moments of a latent that has stopped firing shrink until they are denormal, and stay so: arithmetic on
them is many times slower. `torch.set_flush_denormal` reaches the calling thread alone, while most of the work
is done by OpenMP's workers; and where only some threads flush, bits depend on which one a row falls to.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Iterator
from typing import Any

import torch

_MXCSR = slice(28, 32)  # in glibc's fenv_t on x86-64, which is 32 bytes
_FLUSH = 0x8040  # flush results to zero, read denormals as zero


@contextlib.contextmanager
def flushed(threads: int) -> Iterator[None]:
    """Flush inside the block, on the calling thread and `threads` - 1 OpenMP workers; then as it was.

    Elsewhere than on x86-64 Linux, only the calling thread flushes.
    """
    native = _native() if sys.platform == "linux" and platform.machine() == "x86_64" else None
    if native is None:
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)
        return
    libc, parallel = native
    before = ctypes.create_string_buffer(32)
    libc.fegetenv(before)
    flushing = ctypes.create_string_buffer(before.raw, 32)
    control = int.from_bytes(before.raw[_MXCSR], "little") | _FLUSH
    flushing[_MXCSR] = control.to_bytes(4, "little")
    set_environment = ctypes.cast(libc.fesetenv, ctypes.c_void_p)
    parallel(set_environment, flushing, threads, 0)  # each thread of the team calls fesetenv(flushing)
    try:
        yield
    finally:
        parallel(set_environment, before, threads, 0)


def _native() -> tuple[Any, Any] | None:
    """glibc's floating-point environment, and the entry point of the OpenMP that torch loaded."""
    try:
        libc, parallel = ctypes.CDLL("libm.so.6"), ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError):  # musl, or a torch with another OpenMP
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return libc, parallel
