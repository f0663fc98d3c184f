"""`sddmm` by gathering both rows of every slot."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import accumulation_dtype, active_slots
from .._reference import always as why_not

__all__ = ["run", "why_not"]


def run(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> Tensor:
    """See `sae_kernels.kernels.sddmm`."""
    acc = accumulation_dtype(A.dtype)
    gate = torch.ones_like(indices, dtype=A.dtype) if gate is None else gate
    _, latents, rows = active_slots(gate, indices, offsets, B.shape[0])
    out = A.new_zeros(indices.numel())
    out[gate.flatten() != 0] = (A[rows].to(acc) * B[latents].to(acc)).sum(1).to(A.dtype)
    return out.reshape(indices.shape)
