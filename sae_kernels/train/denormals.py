"""Denormal numbers read and written as 0, on every thread that computes.

Adam's moments of a latent that has stopped firing shrink until they are denormal, and stay so: arithmetic on
them is many times slower. `torch.set_flush_denormal` reaches the calling thread alone, while most of the work
is done by OpenMP's workers; and where only some threads flush, bits depend on which one a row falls to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..kernels import _cpu


@contextlib.contextmanager
def flushed(threads: int) -> Iterator[None]:
    """Flush inside the block, on the calling thread and `threads` - 1 OpenMP workers; then as it was.

    Without the C++ extension, only the calling thread flushes.
    """
    if not _cpu.available():
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)
        return
    before = _cpu.flush_denormals(True, threads)
    try:
        yield
    finally:
        _cpu.flush_denormals(before, threads)
