"""`spmm_t` in C++: slots are sorted by latent, then threads own latents. csrc/spmm_t."""

from __future__ import annotations

from torch import Tensor

from .. import _cpu


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(values, X)


def run(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> Tensor:
    """See `sae_kernels.kernels.spmm_t`."""
    codes = _cpu.Codes(values, indices, offsets, X.dtype)
    X = _cpu.matrix(X)
    out = _cpu.empty(d_sae, X.shape[1], dtype=X.dtype)
    args = (*codes.args, *_cpu.pointers(X), *_cpu.pointers(out))
    _cpu.call("spmm_t", _cpu.dtype_code(X), *args, codes=codes, limit=d_sae)
    return out
