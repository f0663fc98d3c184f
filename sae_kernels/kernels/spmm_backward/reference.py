"""`spmm_backward` as the two references it stands for."""

from __future__ import annotations

from torch import Tensor

from .._reference import always as why_not
from ..sddmm import reference as sddmm
from ..spmm_t import reference as spmm_t

__all__ = ["run", "why_not"]


def run(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> tuple[Tensor, Tensor]:
    """See `sae_kernels.kernels.spmm_backward`."""
    d_values = sddmm.run(grad, W, indices, offsets, values)
    return d_values, spmm_t.run(values, indices, offsets, grad, W.shape[0])
