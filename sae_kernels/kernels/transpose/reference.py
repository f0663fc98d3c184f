"""`transpose` by a stable sort."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import always as why_not
from .._reference import check_indices, slot_rows

__all__ = ["run", "why_not"]


def run(indices: Tensor, offsets: Tensor | None, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.transpose`."""
    check_indices(indices, d_sae)
    latents = indices.flatten().long()
    order = torch.sort(latents, stable=True).indices
    latent_offsets = torch.zeros(d_sae + 1, dtype=torch.int64, device=indices.device)
    latent_offsets[1:] = torch.bincount(latents, minlength=d_sae).cumsum(0)
    return latent_offsets, order, slot_rows(indices, offsets)[order].int()
