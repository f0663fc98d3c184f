"""`spmm_backward` as GEMMs: `sddmm`, then `spmm_t`.

What it does not share with the sparse kernels: see `_dense`.
"""

from __future__ import annotations

from torch import Tensor

from ..sddmm import dense as sddmm
from ..spmm_t import dense as spmm_t


def why_not(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
    """None, or why PyTorch's GEMM is not used."""
    return sddmm.why_not(grad, W, indices, offsets, values) or spmm_t.why_not(
        values, indices, offsets, grad, W.shape[0]
    )


def run(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> tuple[Tensor, Tensor]:
    """See `sae_kernels.kernels.spmm_backward`."""
    d_values = sddmm.run(grad, W, indices, offsets, values)
    return d_values, spmm_t.run(values, indices, offsets, grad, W.shape[0])
