"""`spmm_backward` in C++: slots sorted by latent, a row of grad read once for both gradients. csrc/spmm_backward."""

from __future__ import annotations

from torch import Tensor

from .. import _cpu


def why_not(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(grad, values, W)


def run(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> tuple[Tensor, Tensor]:
    """See `sae_kernels.kernels.spmm_backward`."""
    codes = _cpu.Codes(values, indices, offsets, grad.dtype)
    grad, W = _cpu.matrix(grad), _cpu.matrix(W, grad.dtype)
    d_values = _cpu.empty(*codes.shape, dtype=grad.dtype)
    dW = _cpu.empty(*W.shape, dtype=grad.dtype)
    args = (*_cpu.pointers(grad), *codes.args, *_cpu.pointers(W), d_values.data_ptr(), *_cpu.pointers(dW))
    _cpu.call("spmm_backward", _cpu.dtype_code(grad), *args, codes=codes, limit=W.shape[0])
    return d_values, dW
