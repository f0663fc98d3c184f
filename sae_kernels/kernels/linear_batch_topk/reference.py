"""`linear_batch_topk` with the dense pre-acts in sight."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import always as why_not
from .._reference import pre_acts
from ..linear_threshold.reference import to_csr

__all__ = ["run", "why_not"]


def run(x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.linear_batch_topk`. Sorting the flat batch makes the tie rule (row, then latent)."""
    z = pre_acts(x, W, b)
    order = torch.sort(z.flatten(), descending=True, stable=True).indices
    keep = torch.zeros(z.numel(), dtype=torch.bool, device=z.device)
    keep[order[:count]] = True
    values, indices, offsets = to_csr(z, keep.reshape(z.shape))
    return (values.relu() if relu else values).to(x.dtype), indices, offsets
