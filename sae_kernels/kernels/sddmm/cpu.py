"""`sddmm` in C++: each row of A against its latents' rows of B, four at a time. csrc/sddmm."""

from __future__ import annotations

from torch import Tensor

from .. import _cpu


def why_not(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(A, B, gate)


def run(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> Tensor:
    """See `sae_kernels.kernels.sddmm`."""
    codes = _cpu.Codes(gate, indices, offsets, A.dtype)
    A, B = _cpu.matrix(A), _cpu.matrix(B, A.dtype)
    out = _cpu.empty(*codes.shape, dtype=A.dtype)
    args = (*_cpu.pointers(A), *_cpu.pointers(B), *codes.args, out.data_ptr())
    _cpu.call("sddmm", _cpu.dtype_code(A), *args, codes=codes, limit=B.shape[0])
    return out
