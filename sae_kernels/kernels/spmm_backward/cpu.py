"""`spmm_backward` in C++: `sddmm`, then `spmm_t`."""

from __future__ import annotations

from torch import Tensor

from .. import _cpu
from ..sddmm import cpu as sddmm
from ..spmm_t import cpu as spmm_t


def why_not(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
    """None, or why the C++ kernels decline."""
    return _cpu.why_not(grad, values, W)


def run(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> tuple[Tensor, Tensor]:
    """See `sae_kernels.kernels.spmm_backward`."""
    d_values = sddmm.run(grad, W, indices, offsets, values)
    return d_values, spmm_t.run(values, indices, offsets, grad, W.shape[0])
