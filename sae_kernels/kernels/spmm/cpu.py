"""`spmm` in C++: threads take rows, each gathers its latents' rows of W. csrc/spmm."""

from __future__ import annotations

from torch import Tensor

from .. import _cpu


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(values, W)


def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
    """See `sae_kernels.kernels.spmm`."""
    codes = _cpu.Codes(values, indices, offsets, W.dtype)
    W = _cpu.matrix(W)
    out = _cpu.empty(codes.n, W.shape[1], dtype=W.dtype)
    args = (*codes.args, *_cpu.pointers(W), *_cpu.pointers(out))
    _cpu.call("spmm", _cpu.dtype_code(W), *args, codes=codes, limit=W.shape[0])
    return out
