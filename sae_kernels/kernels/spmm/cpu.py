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
    of_W = _cpu.pointers(W)
    m, d = of_W[1:3]
    out = _cpu.empty(codes.n, d, dtype=W.dtype)
    args = (*codes.args, *of_W, out.data_ptr(), codes.n, d, d)
    _cpu.call("spmm", _cpu.dtype_code(W), *args, codes=codes, limit=m)
    return out
