"""`spmm` by gathering a row of W for every slot."""

from __future__ import annotations

from torch import Tensor

from .._reference import accumulation_dtype, active_slots, n_rows
from .._reference import always as why_not

__all__ = ["run", "why_not"]


def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
    """See `sae_kernels.kernels.spmm`."""
    acc = accumulation_dtype(W.dtype)
    active, latents, rows = active_slots(values, indices, offsets, W.shape[0])
    out = W.new_zeros((n_rows(indices, offsets), W.shape[1]), dtype=acc)
    return out.index_add(0, rows, active.to(acc).unsqueeze(1) * W[latents].to(acc)).to(W.dtype)
