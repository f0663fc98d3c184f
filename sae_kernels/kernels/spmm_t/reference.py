"""`spmm_t` by scattering a row of X for every slot."""

from __future__ import annotations

from torch import Tensor

from .._reference import accumulation_dtype, active_slots
from .._reference import always as why_not

__all__ = ["run", "why_not"]


def run(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> Tensor:
    """See `sae_kernels.kernels.spmm_t`."""
    acc = accumulation_dtype(X.dtype)
    active, latents, rows = active_slots(values, indices, offsets, d_sae)
    out = X.new_zeros((d_sae, X.shape[1]), dtype=acc)
    return out.index_add(0, latents, active.to(acc).unsqueeze(1) * X[rows].to(acc)).to(X.dtype)
